"""Claims about INT8 recipes: codes are those of their Triton kernels, run in Triton's interpreter.

`llrint`, which the interpreter lacks, was replaced by rounding to the nearest even integer there.
"""

import pytest
import torch

from altgrad.quantize import Quantizer
from tests.recipes.vendor import Step, kernels, rule, slots, without_draws

INPUTS = ("normal", "lognormal", "t2", "edge")


@pytest.mark.parametrize("name", INPUTS)
def test_jetfire(name: str) -> None:
    """Blocks of 32 x 32: no code, scale or value differs; elements meet the scale before it is rounded to FP16."""
    found, x = kernels("jetfire"), kernels("int8")[f"in.{name}"]
    for slot, spec in slots("jetfire").items():
        made = Quantizer(without_draws(spec.tree()))  # type: ignore[arg-type]
        scale = made.find_scale(x)
        codes = found[f"{name}.codes"].float()
        assert torch.equal(made.cast(x, False).rounded, codes), slot
        assert scale is not None
        assert torch.equal(scale.entries.view(2, 2), found[f"{name}.scale"].float())
        whole = found[f"{name}.scale"].float().repeat_interleave(32, 0).repeat_interleave(32, 1)
        assert torch.equal(made.values(x, False, torch.float32), codes * whole), slot
    step = Step(without_draws(rule("jetfire")), x, x, x, torch.float32)
    assert torch.equal(step.slots["forward.weight"], step.slots["grad_input.weight"])
    assert torch.equal(step.slots["forward.input"], step.slots["grad_weight.input"])


@pytest.mark.parametrize("name", INPUTS)
def test_switchback(name: str) -> None:
    """Rows of inputs and gradients, the whole weight; the weight gradient's product is uncast."""
    found, x = kernels("switchback"), kernels("int8")[f"in.{name}"]
    casts = slots("switchback")
    assert casts.keys() == {"forward.input", "forward.weight", "grad_input.grad_output", "grad_input.weight"}
    for slot, spec in casts.items():
        codes = found[f"{'tensor' if slot.endswith('weight') else 'row'}.{name}.codes"]
        assert torch.equal(Quantizer(spec).cast(x, False).rounded * 128, codes.float()), slot
    step = Step(rule("switchback"), x, x, x, torch.float32)
    rows, whole = (found[f"{part}.{name}.codes"].float() for part in ("row", "tensor"))
    amax = x.abs().amax(1, keepdim=True).double()
    y = (rows.double() @ whole.double().T) * amax * x.abs().max() / 127**2
    step.compare(y.float(), None, x.T @ x, steps=8)
