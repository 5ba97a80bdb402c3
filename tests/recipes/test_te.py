"""Claims about Transformer Engine's recipes: operands of a whole layer have the bits of its own reference code.

Products are sums of exact terms that a BLAS adds in an order of its own, and are compared within that.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from altgrad.quantize import Quantizer
from tests.recipes.vendor import DTYPES, FOLDER, Step, data, e2m1, e4m3, rule, slots, without_draws


def linear_of_current_scaling() -> tuple[list[Tensor], list[Tensor]]:
    """What went into the recorded layer, and y, dx and dW; the reference keeps dW in float32."""
    found = data("te_float8_tensor")
    y, dx, dw = (found[f"linear.bf16.{name}"] for name in ("y", "dx", "dw"))
    return [found[f"linear.bf16.{name}"] for name in ("x", "w", "dy")], [y, dx, dw.bfloat16().float()]


def test_current_scaling() -> None:
    """Products of operands that bfloat16 does not hold, rounded once."""
    given, products = linear_of_current_scaling()
    Step(rule("te_current"), *given, torch.bfloat16).compare(*products, steps=0.5)


def test_delayed_scaling() -> None:
    """After a step whose amaxes are those of the tensors, scales are the reference's: the layer is the recorded one.

    The steps before decide, not the tensor itself: with a history of two the amaxes of two steps ago are still there.
    """
    given, products = linear_of_current_scaling()
    step = Step(rule("te_delayed"), *given, torch.bfloat16)
    step.compare(*products, steps=0.5)
    x = given[0]
    cast = Quantizer(slots("te_delayed", history=2)["forward.input"])
    whole = cast(x)
    cast.commit()
    assert torch.equal(cast(x / 64), Quantizer(slots("te_current")["forward.input"])(torch.cat((x, x / 64)))[len(x) :])
    cast.commit()
    assert torch.equal(cast(x), whole)
    cast.commit()
    assert torch.equal(cast(x), whole) and not torch.equal(
        Quantizer(slots("te_current")["forward.input"])(x / 64), whole
    )


def decoded(found: dict[str, Tensor], of: str) -> Tensor:
    values, scales = e4m3(found[f"{of}.codes"]), found[f"{of}.scale_inv"]
    rows = 1 if len(scales) == len(values) else 128
    return values * scales.repeat_interleave(rows, 0).repeat_interleave(128, 1)[:, : values.shape[1]]


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
def test_block_scaling(scale: str) -> None:
    found, name = data("te_float8_block"), "pow2" if scale == "power_of_two" else "real"
    casts = rule("te_block", scale=scale)
    step = Step(casts, found["in.normal"], found["in.normal"], found["in.lognormal"], torch.float32)
    x, w = decoded(found, f"run128.e4m3fn.{name}.normal"), decoded(found, f"square128.e4m3fn.{name}.normal")
    assert torch.equal(step.slots["forward.input"], x)
    assert torch.equal(step.slots["forward.weight"], w) and torch.equal(step.slots["grad_input.weight"], w)
    dy = decoded(found, f"run128.e4m3fn.{name}.lognormal")
    assert torch.equal(step.slots["grad_input.grad_output"], dy)
    step.compare(x @ w.T, dy @ w, None, steps=4)
    x = found["in.ragged_bf16"]
    ragged = Step(casts, x, torch.ones(8, x.shape[1]), torch.ones(len(x), 8), torch.bfloat16)
    assert torch.equal(ragged.slots["forward.input"], decoded(found, f"run128.e4m3fn.{name}.ragged_bf16"))
    turned = decoded(found, f"run128.e4m3fn.{name}.ragged_bf16.transposed")
    assert torch.equal(ragged.slots["grad_weight.input"].T, turned)


def test_mxfp8() -> None:
    """Scales are Transformer Engine's code by code. No layer of its own is recorded; torchao's has the same rule."""
    found = load_file(FOLDER.parent / "recipes.safetensors")
    amax, codes = (found[f"te_mxfp8_square.e8m0.{what}"] for what in ("amax", "code"))
    spec = slots("te_mxfp8")["forward.input"]
    alone = spec.scaling.tree() | {"size": 1}
    ours = Quantizer({"format": str(spec.format), "scaling": alone}).find_scale(amax[:, None])  # type: ignore[arg-type]
    assert ours is not None
    assert len(codes) > 2_000 and torch.equal(ours.entries.view(-1), codes.view(torch.float8_e8m0fnu).float())
    found = data("torchao_mx_fp8")
    for case in ("f32", "bf16"):
        step = Step(rule("te_mxfp8"), *(found[f"linear.{case}.{name}"] for name in ("x", "w", "dy")), DTYPES[case])
        step.compare(*(found.get(f"linear.{case}.rceil.{name}") for name in ("y", "dx", "dw")), steps=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["normal.f32", "t2.f32", "normal.bf16"])
def test_nvfp4(case: str) -> None:
    """Of 33,000 operand values none differs; with a bfloat16 input the turned values are rounded to bfloat16 first.

    Stochastic rounding is off, as in the recording.
    """
    found, dtype = data("te_nvfp4_linear"), DTYPES[case.partition(".")[2]]
    casts: dict[str, Any] = rule("te_nvfp4", transform_dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    step = Step(without_draws(casts), *(found[f"{case}.{name}"] for name in ("x", "w", "dy")), dtype)
    for slot, name in {
        "forward.input": "x.row", "grad_weight.input": "x.col", "forward.weight": "w.row", "grad_input.weight": "w.col",
        "grad_input.grad_output": "dy.row", "grad_weight.grad_output": "dy.col",
    }.items():  # fmt: skip
        of = f"{case}.rht_square.{name}"
        codes, scale = e2m1(found[f"{of}.codes"]), e4m3(found[f"{of}.scale"])
        expected = codes * scale.repeat_interleave(16, -1)[:, : codes.shape[1]] * (found[f"{of}.amax"] / 2688)
        operand = step.slots[slot]
        assert torch.equal(operand.T if name.endswith("col") else operand, expected), slot
    step.compare(*(found[f"{case}.rht_square.{name}"] for name in ("y", "dx", "dw")), steps=4)


@pytest.mark.parametrize("case", ["normal.f32", "t2.f32", "normal.bf16"])
def test_nvfp4_with_inputs_by_rows(case: str) -> None:
    """Recorded without the transform and with weights in runs."""
    found = data("te_nvfp4_linear")
    casts = without_draws(rule("te_nvfp4", input_outer="row")) | {"grad_weight": {}}
    casts["weight"]["scaling"].pop("shape")
    step = Step(casts, *(found[f"{case}.{name}"] for name in ("x", "w", "dy")), DTYPES[case.partition(".")[2]])
    step.compare(*(found[f"{case}.row_scaled.{name}"] for name in ("y", "dx", "dw")), steps=4)


def test_nvfp4_draws_between_the_neighbours_that_its_scales_give() -> None:
    """Of a gradient: scales and units do not depend on the rounding, and each draw is one of two neighbours."""
    x = data("te_nvfp4_linear")["normal.f32.dy"]
    drawn = Quantizer(slots("te_nvfp4")["grad_input.grad_output"], "s").cast(x, True)
    plain = Quantizer(slots("te_nvfp4")["forward.input"]).cast(x, False)
    assert drawn.scale is not None and plain.scale is not None and torch.equal(drawn.scale, plain.scale)
    assert torch.equal(drawn.exact, plain.exact)
    grid = torch.tensor([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])
    place = torch.bucketize(plain.exact.clamp(-6, 6), grid, right=True).clamp(max=len(grid) - 1)
    below, above = grid[place - 1], grid[place]
    assert bool(((drawn.rounded == below) | (drawn.rounded == above)).all())
    assert bool((drawn.rounded != plain.rounded).any())
