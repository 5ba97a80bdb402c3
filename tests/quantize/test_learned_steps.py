"""Claims about ParetoQ's recorded weights, which are no recipe here: their step is learned."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from altgrad.quantize import Quantizer

RECORDED = Path(__file__).parents[1] / "references" / "recipes.safetensors"
LEVELS = {
    0: "[-0.6666666865348816, 0, 0.6666666865348816]", 1: "[-1, 1]", 2: "[-0.75, -0.25, 0.25, 0.75]",
    3: "[-4, -3, -2, -1, 0, 1, 2, 3]", 4: "int4",
}  # fmt: skip


@pytest.mark.parametrize("bits", LEVELS)
def test_paretoqs_weights_are_a_table_under_a_fixed_scale_with_the_gradient_clipped(
    bits: int,
) -> None:
    """Its step, which is learned, is given; rows one by one, since a fixed scale is one number. Of the stretched levels
    (0 and 2 bits) the gradient is cut off at 0.99 of the step, and ours beyond the largest level."""
    recorded = {key: value.float() for key, value in load_file(RECORDED).items() if key.startswith("paretoq")}
    w, dy = recorded["paretoq.w"], recorded["paretoq.dy"]
    for part in ("layer", "row"):
        found = {what: recorded[f"paretoq.bits{bits}.{part}.{what}"] for what in ("out", "dw", "step")}
        for row in range(len(w)) if part == "row" else [slice(None)]:
            step = float(found["step"].flatten()[row if part == "row" else 0])
            x = w[row].clone().requires_grad_()
            spec = {"format": LEVELS[bits], "scaling": {"kind": "fixed", "value": step}, "gradient": "clipped"}
            y = Quantizer(spec)(x)  # type: ignore[arg-type]
            y.backward(dy[row])
            torch.testing.assert_close(y, found["out"][row], rtol=2e-7, atol=0)
            assert x.grad is not None and (bits in (0, 2) or torch.equal(x.grad, found["dw"][row]))
