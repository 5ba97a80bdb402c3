"""Claims about policies in the words of production stacks, none of which has to be installed: what is expressed and
what is refused, how it is written, and that nothing half-written stays. test_policies_torchao.py has torchao itself."""

import ast
import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from altgrad.conversion.policies import expression as room
from altgrad.conversion.policies.expression import express_policy
from altgrad.conversion.policies.meanings import differing_slots, precision_of
from altgrad.models.gpt import GPTSpec
from altgrad.models.llama import LlamaSpec
from altgrad.nn import PrecisionPolicy, QuantizedLinear, commit, quantize_model
from altgrad.recipes.book import find
from altgrad.recipes.catalogue import names

E4M3, E5M2 = "e4m3fn", "e5m2"
ROOT = Path(__file__).resolve().parents[2]


def model(**more: Any) -> nn.Module:
    said = {"kind": "gpt", "layers": 3, "width": 128, "heads": 2, "context": 32, "bias": False, **more}
    return GPTSpec.made_from(said).build(64, 64)


EXPRESSED = {
    "torchao": {
        "torchao_tensorwise": "float8", "torchao_rowwise": "float8", "torchao_rowwise_gw_hp": "float8",
        "torchao_mxfp8": "mxfp8", "te_mxfp8": "mxfp8", "torchao_int8": "int8", "torchao_nvfp4": "nvfp4",
        "torchao_blockwise": "blockwise",
    },
    "te": {
        "te_delayed": "delayed", "te_current": "current", "te_block": "block", "te_mxfp8": "mxfp8", "te_nvfp4": "nvfp4",
        "te_nvfp4_4over6": "nvfp4", "torchao_mxfp8": "mxfp8",
    },
    "megatron": {
        "te_current": "current", "te_block": "block", "te_mxfp8": "mxfp8", "te_nvfp4": "nvfp4",
        "torchao_mxfp8": "mxfp8",
    },
}  # fmt: skip
"""The recipes that a target runs, by what it calls its own."""


def expressed_or_said(policy: Any, to: Any, of: nn.Module | Path) -> Any:
    """The report, or what is said where there is none."""
    try:
        return express_policy(policy, to=to, model=of)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("to", EXPRESSED)
def test_each_recipe_is_expressed_or_refused_in_one_line_with_layer_and_reason(to: Any) -> None:
    of, found = model(), {}
    for name in names():
        if not find(name).expansion().run["precision"]["rules"]:
            continue
        report = expressed_or_said(name, to, of)
        if isinstance(report, str):
            assert ": blocks.0." in report or ": head: " in report, report
            assert "\n" not in report and report.startswith(f"recipes/{name}.yaml:"), report
            continue
        assert report.facts["verified"] == (to == "torchao" and name not in ("torchao_nvfp4", "torchao_blockwise"))
        (found[name],) = report.facts["objects"]
        decisions = PrecisionPolicy.made_from(name).decide(of)
        cast = [each.name for each in decisions if each.precision is not None and each.precision.casts()]
        assert [row["layer"] for row in report.facts["layers"] if row["takes"]] == cast
    assert found == EXPRESSED[to]


