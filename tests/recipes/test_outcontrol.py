"""TetraJet-v2's OutControl, as its recipe says it, beside its authors' definition (`linear_mix.py`) written by hand.

With S the channels of the input that were chosen, x8 and w8 these in MXFP8, x4 and w4 the others in NVFP4, and Q4 the
stochastic cast, H a Hadamard of 16 with the step's signs:

    y        = x8 w8^T + x4 w4^T                 dx = Q4(g H) Q4(H (w8 + w4))
    dW[:, S] = Q8(g)^T Q8(x8)                    dW[:, not S] = Q4(H g)^T Q4(H x4)

MXFP8 and the products (in float64) are the test's own; NVFP4 is a cast that stands alone under the site's name, whose
bits `test_casts.py` proves. A single operand that differed would move dW by a thousandth, a thousand times what is
allowed for the order of its sum.
"""

from typing import Any

import torch
from torch import Tensor, nn

from altgrad import PrecisionPolicy, commit, quantize_model
from altgrad.nn.linear import QuantizedLayer
from altgrad.quantize import Quantizer
from tests.recipes.vendor import rule

TOKENS, INPUTS, OUTPUTS = 256, 64, 48


def q8(x: Tensor) -> Tensor:
    """MXFP8 of runs of 32 along the last axis, the scale rounded up to a power of two, elements to nearest even."""
    blocks = x.double().reshape(-1, 32)
    mantissa, exponent = torch.frexp(blocks.abs().amax(1, keepdim=True) / 448)
    scale = torch.exp2((exponent - (mantissa == 0.5).int()).double())
    return ((blocks / scale).float().to(torch.float8_e4m3fn).double() * scale).reshape(x.shape)


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """Runs of 16 along the last axis times the matrix."""
    return (x.float().reshape(-1, 16) @ matrix).reshape(x.shape)


def close(found: Tensor | None, *factors: tuple[Tensor, Tensor]) -> bool:
    """Whether it is the sum of these products but for the order in which float32 adds their terms."""
    assert found is not None
    exact = sum(a.double() @ b.double() for a, b in factors)
    size = sum(a.double().abs() @ b.double().abs() for a, b in factors)
    return bool(((found - exact).abs() <= 2e-6 * size).all())


def test_outcontrol_is_its_authors() -> None:
    torch.manual_seed(1)
    said = rule("tetrajet_v2", start=1, record=2)
    model = quantize_model(nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)), PrecisionPolicy.uniform(**said))
    layer: Any = model[0]
    assert isinstance(layer, QuantizedLayer)
    x = torch.randn(TOKENS, INPUTS)
    x[:, [3, 17, 40, 41, 62, 63]] *= 30
    g = torch.randn(TOKENS, OUTPUTS) * torch.rand(OUTPUTS).exp2()
    chosen = layer.slot_casts["forward", "input"].outliers.chosen
    for _ in range(3):  # none, until a step went by and two were recorded
        assert not chosen.any()
        layer(x).backward(g)
        commit(model)
    at = chosen > 0
    assert at.nonzero().flatten().tolist() == [3, 17, 40, 41, 62, 63]

    def q4(slot: tuple[str, str], x: Tensor) -> Tensor:
        """Along the last axis, with the random bits of the fourth step."""
        spec = layer.slot_casts[slot].spec
        plain = {key: value for key, value in spec.tree().items() if key not in ("outliers", "source")}
        made = Quantizer(plain, layer.slot_casts[slot].site, layer.slot_casts[slot].role, reduced=along(slot))  # type: ignore[arg-type]
        for _ in range(3):
            made.commit()
        return made(x.float()) if made.reduced == "last" else made(x.float().T).T

    def along(slot: tuple[str, str]) -> Any:
        return layer.slot_casts[slot].reduced

    layer.zero_grad()
    w, arrived = layer.weight.detach(), x.clone().requires_grad_()
    y = layer(arrived)
    by_outputs, by_tokens = (layer.transforms[name].matrix(x, False) for name in ("grad_input", "grad_weight"))
    y.backward(g)
    x8, w8 = q8(x * at), q8(w * at)
    x4, w4 = q4(("forward", "input"), x * ~at), q4(("forward", "weight"), w * ~at)
    assert close(y, (x8, w8.T), (x4, w4.T))
    meets = q4(("grad_input", "grad_output"), turned(g, by_outputs))
    assert close(arrived.grad, (meets, q4(("grad_input", "weight"), turned((w8 + w4).T, by_outputs)).T))
    own = q8(g.T), q8(x8.T).T
    other = (
        q4(("grad_weight", "grad_output"), turned(g.T, by_tokens)),
        q4(("grad_weight", "input"), turned(x4.T, by_tokens)),
    )
    assert close(layer.weight.grad[:, at], (own[0], own[1][:, at]))
    assert close(layer.weight.grad[:, ~at], (other[0], other[1].T[:, ~at]))
    assert not close(layer.weight.grad[:, at], (other[0], turned(x8.T, by_tokens).T[:, at]))
