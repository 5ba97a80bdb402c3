"""Claims about recorded recipes that are no row of `bench.reference_words`: stochastic casts, learned steps, codes.

Of a stochastic cast the reference's means over many draws are recorded. Given u it is exact: an element goes up iff
u < t - lo, so its mean is x, and its variance (x - lo)(hi - x). The sum of squared z is a chi-square for each file.
"""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.quantize import Quantizer
from altgrad.quantize.block import MxSpec
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.transform import hadamard
from tests.nn.test_vendor_linears import FOLDER, scaled

SEEN = 20
"""Draws expected of the rarer neighbour from which on a mean is all but normal."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    """The recorded tensors; what is stored as bfloat16 as float32."""
    found = load_file(FOLDER.parent / "recipes.safetensors")
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in found.items()}


class Law:
    """What stochastic rounding makes of x under a spec: mean, variance and both ends, in the units of x."""

    def __init__(self, spec: dict[str, Any], x: Tensor) -> None:
        made = Quantizer(spec, "s").cast(x, False)  # type: ignore[arg-type]
        assert made.scale is not None
        u = made.exact.clamp(float(made.format.lowest), float(made.format.highest)).double()
        low, high = (
            bound_units(round_units(made.exact, made.format, way), made.format).double()
            for way in (Rounding.toward_negative, Rounding.toward_positive)
        )
        scale = made.scale.double()
        self.mean, self.low, self.high = u * scale, low * scale, high * scale
        self.up = torch.where(high > low, (u - low) / torch.where(high > low, high - low, 1.0), 0.0)
        self.variance = (u - low) * (high - u) * scale**2


def chance(law: Law, mean: Tensor, draws: int, least: int = 100) -> float:
    """The p-value of the recorded means, at least so many. Those that are fixed, or nearly, are right but for a few
    draws: a noise next to a half moves even a grid value, in TetraJet's code once in 10^7 draws."""
    rarer = torch.minimum(law.up, 1 - law.up) * draws
    seen = rarer > SEEN
    assert int(seen.sum()) >= least
    error = (mean.double() - law.mean)[seen]
    few = 4 * SEEN * (law.high - law.low) + 4 * law.mean.abs()
    assert bool(((mean.double() - law.mean).abs() <= few / draws)[~seen].all())
    return float(stats.chi2.sf(float((error**2 / (law.variance[seen] / draws)).sum()), int(seen.sum())))


def ends_are_seen(law: Law, low: Tensor, high: Tensor, draws: int) -> None:
    """The least and the largest of all draws are the two neighbours."""
    seen = torch.minimum(law.up, 1 - law.up) * draws > SEEN
    for found, expected in ((low, law.low), (high, law.high)):
        torch.testing.assert_close(found.double()[seen], expected[seen], rtol=3e-7, atol=0)


TETRAJET = scaled("e2m1", "mx", mode="rceil", floor=1e-8)
THREE_QUARTERS = scaled("e2m1", "mx", prescale=0.75)


def test_tetrajets_means_are_those_of_the_law(recorded: dict[str, Tensor]) -> None:
    """A cast drawn, and one that was rounded to nearest drawn again along the other axis, on whose grid 10 are not."""
    x, draws = recorded["tetrajet.moments.x"], int(recorded["tetrajet.moments.draws"])
    again = Quantizer(TETRAJET)(x).T.contiguous()  # type: ignore[arg-type]
    for name, given in (("plain", x), ("double", again)):
        mean, low, high = (recorded[f"tetrajet.moments.{name}.{what}"] for what in ("mean", "low", "high"))
        law = Law(TETRAJET, given)
        if name == "double":
            mean, low, high = mean.T, low.T, high.T
        assert chance(law, mean, draws, least=10) > 1e-4, name
        ends_are_seen(law, low, high, draws)


def test_quartets_means_are_those_of_the_law(recorded: dict[str, Tensor]) -> None:
    x = recorded["quartet.moments.x"]
    turned = (x.view(-1, 32) @ hadamard(32, x.device)).view(x.shape)
    draws = int(recorded["quartet.moments.draws"])
    assert chance(Law(THREE_QUARTERS, turned), recorded["quartet.moments.mean"], draws) > 1e-4