MX = {"format": E4M3, "scaling": {"kind": "mx", "mode": "rceil"}}
CURRENT = {"format": E4M3, "scaling": {"kind": "current", "scale": "real", "arithmetic": "torchao", "floor": 1e-12}}
ALL_MX = {"weight": MX, "input": MX, "grad_output": MX, "operands": "per_product"}
PLAIN = {"weight": E4M3, "input": E4M3, "grad_output": E5M2}
BY_ROW = {"format": E4M3, "scaling": {"kind": "current", "granularity": "channel"}}
REAL = {"format": E4M3, "scaling": {"kind": "current", "scale": "real"}}
SQUARE = {**MX, "scaling": {**MX["scaling"], "shape": "square"}}
DELAYED = {
    name: {"format": fmt, "scaling": {"kind": "delayed", "scale": "real", "arithmetic": "te", "history": 8}}
    for name, fmt in PLAIN.items()
}
Rules = list[dict[str, Any]]
REFUSED: dict[str, tuple[str, Rules, dict[str, Any], str]] = {
    "arithmetic": (
        "torchao", [{"match": "*mlp.up", **PLAIN, "input": REAL}], {},
        "blocks.0.mlp.up: forward.input is e4m3fn current, and the nearest that torchao runs, float8, has "
        "scaling.arithmetic: torchao instead of divide there; say that, or take another target.",
    ),
    "floor": (
        "te", [{"match": "*", **PLAIN, "input": {"format": E4M3, "scaling": {"kind": "current", "floor": 1e-4}}}], {},
        "scaling.floor: 0.0 instead of 0.0001 there",
    ),
    "format": (
        "te", [{"match": "*mlp.up", **PLAIN, "grad_output": "e3m4"}], {}, "blocks.0.mlp.up: grad_input.grad_output is "
        "e3m4 current, and the nearest that te runs, current, has format: e4m3fn instead of e3m4 there",
    ),
    "half a product": (
        "torchao", [{"match": "*up", "weight": REAL, "input": REAL, "grad_input": {"weight": "none"}}, {"match": "*"}],
        {"layers": 1}, "forward.input is e4m3fn current, and the nearest that torchao runs, float8,",
    ),
    "one operand": (
        "te", [{"match": "*up", "weight": MX, "input": MX, "operands": "per_product"}], {},
        "grad_input.grad_output is -, and the nearest that te runs, mxfp8, has e4m3fn mx/32 there"
    ),
    "shared operands by rows": (
        "torchao", [{"match": "*up", **PLAIN, "weight": BY_ROW}], {}, "blocks.0.mlp.up: grad_input.weight is e4m3fn "
        "current/channel, and the nearest that torchao runs, float8, has operands: per_product instead of shared there",
    ),
    "draws": (
        "te", [{"match": "*up", **ALL_MX, "grad_output": {**MX, "rounding": "stochastic"}}], {},
        "has rounding: nearest_even instead of stochastic there",
    ),
    "transform": (
        "te", [{"match": "*up", **ALL_MX, "grad_weight": {"transform": {"kind": "hadamard", "size": 32}}}], {},
        "has grad_weight.transform: none instead of hadamard/32 there",
    ),
    "sums": (
        "torchao", [{"match": "*up", **PLAIN, "forward": {"accumulator": "ada"}}], {},
        "has forward.accumulator: none instead of ada there",
    ),
    "two of e5m2": (
        "torchao", [{"match": "*up", **PLAIN, "weight": E5M2, "input": E5M2}], {}, "both operands of forward are e5m2",
    ),
    "size": (
        "torchao", [{"match": "*", **PLAIN}], {"width": 24}, "qkv: it has 24 inputs, and float8 of torchao takes "
        "multiples of 16; leave it out by a rule before, or take another target.",
    ),
    "bias": (
        "torchao", [{"match": "*up", **ALL_MX}], {"bias": True},
        "blocks.0.mlp.up: it has a bias, which MXFP8 of torchao 0.18.0 passes over",
    ),
    "tied": ("torchao", [{"match": "head", **ALL_MX}], {"tied": True}, "head: its weight is shared"),
    "tied for te": ("te", [{"match": "head", **ALL_MX}], {"tied": True}, "head: its weight is shared"),
    "attention": (
        "te", [{"place": "attention", "attention": {"query": E4M3}}], {},
        "blocks.0.attention: attention is cast, and targets take casts of layers alone",
    ),
    "norms": ("torchao", [{"place": "norms", "weight": E4M3}], {}, "blocks.0.norm1: its weight is cast"),
    "delayed and another": (
        "te", [{"match": "*up", **ALL_MX}, {"match": "*down", **DELAYED}], {}, "blocks.0.mlp.down: delayed scaling "
        "closes a step at the end of an autocast, and mxfp8 would have another",
    ),
    "Megatron's head": (
        "megatron", [{"match": "head", **ALL_MX}], {}, "head: it is in head, where Megatron casts nothing",
    ),
    "Megatron's defaults": (
        "megatron", [{"match": "*up", **ALL_MX, "weight": SQUARE}], {},
        "Megatron's configs have no mxfp8 scaling with these choices",
    ),
    "nothing": ("te", [{"match": "*up"}], {}, "no layer is cast, so there is nothing to write for te"),
    "no such layer": ("te", [{"match": "*upp", **PLAIN}], {}, "'*upp' matches no Linear layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_with_the_layer_and_the_reason(case: str) -> None:
    to, rules, sizes, said = REFUSED[case]
    with pytest.raises(ValueError) as error:
        express_policy({"rules": rules}, to=to, model=model(**sizes))  # type: ignore[arg-type]
    assert said in str(error.value) and "\n" not in str(error.value), error.value


def test_experts_are_layers_to_megatron_alone() -> None:
    said = {"kind": "llama", "layers": 2, "width": 64, "heads": 2, "context": 16, "experts": 2, "active": 2}
    of = LlamaSpec.made_from(said).build(64, 64)
    rules = {"rules": [{"place": "experts", **ALL_MX}]}
    for to in ("torchao", "te"):
        with pytest.raises(ValueError, match=rf"it is one of a stack of experts, and {to} takes nn.Linear"):
            express_policy(rules, to=to, model=of)  # type: ignore[arg-type]
    read = yaml.safe_load(express_policy(rules, to="megatron", model=of).text)
    found = [each["pattern"] for each in read["matchers"].values()]
    assert found == ["*decoder.layers.*.mlp.experts.*linear_fc1", "*decoder.layers.*.mlp.experts.*linear_fc2", "*"]
    apart = {"rules": [{"match": "*experts.gate.0", **ALL_MX}]}
    with pytest.raises(ValueError, match=r"Megatron joins it and blocks\.0\.experts\.gate\.0 to mlp\.experts"):
        express_policy(apart, to="megatron", model=of)


FIELDS = {
    "DelayedScaling": "margin fp8_format amax_history_len amax_compute_algo reduce_amax fp8_dpa backward_override",
    "Float8CurrentScaling": "use_power_2_scales fp8_format fp8_gemm_fprop fp8_gemm_dgrad fp8_gemm_wgrad "
    "backward_override",
    "Float8BlockScaling": "use_f32_scales fp8_format x_block_scaling_dim w_block_scaling_dim grad_block_scaling_dim "
    "backward_override",
    "MXFP8BlockScaling": "margin fp8_format enable_2d_quantization backward_override",
    "NVFP4BlockScaling": "disable_rht disable_stochastic_rounding disable_2d_quantization nvfp4_4over6 "
    "nvfp4_4over6_e4m3_use_256 nvfp4_4over6_err_mode backward_override",
    "MMParams": "use_split_accumulator", "with_scales": "power_of_two", "Linear": "bias params_dtype device",
    "autocast": "enabled recipe", "replace": "power_2_scale",
}  # fmt: skip
"""Arguments of Transformer Engine's classes at the commit that `te.page` names, and of what the file itself defines."""
FORWARD = {"match": "*", "weight": MX, "input": MX, "grad_input": "none", "grad_weight": "none"}
CHOICES: list[tuple[dict[str, Any], str]] = [
    (
        {"recipe": {"name": "te_delayed", "history": 16, "reduce": "most_recent"}},
        "amax_history_len=16, amax_compute_algo='most_recent'",
    ),
    ({"recipe": {"name": "te_current", "scale": "power_of_two"}}, "use_power_2_scales=True), power_of_two=True"),
    ({"recipe": {"name": "te_current", "accumulator": "hopper_fast"}}, "HYBRID, use_power_2_scales=False), power_of"),
    (
        {"recipe": {"name": "te_current", "accumulator": "hopper_promote_128"}},
        "fp8_gemm_fprop=recipe.MMParams(use_split_accumulator=True)",
    ),
    ({"recipe": {"name": "te_block", "scale": "real"}}, "use_f32_scales=True, x_block_scaling_dim=1, w_block_scaling_"),
    ({"recipe": {"name": "te_block", "accumulator": "hopper_promote_128"}}, "use_f32_scales=False"),
    ({"recipe": {"name": "te_mxfp8", "weight_shape": "square"}}, "enable_2d_quantization=True"),
    ({"recipe": "te_nvfp4", "set": {"grad_output.rounding": "nearest_even"}}, "disable_stochastic_rounding=True"),
    (
        {"recipe": {"name": "te_nvfp4_4over6", "by": "mse"}},
        "nvfp4_4over6='all', nvfp4_4over6_e4m3_use_256='all', nvfp4_4over6_err_mode='MSE'",
    ),
    ({"rules": [FORWARD]}, "backward_override='high_precision'"),
    ({"rules": [{"match": "*", **PLAIN}]}, "Float8CurrentScaling(fp8_format=recipe.Format.HYBRID, use_power_2_scales="),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_what_a_recipe_lets_choose_is_an_argument_of_transformer_engines(number: int) -> None:
    policy, made = CHOICES[number]
    for of in (model(), None):
        report = express_policy(policy, to="te", model=of)
        assert any(made in each for each in report.facts["objects"].values()), report.facts["objects"]
        for call in filter(lambda node: isinstance(node, ast.Call), ast.walk(ast.parse(report.text))):
            assert isinstance(call, ast.Call)
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given = {word.arg for word in call.keywords} - {None, "remove_duplicate"}
            assert given <= set(FIELDS.get(name, "").split()), (name, given)


def megatron_config(text: str, module: str) -> str | None:
    """The config of a module: the first enabled glob that matches its name, as Megatron's RecipeConfig has it."""
    read = yaml.safe_load(text)
    matchers = (each for each in read["matchers"].values() if each["enabled"])
    return next((each["config"] for each in matchers if fnmatch.fnmatch(module, each["pattern"])), None)


JOINED = {
    "attention.qkv": "self_attention.linear_qkv", "attention.proj": "self_attention.linear_proj",
    "mlp.up": "mlp.linear_fc1", "mlp.down": "mlp.linear_fc2",
}  # fmt: skip
TE = {
    name: {"format": fmt, "scaling": {"kind": "current", "scale": "real", "arithmetic": "te"}}
    for name, fmt in PLAIN.items()
}
ORDERED: list[Rules] = [
    [{"place": "body", **ALL_MX}],
    [{"place": "body.last(1)"}, {"place": "mlp", **ALL_MX}],
    [{"match": "blocks.first.*", **ALL_MX}, {"place": "attention_output"}, {"place": "attention", **TE}],
]


@pytest.mark.parametrize("rules", ORDERED)
def test_megatrons_first_glob_decides_as_the_policys_first_rule(rules: list[dict[str, Any]]) -> None:
    of = model(layers=12)
    report = express_policy({"rules": rules}, to="megatron", model=of)
    for row in report.facts["layers"]:
        _, block, *inside = row["layer"].split(".") if "." in row["layer"] else ("", "", "")
        name = JOINED.get(".".join(inside))
        if name is not None:
            module = f"decoder.layers.{block}.{name}"
            assert megatron_config(report.text, module) == (row["takes"] or "bf16"), module
    read = yaml.safe_load(report.text)
    assert megatron_config(report.text, "output_layer") == "bf16" and read["configs"]["bf16"]["training_recipe"] == {}
    assert all(
        key == "bf16" or config["training_recipe"]["override_nonquantized_autocast"]
        for key, config in read["configs"].items()
    )


def test_without_a_model_places_are_megatrons_and_rules_are_listed() -> None:
    rules = [{"place": "body.first(2)"}, {"place": "attention", **ALL_MX}]
    report = express_policy({"rules": rules}, to="megatron")
    assert [row["takes"] for row in report.facts["rules"]] == [None, "mxfp8"]
    for block, found in ((0, "bf16"), (1, "bf16"), (2, "mxfp8"), (10, "mxfp8")):
        assert megatron_config(report.text, f"decoder.layers.{block}.self_attention.linear_qkv") == found
        assert megatron_config(report.text, f"decoder.layers.{block}.mlp.linear_fc1") == "bf16"
    python = express_policy("te_nvfp4", to="te")
    assert "'rule 1, place body': 'nvfp4'" in python.text and "def convert" not in python.text
    by_name = {"rules": [{"match": "*up", **ALL_MX}]}
    for policy, said in (("te_nvfp4", "counts a model's blocks; give --model"), (by_name, "give --model")):
        with pytest.raises(ValueError, match=said):
            express_policy(policy, to="megatron")  # type: ignore[arg-type]


ROWS, RCEIL = {"kind": "current", "granularity": "channel"}, {"kind": "mx", "mode": "rceil"}
SQUARES, AO = {"kind": "block", "shape": "square", "size": 16}, {"arithmetic": "torchao"}
POWERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "current"}, {"kind": "current", "floor": 1e-12, **AO}),
    ({"kind": "current"}, {"kind": "current", "arithmetic": "te"}),
    (ROWS, {**ROWS, "floor": 1e-12, **AO}),
    (RCEIL, {**RCEIL, **AO}),
    ({"kind": "mx"}, {"kind": "block", "size": 32, "scale": "e8m0", "mode": "floor", **AO}),
    (SQUARES, {**SQUARES, "arithmetic": "te"}),
]


