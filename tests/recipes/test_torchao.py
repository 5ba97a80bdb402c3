"""Claims about torchao's recipes: operands and products of a whole layer are those of its own emulation.

By the same library products are the same bits; the bounds leave room for another BLAS.
"""

import pytest
import torch

from altgrad.quantize import Quantizer
from tests.recipes.vendor import DTYPES, Step, data, e2m1, e4m3, kernels, rule, slots, without_draws

FLOAT8 = {
    "torchao_tensorwise": "tensorwise",
    "torchao_rowwise": "rowwise",
    "torchao_rowwise_gw_hp": "rowwise_with_gw_hp",
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", FLOAT8)
def test_float8(name: str, dtype: str) -> None:
    """Not one operand differs."""
    found = data("torchao_float8_linear")
    x, w, dy = (found[f"normal.{dtype}.{each}"] for each in ("x", "w", "dy"))
    step, of = Step(rule(name), x, w, dy, DTYPES[dtype]), f"normal.{dtype}.{FLOAT8[name]}"
    step.compare(*(found[f"{of}.{each}"] for each in ("y", "dx", "dw")), steps=2)
    compared = 0
    for slot, operand in step.slots.items():
        key = f"{of}.{slot.replace('weight', 'weight_t') if slot.endswith('.weight') else slot}"
        key = key.replace("grad_weight_t", "grad_weight")
        if f"{key}.codes" in found:
            e5m2 = name == "torchao_tensorwise" and slot.endswith("grad_output")
            codes = found[f"{key}.codes"].view(torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn).float()
            assert torch.equal(operand.T if slot.endswith(".weight") else operand, codes / found[f"{key}.scale"]), slot
            compared += 1
    assert compared == len(slots(name))


@pytest.mark.parametrize(
    ("case", "weight_gradient"),
    [("f32.floor", "same"), ("f32.floor", "none"), ("f32.rceil", "none"), ("bf16.rceil", "same")],
)
def test_mxfp8(case: str, weight_gradient: str) -> None:
    found = data("torchao_mx_fp8")
    dtype, _, mode = case.partition(".")
    casts = rule("torchao_mxfp8", mode=mode, weight_gradient=weight_gradient)
    step = Step(casts, *(found[f"linear.{dtype}.{each}"] for each in ("x", "w", "dy")), DTYPES[dtype])
    of = f"linear.{case}{'.wgrad_hp' * (weight_gradient == 'none')}"
    step.compare(*(found[f"{of}.{each}"] for each in ("y", "dx", "dw")), steps=2)


def test_nvfp4() -> None:
    """Its experts, which have one level of scales, no squares, no transform and no draws: two of 32 tokens."""
    found = data("torchao_nvfp4")
    casts = without_draws(rule("torchao_nvfp4", outer="none", arithmetic="torchao")) | {"grad_weight": {}}
    casts["weight"]["scaling"].pop("shape")
    for expert in range(2):
        its = slice(32 * expert, 32 * expert + 32)
        x, w, dy = found["grouped.x"][its], found["grouped.w"][expert], found["grouped.dy"][its]
        step = Step(casts, x, w, dy, torch.bfloat16)
        step.compare(found["grouped.y"][its], None, found["grouped.dw"][expert], steps=1)


@pytest.mark.parametrize("name", ["normal", "lognormal", "t2", "edge", "extreme"])
def test_nvfp4_kernels(name: str) -> None:
    """The Triton kernels of its training layer, run in Triton's interpreter: codes, scales and values of both shapes.

    An operand's value is (code . block scale) . tensor scale, as its product applies them.
    """
    found, casts = kernels("torchao_nvfp4_training"), slots("torchao_nvfp4")
    x = found[f"in.{name}"]
    for shape, its_slots in (
        ("square", ("forward.weight", "grad_input.weight")),
        ("run", ("forward.input", "grad_weight.input", "grad_input.grad_output", "grad_weight.grad_output")),
    ):
        codes, scale = e2m1(found[f"{shape}.{name}.codes"]), e4m3(found[f"{shape}.{name}.scale"])
        whole = scale.repeat_interleave(len(x) // len(scale), 0).repeat_interleave(16, 1)
        expected = codes * whole * (found[f"{shape}.{name}.amax"] / 2688)
        for slot in its_slots:
            made = Quantizer(without_draws(casts[slot].tree()))  # type: ignore[arg-type]
            found_scale = made.find_scale(x)
            assert found_scale is not None and found_scale.inner is not None
            assert torch.equal(found_scale.inner.view(scale.shape), scale), slot
            assert torch.equal(made.values(x, False, torch.float32), expected), slot


@pytest.mark.parametrize("weight_gradient", ["same", "none"])
def test_int8(weight_gradient: str) -> None:
    """The reference adds integers and scales the sum."""
    found, name = data("torchao_int8"), "all" if weight_gradient == "same" else "gw_hp"
    casts = rule("torchao_int8", weight_gradient=weight_gradient)
    step = Step(casts, *(found[f"linear.f32.{each}"] for each in ("x", "w", "dy")), torch.float32)
    step.compare(*(found[f"linear.f32.{name}.{each}"] for each in ("y", "dx", "dw")), steps=4)


@pytest.mark.parametrize("weight_gradient", ["same", "none"])
def test_int8_in_bfloat16_has_scales_in_bfloat16(weight_gradient: str) -> None:
    """The recipe's casts with the scales that the reference has there."""
    found, name = data("torchao_int8"), "all" if weight_gradient == "same" else "gw_hp"
    x, w, dy = (found[f"linear.bf16.{each}"] for each in ("x", "w", "dy"))
    casts = rule("torchao_int8", weight_gradient=weight_gradient, scale="bf16")
    step = Step(casts, x, w, dy, torch.bfloat16)
    step.compare(*(found[f"linear.bf16.{name}.{each}"] for each in ("y", "dx", "dw")), steps=4)
