"""Claims about `altgrad policy --to torchao`, with torchao itself: the file that is written is executed, converts the
layers that it lists and no others, and each of them computes y, dx and dW as ours does.

Over 100 random policies and five architectures. torchao emulates float8 and MXFP8 on a CPU; INT8 runs as it is. Where
torchao is not installed, this file is skipped.
"""

import copy
import dataclasses
import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.conversion.policies.expression import express_policy
from altgrad.conversion.policies.policy_report import PolicyReport
from altgrad.models.gpt import GPTSpec
from altgrad.nn import PrecisionPolicy, quantize_model

pytest.importorskip("torchao", reason="torchao is not installed; see CONTRIBUTING.md")
transformers = pytest.importorskip("transformers", reason="transformers is not installed; see CONTRIBUTING.md")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WIDTH, TOKENS = 64, 96
SIZES = {
    "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32,
}  # fmt: skip


def gpt() -> nn.Module:
    said = {"kind": "gpt", "layers": 2, "width": WIDTH, "heads": 2, "context": 32, "bias": False}
    return GPTSpec.made_from(said).build(64, 64)


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "gpt": gpt,
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "qwen3, tied": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=2)),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=2)),
}


@cache
def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[name]()


def torchao_scaling(granularity: str, power: bool) -> dict[str, Any]:
    scale = "power_of_two" if power else "real"
    return {
        "kind": "current", "granularity": granularity, "scale": scale, "arithmetic": "torchao", "floor": 1e-12,
    }  # fmt: skip


def float8(draw: random.Random) -> dict[str, Any]:
    """Any of torchao's: a format for an operand, a scale of the tensor or of rows for a slot, products left out."""
    power = draw.random() < 0.5
    formats = {operand: draw.choice(["e4m3fn", "e4m3fn", "e5m2"]) for operand in ("weight", "input", "grad_output")}
    rule: dict[str, Any] = {"operands": "per_product"}
    products = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight")}
    products["grad_weight"] = ("grad_output", "input")
    used = draw.sample(list(products), draw.choice([1, 2, 3, 3, 3]))
    for product, operands in products.items():
        casts = {
            operand: {
                "format": formats[operand], "scaling": torchao_scaling(draw.choice(["tensor", "channel"]), power)
            }
            for operand in operands
        }  # fmt: skip
        rule[product] = casts if product in used else "none"
    return rule