@pytest.mark.parametrize("fmt", [E4M3, E5M2])
@pytest.mark.parametrize("number", range(len(POWERS)))
def test_ways_to_say_the_same_have_the_same_bits(number: int, fmt: str) -> None:
    """Two that are taken for one: y, dx and dW of a layer, over 40 binades, with amaxes at and beside the largest value
    of the format, where a quotient that is rounded could take the next power of two."""
    one, other = POWERS[number]
    made, inputs = [], torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    inputs *= 2.0 ** torch.randint(-20, 20, (64, 1), generator=torch.Generator().manual_seed(2))
    top = torch.finfo(torch.float8_e4m3fn if fmt == E4M3 else torch.float8_e5m2).max
    for row, edge in enumerate((top, torch.nextafter(torch.tensor(top), torch.tensor(1e9)).item(), top * 2**-9)):
        inputs[row, 0] = edge
        inputs[row, 1:] *= edge / inputs[row].abs().amax().clamp(min=edge)
    shared = [{"operands": "shared"}, {"operands": "per_product"}] if "square" in (one.get("shape"),) else [{}, {}]
    for scaling, how in zip((one, other), shared, strict=True):
        cast = {"format": fmt, "scaling": scaling}
        rule = {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product", **how}
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(32, 64, bias=False))
        quantize_model(layer, PrecisionPolicy.uniform(**rule))
        assert isinstance(layer[0], QuantizedLinear)
        x = inputs.clone().requires_grad_()
        y = layer(x)
        y.backward(inputs.mT[:, :64].mT.repeat(1, 2))
        commit(layer)
        made.append((precision_of(rule), [y.detach(), x.grad, layer[0].weight.grad]))
    (ours, first), (theirs, second) = made
    assert not differing_slots(ours, theirs)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(first, second, strict=True))