@pytest.mark.parametrize("name", ["normal", "edge"])
def test_means_of_the_microscaling_patch_are_those_of_the_law(name: str, recorded: dict[str, Tensor]) -> None:
    draws = int(recorded["mxfp4_llm.draws"])
    law = Law({**THREE_QUARTERS, "scaling": {**THREE_QUARTERS["scaling"], "arithmetic": "reciprocal"}},
              recorded[f"mxfp4_llm.in.{name}"])  # fmt: skip
    assert chance(law, recorded[f"mxfp4_llm.{name}.mean"], draws) > 1e-4
    ends_are_seen(law, recorded[f"mxfp4_llm.{name}.low"], recorded[f"mxfp4_llm.{name}.high"], draws)


def test_the_chi_square_sees_a_bias_of_a_hundredth_of_a_gap(recorded: dict[str, Tensor]) -> None:
    law, draws = Law(TETRAJET, recorded["tetrajet.moments.x"]), int(recorded["tetrajet.moments.draws"])
    off = law.mean + 0.01 * (law.high - law.low) * (law.variance > 0)
    assert chance(law, torch.where(law.up * (1 - law.up) * draws > SEEN, off, law.mean), draws) < 1e-12


LEVELS = {
    0: "[-0.6666666865348816, 0, 0.6666666865348816]", 1: "[-1, 1]", 2: "[-0.75, -0.25, 0.25, 0.75]",
    3: "[-4, -3, -2, -1, 0, 1, 2, 3]", 4: "int4",
}  # fmt: skip


@pytest.mark.parametrize("bits", LEVELS)
def test_paretoqs_weights_are_a_table_under_a_fixed_scale_with_the_gradient_clipped(
    bits: int, recorded: dict[str, Tensor]
) -> None:
    """Its step, which is learned, is given; rows one by one, since a fixed scale is one number. Of the stretched levels
    (0 and 2 bits) the gradient is cut off at 0.99 of the step, and ours beyond the largest level."""
    w, dy = recorded["paretoq.w"], recorded["paretoq.dy"]
    for part in ("layer", "row"):
        found = {what: recorded[f"paretoq.bits{bits}.{part}.{what}"] for what in ("out", "dw", "step")}
        for row in range(len(w)) if part == "row" else [slice(None)]:
            step = float(found["step"].flatten()[row if part == "row" else 0])
            x = w[row].clone().requires_grad_()
            spec = {**scaled(LEVELS[bits], "fixed", value=step), "gradient": "clipped"}
            y = Quantizer(spec)(x)  # type: ignore[arg-type]
            y.backward(dy[row])
            torch.testing.assert_close(y, found["out"][row], rtol=2e-7, atol=0)
            assert x.grad is not None and (bits in (0, 2) or torch.equal(x.grad, found["dw"][row]))


def test_codes_of_e8m0_are_transformer_engines(recorded: dict[str, Tensor]) -> None:
    amax, codes = (recorded[f"te_mxfp8_square.e8m0.{what}"] for what in ("amax", "code"))
    ours = MxSpec(mode="rceil", size=1).build(Quantizer("e4m3fn").spec.format, None).scale(amax[:, None], live=False)
    theirs = codes.view(torch.float8_e8m0fnu).float()
    assert len(codes) > 2_000 and ours is not None and torch.equal(ours.view(-1), theirs)


@pytest.mark.parametrize("name", ["normal", "t2", "edge"])
def test_eden_with_real_scales_is_quartet_twos(name: str, recorded: dict[str, Tensor]) -> None:
    """The class as a whole: turned, cast and corrected. Its kernel and ours add in another order."""
    x = load_file(FOLDER / "quartet2.safetensors")[f"eden.{name}.transformed"].float()
    spec = {**scaled("e2m1", "block", scale="real", size=16, target=1 / 0.93), "correction": "eden"}
    y = Quantizer(spec, run=32)(x)  # type: ignore[arg-type]
    torch.testing.assert_close(y, recorded[f"quartet2.eden_real_scale.{name}.out"], rtol=1e-6, atol=0)
