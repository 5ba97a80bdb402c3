"""Claims about layers whose products have an accumulator: what is added up, where scales enter, and in which graphs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, QuantizedLinear, commit, quantize_model
from altgrad.nn.accumulated import factor_of
from altgrad.nn.rule import Rule
from altgrad.quantize import Quantizer
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor, by_definition
from altgrad.quantize.engine import quickly

FP8 = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}
REAL = {"kind": "current", "scale": "real"}
CHANNEL = {"kind": "current", "granularity": "channel", "scale": "real"}
DEEPSEEK = {
    "weight": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "shape": "square", "scale": "real"}},
    "input": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "scale": "real"}},
    "grad_output": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "scale": "real"}},
    "operands": "per_product",
}


def all_of(fmt: str, scaling: Any, **more: Any) -> dict[str, Any]:
    spec = {"format": fmt, "scaling": scaling}
    return {"weight": spec, "input": spec, "grad_output": spec, **more}


RECIPES: dict[str, tuple[dict[str, Any], Any]] = {
    "tensor": (FP8, "hopper_fast"),
    "real": (all_of("e4m3fn", REAL), "hopper_promote_128"),
    "channel": (all_of("e4m3fn", CHANNEL, operands="per_product"), "ada"),
    "delayed": (all_of("e5m2", "delayed"), "blackwell"),
    "deepseek": (DEEPSEEK, "hopper_promote_128"),
    "mx": (all_of("e4m3fn", "mx", operands="per_product"), "blackwell"),
    "mxfp4": (all_of("e2m1", "mx", operands="per_product"), "blackwell_fp4"),
    "nvfp4": (all_of("e2m1", "nvfp4", operands="per_product"), "blackwell_fp4"),
    "nvfp4 rows": (all_of("e2m1", {"kind": "nvfp4", "outer": "row"}, operands="per_product"), "blackwell_fp4"),
}
PRODUCTS = ("forward", "grad_input", "grad_weight")


def with_accumulator(recipe: dict[str, Any], how: Any, products: tuple[str, ...] = PRODUCTS) -> dict[str, Any]:
    return {**recipe, **{product: {**recipe.get(product, {}), "accumulator": how} for product in products}}


def layer(recipe: dict[str, Any], inputs: int = 160, outputs: int = 144, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(1)
    policy = PrecisionPolicy.uniform(**recipe)
    made = quantize_model(nn.Sequential(nn.Linear(inputs, outputs, bias=bias)), policy, seed=0)[0]  # type: ignore[index]
    assert isinstance(made, QuantizedLinear)
    return made


def step(linear: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    linear.zero_grad()
    y = linear(x)
    y.backward(g)
    weight = linear.weight.grad
    assert x.grad is not None and isinstance(weight, Tensor)
    return y.detach(), x.grad, weight.clone()


def tensors(tokens: int = 130, inputs: int = 160, outputs: int = 144) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(tokens, inputs), torch.randn(tokens, outputs) * 1e-3


def of(x: Tensor, recipe: dict[str, Any], operand: str, how: AccumulatorSpec) -> Factor:
    """What a Quantizer alone makes of an operand that lies with the summed axis last."""
    quantizer = Quantizer(recipe[operand], reduced="last", rows=len(x))
    quantizer.scaling.keeps_outer = True
    return factor_of(quantizer.cast(x, True), quantizer.spec.scaling, how, False)


@pytest.mark.parametrize("name", RECIPES)
def test_each_product_is_that_of_its_casts_added_up_by_definition(name: str) -> None:
    recipe, word = RECIPES[name]
    how = AccumulatorSpec.model_validate(word)
    linear, (x, g) = layer(with_accumulator(recipe, word)), tensors()
    w = linear.weight.detach()
    y, dx, dw = step(linear, x, g)
    forward = by_definition(of(x, recipe, "input", how), of(w, recipe, "weight", how), how)
    assert torch.equal(y, forward + linear.bias.detach())
    back = by_definition(of(g, recipe, "grad_output", how), of(w.T, recipe, "weight", how), how)
    assert torch.equal(dx, back)
    turned = by_definition(of(g.T, recipe, "grad_output", how), of(x.T, recipe, "input", how), how)
    assert torch.equal(dw, turned)


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_product_of_the_values_but_for_the_sums(name: str) -> None:
    """So the scales are where they belong, in every product: the error is that of 13 bits, or of 23."""
    recipe, word = RECIPES[name]
    plain, adding = layer(recipe), layer(with_accumulator(recipe, word))
    bits = AccumulatorSpec.model_validate(word).result_bits
    for a, b in zip(step(plain, *tensors()), step(adding, *tensors()), strict=True):
        error = float((a - b).square().mean().sqrt() / a.square().mean().sqrt())
        assert (0 < error < 2.0**-11) if bits == 13 else error < 2.0**-20


def test_only_the_products_that_have_one_differ() -> None:
    plain = step(layer(FP8), *tensors())
    for number, product in enumerate(PRODUCTS):
        found = step(layer(with_accumulator(FP8, "hopper_fast", (product,))), *tensors())
        assert [torch.equal(a, b) for a, b in zip(plain, found, strict=True)] == [n != number for n in range(3)]


def test_without_one_nothing_is_said_and_nothing_changes() -> None:
    rule = Rule.made_from({"match": "*", **FP8})
    assert rule == Rule.made_from(with_accumulator({"match": "*", **FP8}, "float32"))
    assert "accumulator" not in str(rule.tree()) and rule.layer().accumulators == {}
    bits = Rule.made_from(with_accumulator({"match": "*", **FP8}, {"bits": 9}))
    assert bits.layer().accumulators["forward"].bits == 9
    own = Rule.made_from(with_accumulator({"match": "*", **FP8}, "hopper_fast"))
    assert own.tree()["forward"]["accumulator"] == {"instruction": "hopper_fast"} and Rule.made_from(own.tree()) == own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_short_layer_rounds_the_sum_once(dtype: torch.dtype) -> None:
    linear = layer(with_accumulator(FP8, "hopper_fast"), bias=False)
    x, g = (each.to(dtype) for each in tensors())
    y, dx, dw = step(linear.to(dtype), x, g)
    how = AccumulatorSpec.model_validate("hopper_fast")
    factors = [of(each, FP8, name, how) for each, name in ((x, "input"), (linear.weight.detach(), "weight"))]
    assert torch.equal(y, by_definition(*factors, how).to(dtype)) and dx.dtype == dw.dtype == dtype


def test_estimators_and_transforms_go_with_it() -> None:
    clipped = {"format": "e4m3fn", "scaling": {"kind": "fixed", "value": 2.0**-8}, "gradient": "clipped"}
    turning = {"transform": {"kind": "hadamard", "size": 16}}
    recipe = {"weight": clipped, "input": clipped, "grad_output": "e4m3fn", "forward": turning}
    for a, b in zip(
        step(layer(recipe), *tensors()), step(layer(with_accumulator(recipe, "blackwell")), *tensors()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert torch.equal(a == 0, b == 0)


def test_a_weight_that_lies_turned_gives_the_same() -> None:
    from transformers.pytorch_utils import Conv1D

    x, g = tensors()
    linear = layer(with_accumulator(DEEPSEEK, "hopper_promote_128"))
    conv = Conv1D(144, 160)
    conv.weight.data, conv.bias.data = linear.weight.detach().T.clone(), linear.bias.detach().clone()
    policy = PrecisionPolicy.uniform(**with_accumulator(DEEPSEEK, "hopper_promote_128"))
    turned = quantize_model(nn.Sequential(conv), policy, seed=0)[0]  # type: ignore[index]
    y, dx, dw = step(linear, x, g)
    y2, dx2, dw2 = step(turned, x, g)
    assert torch.equal(y, y2) and torch.equal(dx, dx2) and torch.equal(dw, dw2.T)


@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    ("name", "backend"),
    [("tensor", "eager")] + [pytest.param(name, "inductor", marks=pytest.mark.long) for name in RECIPES],
)
def test_compiled_the_layer_is_one_graph_with_the_same_bits(name: str, backend: str) -> None:
    torch._dynamo.reset()
    recipe, word = RECIPES[name]
    eager = layer(with_accumulator(recipe, word), bias=False)
    compiled = copy.deepcopy(eager)
    options = {"options": quickly()} if backend == "inductor" else {}
    run = torch.compile(compiled, backend=backend, fullgraph=True, **options)
    x, g = tensors()
    for _ in range(2):
        y, dx, dw = step(eager, x, g)
        x2 = x.clone().requires_grad_()
        compiled.zero_grad()
        found = run(x2)
        found.backward(g)
        assert torch.equal(y, found) and torch.equal(dx, x2.grad) and torch.equal(dw, compiled.weight.grad)
        for each in (eager, compiled):
            commit(each)
        x, g = x * 1.5, g * 0.7


BAD: dict[str, tuple[dict[str, Any], Any, str]] = {
    "format": (
        all_of("e3m4", "current"), "hopper_fast",
        "accumulator: hopper_fast takes e4m3fn, e5m2, and forward.input is e3m4; cast it to one of these, or give an "
        "accumulator by its bits.",
    ),
    "uncast": (
        {"weight": "e4m3fn"}, "hopper_fast",
        "forward.accumulator: hopper_fast adds up terms of cast operands, and forward.input is not cast; cast it, or "
        "leave out forward.accumulator.",
    ),
    "blocks": (
        DEEPSEEK, "hopper_fast",
        "forward.input has a scale for every 128 terms of the sum, and accumulator: hopper_fast takes no scales of "
        "these blocks; use a promote that divides 128, or an instruction that takes such scales.",
    ),
    "mx": (
        all_of("e4m3fn", "mx", operands="per_product"), "hopper_promote_128",
        "forward.input has a scale for every 32 terms of the sum, and accumulator: hopper_promote_128 is promoted "
        "every 128; use a promote that divides 32, or an instruction that takes such scales.",
    ),
    "shared": (
        all_of("e4m3fn", "mx"), "blackwell",
        "grad_input.weight shares its cast with another product, along whose sum the scales lie, so that here they "
        "change from term to term; use operands: per_product.",
    ),
    "outliers": (
        {**FP8, "input": {"format": "e4m3fn", "outliers": "columns"}}, "hopper_fast",
        "forward.input carries outliers apart, in another format, and accumulator: hopper_fast adds terms of one; "
        "leave out outliers, or the accumulator.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name: str) -> None:
    recipe, how, told = BAD[name]
    with pytest.raises(ValueError) as caught:
        PrecisionPolicy.uniform(**with_accumulator(recipe, how))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_names_the_accumulator() -> None:
    precision = Rule.made_from(with_accumulator({"match": "*", **FP8}, "hopper_fast", ("forward",))).layer()
    assert precision.text(("forward", "input")) == "e4m3fn current added in hopper_fast"
    assert Digits.of(Quantizer("e5m2").spec.format) == (2, -14, 15)