DRAWN, EVEN = {"format": E5M2, "rounding": "stochastic"}, {"kind": "mx", "mode": "even"}
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (PLAIN, {**PLAIN, "weight": {"format": E4M3, "scaling": {"kind": "current", "margin": 1}}}),
    (PLAIN, {**PLAIN, "weight": {"format": E4M3, "scaling": {"kind": "current", "floor": 1e-4}}}),
    (PLAIN, {**PLAIN, "weight": {"format": E4M3, "nonfinite": "saturate"}}),
    (PLAIN, {**PLAIN, "weight": {"format": E4M3, "gradient": "clipped"}}),
    (ALL_MX, {**ALL_MX, "operands": "shared"}),
    (ALL_MX, {**ALL_MX, "forward": {"accumulator": "blackwell"}}),
    (ALL_MX, {**ALL_MX, "grad_weight": {"transform": {"kind": "hadamard", "size": 16}}}),
    ({**PLAIN, "grad_output": DRAWN, "operands": "per_product"}, {**PLAIN, "grad_output": DRAWN}),
    (
        {**ALL_MX, "weight": {"format": E4M3, "scaling": EVEN}},
        {**ALL_MX, "weight": {"format": E4M3, "scaling": {**EVEN, "arithmetic": "compressed_tensors"}}},
    ),
]