def mxfp8(draw: random.Random) -> dict[str, Any]:
    cast = {"format": "e4m3fn", "scaling": {"kind": "mx", "mode": draw.choice(["floor", "rceil"])}}
    high = {"grad_weight": "none"} if draw.random() < 0.5 else {}
    return {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product", **high}


def int8(draw: random.Random) -> dict[str, Any]:
    scaling = {"kind": "current", "granularity": "channel", "scale": "real", "arithmetic": "reciprocal"}
    cast = {"format": "e0m7", "scaling": scaling}
    left = draw.choice([{}, {"grad_weight": "none"}, {"grad_input": "none"}, {"grad_input": "none", "forward": "none"}])
    return {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product", **left}


def plain(draw: random.Random) -> dict[str, Any]:
    """What people write: powers of two, in the product's usual order, shared by both products."""
    return {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": draw.choice(["e4m3fn", "e5m2"])}


def elsewhere(draw: random.Random) -> dict[str, Any]:
    """Casts that torchao has not."""
    cast = draw.choice([
        {"format": "e4m3fn", "scaling": {"kind": "delayed", "history": 4}}, "e3m4",
        {"format": "e4m3fn", "scaling": "mx", "rounding": "stochastic"}, {"format": "e2m1", "scaling": "nvfp4"},
        {"format": "e4m3fn", "scaling": {"kind": "current", "scale": "real"}},
    ])  # fmt: skip
    return {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}


CASTS: list[Callable[[random.Random], dict[str, Any]]] = [float8] * 6 + [
    mxfp8,
    mxfp8,
    int8,
    int8,
    plain,
    plain,
    elsewhere,
]


def random_policy(draw: random.Random, of: nn.Module) -> tuple[PrecisionPolicy, list[str]]:
    """Rules by names and places, and of which sort each is; one without casts leaves its layers, and experts."""
    names = [name for name, module in of.named_modules() if isinstance(module, nn.Linear)]
    while True:
        rules, sorts = [{"match": "*experts*"}] if "Mixtral" in type(of).__name__ else [], ["left"]
        sorts = sorts[: len(rules)]
        for _ in range(draw.choice([1, 2, 2, 3])):
            parts = draw.choice(names).split(".")
            parts[draw.randrange(len(parts))] = "*"
            where = draw.choice([
                {"match": ".".join(parts)}, {"match": draw.choice(names)}, {"match": f"*{parts[-1]}"},
                {"place": draw.choice(["body", "attention", "body.last(1)", "mlp", "head"])},
            ])  # fmt: skip
            casts = draw.choice(CASTS) if draw.random() < 0.85 else None
            rules.append({**where, **({} if casts is None else casts(draw))})
            sorts.append("left" if casts is None else casts.__name__)
        policy = PrecisionPolicy.made_from({"rules": tuple(rules)})
        try:
            decisions = policy.decide(of)
        except ValueError:  # a rule that decides nothing
            continue
        if any(each.precision is not None and each.precision.casts() for each in decisions):
            return policy, sorts


def refused(policy: PrecisionPolicy, sorts: list[str], of: nn.Module) -> list[str]:
    """The layers that torchao cannot run, by what its code says and not by ours."""
    tied = [p for name, p in of.named_parameters(remove_duplicate=False)]
    found = []
    for decision in policy.decide(of):
        if decision.rule is None or decision.precision is None or not decision.precision.casts():
            continue
        layer, sort, rule = of.get_submodule(decision.name), sorts[decision.rule], policy.rules[decision.rule]
        products: dict[str, set[str]] = {}
        for (product, _), spec in decision.precision.slots.items():
            if spec is not None:
                products.setdefault(product, set()).add(str(spec.format))
        assert isinstance(layer, nn.Linear) and rule is not None
        unbalanced = any(formats == {"e5m2"} for formats in products.values())
        lost = layer.bias is not None or sum(p is layer.weight for p in tied) > 1
        odd = any(size % {"mxfp8": 32, "int8": 1}.get(sort, 16) for size in layer.weight.shape)
        if sort == "elsewhere" or unbalanced or odd or (sort == "mxfp8" and lost):
            found.append(decision.name)
    return found


def expressed_or_said(policy: PrecisionPolicy, of: nn.Module) -> PolicyReport | str:
    """The report, or what is said where there is none."""
    try:
        return express_policy(policy, to="torchao", model=of)
    except ValueError as error:
        return str(error)


def executed(report: PolicyReport) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(compile(report.text, "policy.py", "exec"), space)
    return space


def converted(made: nn.Module) -> dict[str, Any]:
    """The layers that are torchao's, with their configs."""
    found = {}
    for name, module in made.named_modules():
        if isinstance(module, nn.Linear):
            config = getattr(module, "config", getattr(module.weight.data, "config", None))
            if config is not None:
                found[name] = config
    return found


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    weight = layer.weight.grad
    assert x.grad is not None and isinstance(weight, Tensor)
    return [y.detach(), x.grad, getattr(weight, "_data", weight)]


def compare(ours: nn.Module, theirs: nn.Module, name: str, sort: str, dtype: torch.dtype) -> None:
    """The same bits; where sums are added in another order (INT8's integers, a bias after the product) a few steps."""
    one, other = ours.get_submodule(name), theirs.get_submodule(name)
    generator = torch.Generator().manual_seed(len(name))
    outputs, inputs = one.weight.shape
    x = torch.randn(TOKENS, inputs, generator=generator).to(dtype)
    dy = (torch.randn(TOKENS, outputs, generator=generator) * 1e-3).to(dtype)
    for number, (mine, their) in enumerate(zip(step(one, x, dy), step(other, x, dy), strict=True)):
        steps = 8.0 if sort == "int8" else 1.0 if number == 0 and one.bias is not None else 0.0
        bound = steps * torch.finfo(dtype).eps * their.float().abs().max()
        assert (mine.float() - their.float()).abs().max() <= bound, (name, sort, ("y", "dx", "dW")[number])


def check(number: int, name: str) -> str:
    """One policy; what became of it."""
    draw, of = random.Random(f"{name} {number}"), model(name)
    policy, sorts = random_policy(draw, of)
    cannot = refused(policy, sorts, of)
    report = expressed_or_said(policy, of)
    if isinstance(report, str):
        assert cannot, (policy, report)
        assert any(f"{each}: " in report for each in cannot) and "\n" not in report, (cannot, report)
        return "refused"
    assert not cannot, (policy, cannot)
    space, wanted = executed(report), policy.decide(of)
    cast = {each.name: sorts[each.rule] for each in wanted if each.rule is not None and each.precision.casts()}
    dtype = torch.float32 if "int8" in cast.values() else torch.bfloat16
    ours, theirs = (copy.deepcopy(of).to(dtype) for _ in range(2))
    theirs = space["convert"](theirs, emulate=True)
    found = converted(theirs)
    assert found.keys() == cast.keys() == {row["layer"] for row in report.facts["layers"] if row["takes"]}
    assert (
        found.keys() == space["LAYERS"].keys() and set(space["LEFT"]) == {each.name for each in wanted} - found.keys()
    )
    configs = space["configs"](True)
    assert all(found[each] == configs[key] for each, key in space["LAYERS"].items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_model(ours, policy)
    for each, sort in cast.items():
        compare(ours, theirs, each, sort, dtype)
    return "expressed"


@pytest.mark.parametrize("policies", [4, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_written_converts_the_layers_listed_and_computes_what_ours_do(name: str, policies: int) -> None:
    results = [check(number, name) for number in range(policies)]
    if policies > 20:
        assert results.count("expressed") >= 20 and results.count("refused") >= 10


FAULTS = {
    "another format": ("TENSORWISE, torch.float8_e5m2", "TENSORWISE, torch.float8_e4m3fn"),
    "scales of rows": ("ScalingGranularity.TENSORWISE", "ScalingGranularity.AXISWISE"),
    "scales that are powers of two": ("round_scales_to_power_of_2=False", "round_scales_to_power_of_2=True"),
    "a product left out": ("ScalingType.DYNAMIC", "ScalingType.DISABLED"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_in_what_is_written_shows(fault: str) -> None:
    of, policy = model("llama"), "torchao_tensorwise"
    report = express_policy(policy, to="torchao", model=of)
    ours, theirs = quantize_model(copy.deepcopy(of).bfloat16(), policy), copy.deepcopy(of).bfloat16()
    at = "model.layers.1.mlp.up_proj"
    compare(ours, executed(report)["convert"](copy.deepcopy(theirs), emulate=True), at, "float8", torch.bfloat16)
    wrong = dataclasses.replace(report, text=report.text.replace(*FAULTS[fault]))
    assert wrong.text != report.text
    with pytest.raises(AssertionError):
        compare(ours, executed(wrong)["convert"](theirs, emulate=True), at, "float8", torch.bfloat16)


def test_a_file_says_for_which_model_it_was_written() -> None:
    space = executed(express_policy("torchao_tensorwise", to="torchao", model=model("llama")))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.\S+ is not an nn\.Linear of this model"):
        space["convert"](copy.deepcopy(model("gpt")))


def test_what_torchao_does_wrong_is_why_it_is_refused() -> None:
    """Once this fails, torchao has mended it, and what refuses it here can go."""
    config = executed(express_policy("torchao_mxfp8", to="torchao", model=model("gpt")))["configs"](True)["mxfp8"]
    from torchao.quantization import quantize_

    made = nn.Sequential(nn.Linear(32, 32))
    nn.init.constant_(made[0].bias, 100.0)
    quantize_(made, config, filter_fn=lambda _, name: name == "0")
    assert made(torch.randn(32, 32)).abs().max() < 50, "the bias is passed over"


def test_nvfp4_is_constructed_and_converts_the_layers_listed() -> None:
    """Its products want a GPU."""
    said = {"kind": "gpt", "layers": 2, "width": 128, "heads": 2, "context": 32}
    of = GPTSpec.made_from(said).build(64, 64)
    report = express_policy("torchao_nvfp4", to="torchao", model=of)
    made = executed(report)["convert"](of)
    found = {name for name, module in made.named_modules() if type(module).__name__ == "NVFP4Linear"}
    assert found == {f"blocks.0.{name}" for name in ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")}
    assert found == {row["layer"] for row in report.facts["layers"] if row["takes"]} and not report.facts["verified"]
