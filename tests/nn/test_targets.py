"""Claims about casts besides layers: weights of norms and tables, outputs of modules; they are sites as any other, keep
names, export packed, and where a cast changes nothing gradients are torch's."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad import save_quantized
from altgrad.diagnosis.sites import quantised_layers
from altgrad.models.model import ModelSpec
from altgrad.nn import (
    PrecisionPolicy,
    casts_off,
    commit,
    dequantize_model,
    quantize_model,
    quantizers,
    unrecorded,
    weight_quantizers,
)
from altgrad.nn.weight_casts import QuantizedWeight, is_norm
from altgrad.quantize import Quantizer
from altgrad.quantize.packed import load_quantized
from altgrad.reports.arms import arm_of
from altgrad.spec import LocatedError, SpecError
from altgrad.symptoms import phase_of_site

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

MX = {"format": "e4m3fn", "scaling": "mx"}
NORMS, TABLES = {"place": "norms", "weight": MX}, {"place": "embeddings", "weight": "e4m3fn"}
STREAM = {"match": "blocks.?", "outputs": {"forward": "bfloat16", "backward": "e5m2"}}


def gpt(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = ModelSpec.of({"kind": "gpt", "layers": 2, "width": 32, "heads": 2, "context": 8, **sizes}).build(
        20, 20
    )
    with torch.no_grad():
        for module in made.modules():
            if is_norm(module):
                module.weight.add_(torch.linspace(-0.2, 0.3, 32))
    return made


def step(model: nn.Module, run: Any = None) -> list[Tensor]:
    model.zero_grad()
    y = (model if run is None else run)(torch.arange(16).view(2, 8))
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_sites_names_and_the_way_back() -> None:
    """Parameters keep their names, so that checkpoints and optimizers know them; everything comes off again."""
    model, plain = gpt(tied=True), gpt(tied=True)
    expected = step(plain)
    quantize_model(model, {"rules": [NORMS, TABLES, STREAM]})
    norms = [f"blocks.{i}.norm{j}" for i in range(2) for j in (1, 2)] + ["norm"]
    assert {q.site for q in quantizers(model)} == {
        *(f"{name}/weight" for name in [*norms, "embed", "positions"]),
        *(f"blocks.{i}/{end}" for i in range(2) for end in ("output", "output_gradient")),
    }
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert set(weight_quantizers(model)) == {f"{name}.weight" for name in [*norms, "embed", "positions"]}
    model.load_state_dict(plain.state_dict(), strict=False)
    assert not same(step(model), expected)
    with unrecorded(model), casts_off(model):
        assert same(step(model), expected)
    assert same(step(dequantize_model(model)), expected) and not quantizers(model)
    assert not any(isinstance(m, QuantizedWeight) or "casts" in dict(m.named_children()) for m in model.modules())


def test_a_norm_computes_with_its_weights_cast_and_passes_the_gradient_through() -> None:
    norm, x = nn.LayerNorm(64, bias=True), torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.9, 64))
    model = quantize_model(nn.Sequential(norm), {"rules": [NORMS]})
    parameter = dict(norm.named_parameters())["weight"]
    cast = Quantizer(MX, "other")(parameter.detach())  # type: ignore[arg-type]
    y = model(x)
    assert torch.equal(y, functional.layer_norm(x, (64,), cast, norm.bias)) and not torch.equal(cast, parameter)
    y.square().sum().backward()
    by_torch = cast.clone().requires_grad_()
    functional.layer_norm(x, (64,), by_torch, norm.bias).square().sum().backward()
    assert parameter.grad is not None and by_torch.grad is not None and torch.equal(parameter.grad, by_torch.grad)
    norm.reset_parameters()
    assert torch.equal(parameter, torch.ones(64))


def test_a_cast_that_changes_nothing_leaves_torchs_gradients() -> None:
    """Weights that the format holds already: outputs and gradients are those of the plain model to the last bit."""
    model = gpt()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(p.bfloat16()) if "norm" in name or "embed" in name or "positions" in name else None
    expected = step(model)
    exact = {"format": "bfloat16", "scaling": "unscaled"}
    rules = [{"place": "norms", "weight": exact}, {"place": "embeddings", "weight": exact}]
    assert same(step(quantize_model(model, {"rules": rules})), expected)


def test_outputs_are_cast_and_so_is_what_comes_back() -> None:
    class Stream(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x * 1.0, "besides"

    inner = Stream()
    model = quantize_model(nn.ModuleDict({"act": inner}), {"rules": [{**STREAM, "match": "act"}]})
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y, besides = model["act"](x)  # type: ignore[index]
    rows = x.detach().view(12, 8)
    assert torch.equal(y.view(12, 8), Quantizer("bfloat16", "other")(rows)) and besides == "besides"
    gradient = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    y.backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad.view(12, 8), Quantizer("e5m2", "other")(gradient.view(12, 8)))


def test_a_copy_and_a_pickle_go_on_alike() -> None:
    rules = [{"place": "norms", "weight": {"format": "e4m3fn", "rounding": "stochastic"}}, TABLES, STREAM]
    model = quantize_model(gpt(), {"rules": rules})
    step(model), commit(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = step(model)
    assert all(same(step(twin), expected) for twin in twins)


@pytest.mark.long
@pytest.mark.needs("c++")
def test_compiled_it_is_one_graph_with_the_same_bits() -> None:
    torch._dynamo.reset()
    rules = [{"place": "norms", "weight": MX}, {"match": "norm", "outputs": {"forward": "e4m3fn", "backward": "e5m2"}}]
    eager, compiled = (quantize_model(gpt(layers=1), {"rules": rules}) for _ in range(2))
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    assert same(step(eager), step(compiled, run))


def test_a_layers_rule_still_means_layers_alone() -> None:
    model = quantize_model(gpt(), {"rules": [{"match": "*", "weight": "e4m3fn"}]})
    assert not any(isinstance(m, QuantizedWeight) for m in model.modules())
    model = quantize_model(gpt(), {"rules": [{"match": "*.norm1"}, NORMS]})
    assert {q.site for q in quantizers(model)} == {"blocks.0.norm2/weight", "blocks.1.norm2/weight", "norm/weight"}


@pytest.mark.parametrize("held", ["model", "quantised", "file"])
def test_norms_and_tables_are_written_packed(held: str, tmp_path: Path) -> None:
    """From a model, from one that is quantised, and from a file, in which there are names alone."""
    policy = {"rules": [NORMS, TABLES, {"place": "attention", "attention": {"query": "e4m3fn"}}]}
    model: Any = gpt()
    expected = {
        name: p.detach() for name, p in gpt().named_parameters() if "norm" in name or "emb" in name or "pos" in name
    }
    source: Any = quantize_model(model, policy) if held == "quantised" else model
    if held == "file":
        from safetensors.torch import save_file

        source = tmp_path / "model.safetensors"
        save_file({name: p.detach() for name, p in model.named_parameters()}, source)
    save_quantized(source, tmp_path / "out", policy=None if held == "quantised" else policy)
    found = load_quantized(tmp_path / "out")
    assert len(expected) == 7
    for name, p in expected.items():
        cast = Quantizer(MX if "norm" in name else "e4m3fn", "other")  # type: ignore[arg-type]
        assert torch.equal(found[name], cast(p)), name
    assert torch.equal(found["head.weight"], dict(model.named_parameters())["head.weight"])


@pytest.mark.parametrize(
    ("model", "rules", "says"),
    [
        (lambda: nn.Linear(4, 4), [NORMS], "place norms holds no norm with a weight of this model"),
        (gpt, [{"place": "norms", "weight": MX, "input": "e4m3fn"}], "place norms has weights alone, and input is"),
        (gpt, [{"place": "embeddings", "weight": MX, "input": "e4m3fn"}], "has tables alone; input is not a weight"),
        (gpt, [{"place": "body", "outputs": "e4m3fn"}], "outputs are those of modules by name; give the rule match"),
        (gpt, [{"match": "blocks.?.act", "outputs": "e4m3fn"}], "'blocks.?.act' matches no module; there are embed"),
        (gpt, [{"match": "blocks", "outputs": "e4m3fn"}], "blocks is a ModuleList, which has no output of its own"),
        (gpt, [{"match": "blocks.?", "outputs": {}}], "outputs casts nothing; give it forward, backward or both."),
        (gpt, [{"place": "norms", "weight": {"format": "e4m3fn", "rounding": "toward_average"}}],
         "blocks.0.norm1: weight has rounding: toward_average, which belongs to the slots of a Linear."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(model: Any, rules: Any, says: str) -> None:
    before = model()
    with pytest.raises((LocatedError, SpecError, ValueError)) as caught:
        quantize_model(before, {"rules": rules})
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not quantizers(before)


def test_replays_say_that_they_take_layers_apart_alone() -> None:
    for rules in ([NORMS], [STREAM], [{"place": "attention", "attention": {"query": "e4m3fn"}}]):
        with pytest.raises(
            ValueError, match=r"replays take the casts of Linears apart, and this run also casts blocks.0"
        ):
            quantised_layers(quantize_model(gpt(), {"rules": rules}))


def test_a_rule_without_its_layers_keeps_the_rest() -> None:
    """What advice on the Linears of a run leaves of its policy."""
    mixed = {"place": "attention", "attention": {"query": "e4m3fn"}, "weight": "e4m3fn", "operands": "per_product"}
    policy = PrecisionPolicy.made_from({"rules": (mixed, NORMS, {"match": "*", "weight": "e4m3fn"})})
    kept = [rule.elsewhere() for rule in policy.rules]
    assert kept[0] is not None and not kept[0].layer().casts() and kept[0].attention == policy.rules[0].attention
    assert kept[1] == policy.rules[1] and kept[2] is None


@pytest.mark.parametrize(
    ("site", "phase"),
    [("blocks.0.attention/query", "forward"), ("blocks.0.attention/value.output", "forward"),
     ("blocks.0.attention/grad_scores", "backward"), ("blocks.0.attention/grad_output", "backward"),
     ("blocks.0/output_gradient", "backward"), ("blocks.0/output", "forward"), ("norm/weight", "forward")],
)  # fmt: skip
def test_alarms_know_the_side_of_a_step(site: str, phase: str) -> None:
    assert phase_of_site(site) == phase


def test_an_arm_with_casts_elsewhere_is_no_baseline() -> None:
    for rule, words in (
        (NORMS, "FP32, norms e4m3fn"), (STREAM, "FP32, outputs bfloat16+e5m2"),
        ({"place": "attention", "attention": {"query": "e4m3fn", "operands": "shared"}}, "FP32, attention e4m3fn"),
    ):  # fmt: skip
        arm = arm_of({"compute": "float32", "precision": {"rules": [rule]}, "optimizer": {"kind": "adamw"}})
        assert arm.place == words and not arm.is_baseline