@pytest.mark.parametrize("number", range(len(OTHER)))
def test_what_changes_a_bit_is_another_meaning(number: int) -> None:
    one, other = (precision_of(rule) for rule in OTHER[number])
    assert differing_slots(one, other) and not differing_slots(one, one)


SPEC = """\
project: demo
model: {kind: gpt, layers: 2, width: 32, heads: 2, context: 16, bias: false}
data: {kind: text, source: eulaw, batch_size: 2}
optimizer: {kind: adamw, lr: 1e-3}
steps: 2
"""
CAST = "{format: e4m3fn, scaling: {kind: mx, mode: rceil}}"
RULES = f"""\
- match: blocks.0.*
  weight: {CAST}
  input: {CAST}
  grad_output: {CAST}
  operands: per_product
"""
OWN = "title: mine\nsource: {authors: me, url: none}\nunproved: nothing was\nprecision:\n" + RULES


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


FILES = {
    "a run's spec": (SPEC + "precision:\n  rules:\n" + indented(RULES), None),
    "a policy": ("rules:\n" + RULES, "model"),
    "with precision": ("precision:\n  rules:\n" + indented(RULES), "model"),
    "a recipe of one's own": (OWN, "model"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_runs_policies_and_recipes(tmp_path: Path, case: str) -> None:
    text, of = FILES[case]
    (tmp_path / "p.yaml").write_text(text)
    small = model(layers=2, width=32) if of else None
    facts = express_policy(tmp_path / "p.yaml", to="torchao", model=small).facts
    assert [row["layer"] for row in facts["layers"] if row["takes"] == "mxfp8"] == [
        f"blocks.0.{name}" for name in ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    ]
    (tmp_path / "p.yaml").write_text(text.replace("mode: rceil", "mode: even"))
    with pytest.raises(
        ValueError,
        match=r"p\.yaml.*blocks\.0\.attention\.qkv: forward\.input is .*, mxfp8, has scaling\.mode: rceil",
    ):
        express_policy(tmp_path / "p.yaml", to="torchao", model=small)


def test_a_run_of_several_phases_has_no_single_policy(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SPEC + "precision: {phases: [{until: 1}, {recipe: te_mxfp8}]}\n")
    with pytest.raises(ValueError, match=r"p\.yaml:\d+:\d+: the run has several phases, and a target has one policy"):
        express_policy(tmp_path / "p.yaml", to="te")


def test_a_folder_of_transformers_gives_its_layers_and_their_other_names(tmp_path: Path) -> None:
    """Only config.json is read. Rules may call layers as a run of kind hf does."""
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "num_key_value_heads": 1,
        **sizes,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for match in ("model.layers.0.mlp.*", "model.model.layers.0.mlp.*"):
        facts = express_policy({"rules": [{"match": match, **ALL_MX}]}, to="torchao", model=tmp_path).facts
        assert [row["layer"] for row in facts["layers"] if row["takes"]] == [
            f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
        ]
    text = express_policy({"rules": [{"match": "*proj", **ALL_MX}]}, to="megatron", model=tmp_path).text
    assert megatron_config(text, "decoder.layers.1.self_attention.linear_qkv") == "mxfp8"
    with pytest.raises(ValueError, match=r"q_proj.*joins|joins it and model\.layers\.0\.self_attn\.q_proj"):
        express_policy({"rules": [{"match": "*q_proj", **ALL_MX}]}, to="megatron", model=tmp_path)
    page = " ".join((ROOT / "docs" / "POLICY.md").read_text().split())
    refused = expressed_or_said("deepseek_v3", "te", tmp_path)
    assert isinstance(refused, str) and refused in page, "docs/POLICY.md shows this refusal"
    (tmp_path / "config.json").write_text('{"architectures": ["pipeline"], "model_type": "nothing"}')
    with pytest.raises(ValueError, match="folder .*nothing"):
        express_policy("te_mxfp8", to="te", model=tmp_path)


def test_names_are_written_so_that_python_reads_them(tmp_path: Path) -> None:
    odd = "a\"b\\c'd"
    of = nn.Module()
    of.add_module(odd, nn.Linear(32, 32, bias=False))
    report = express_policy({"rules": [{"match": "*", **ALL_MX}]}, to="torchao", model=of)
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(report.text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert tables == {"LAYERS": {odd: "mxfp8"}, "LEFT": ()}
    (tmp_path / "a\n'''b.yaml").write_text("rules:\n" + RULES)
    ast.parse(express_policy(tmp_path / "a\n'''b.yaml", to="te", model=model(layers=1)).text)


def test_it_appears_whole_or_not_at_all_and_in_the_place_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "policy.py"
    report = express_policy("te_mxfp8", to="te", out=out)
    assert out.read_text() == report.text and os.listdir(out.parent) == ["policy.py"]
    with pytest.raises(ValueError, match="already exists; choose another path or delete it"):
        express_policy("te_mxfp8", to="te", out=out)
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def stopped(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stopped)
            with pytest.raises(type(error)) as caught:
                express_policy("te_mxfp8", to="te", out=out.with_name("other.py"))
        assert getattr(caught.value, "filename", None) in (None, str(out.with_name("other.py")))
        assert os.listdir(out.parent) == ["policy.py"]
    with pytest.raises(ValueError):
        express_policy("te_nvfp4", to="megatron", out=tmp_path / "refused.yaml")
    assert os.listdir(tmp_path) == ["new"] and room.TARGETS.keys() == {"torchao", "te", "megatron"}
