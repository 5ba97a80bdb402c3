"""Claims about stochastic casts of recipes: the references' draws have the law that ours have, given u.

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
from altgrad.optim.request import Request
from altgrad.optim.storage import Stochastic, Storage
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.transform import hadamard
from altgrad.recipes.book import find
from tests.recipes.vendor import FOLDER, kernels, slots

SEEN = 20
"""Draws expected of the rarer neighbour from which on a mean is all but normal."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    """The recorded tensors; what is stored as bfloat16 as float32."""
    found = load_file(FOLDER.parent / "recipes.safetensors")
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in found.items()}


class Law:
    """What stochastic rounding makes of x under a spec: mean, variance and both ends, in the units of x."""

    def __init__(self, spec: QuantizerSpec, x: Tensor) -> None:
        assert spec.rounding is Rounding.stochastic
        made = Quantizer(spec, "s").cast(x, False)
        u = made.exact.clamp(float(made.format.lowest), float(made.format.highest)).double()
        low, high = (
            bound_units(round_units(made.exact, made.format, way), made.format).double()
            for way in (Rounding.toward_negative, Rounding.toward_positive)
        )
        scale = torch.ones(()).double() if made.scale is None else made.scale.double()
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


def test_means_of_tetrajet(recorded: dict[str, Tensor]) -> None:
    """A cast drawn, and one that was rounded to nearest drawn again along the other axis, on whose grid 10 are not."""
    x, draws = recorded["tetrajet.moments.x"], int(recorded["tetrajet.moments.draws"])
    casts = slots("tetrajet")
    again = Quantizer(casts["forward.input"])(x).T.contiguous()
    for name, slot, given in (("plain", "grad_input.grad_output", x), ("double", "grad_weight.input", again)):
        mean, low, high = (recorded[f"tetrajet.moments.{name}.{what}"] for what in ("mean", "low", "high"))
        law = Law(casts[slot], given)
        if name == "double":
            mean, low, high = mean.T, low.T, high.T
        assert chance(law, mean, draws, least=10) > 1e-4, name
        ends_are_seen(law, low, high, draws)


def test_means_of_quartet(recorded: dict[str, Tensor]) -> None:
    x = recorded["quartet.moments.x"]
    turned = (x.view(-1, 32) @ hadamard(32, x.device)).view(x.shape)
    draws = int(recorded["quartet.moments.draws"])
    law = Law(slots("quartet")["grad_input.grad_output"], turned)
    assert chance(law, recorded["quartet.moments.mean"], draws) > 1e-4


@pytest.mark.parametrize("name", ["normal", "edge"])
def test_means_of_the_microscaling_patch(name: str, recorded: dict[str, Tensor]) -> None:
    draws = int(recorded["mxfp4_llm.draws"])
    law = Law(slots("mxfp4_rht")["grad_input.weight"], recorded[f"mxfp4_llm.in.{name}"])
    assert chance(law, recorded[f"mxfp4_llm.{name}.mean"], draws) > 1e-4
    ends_are_seen(law, recorded[f"mxfp4_llm.{name}.low"], recorded[f"mxfp4_llm.{name}.high"], draws)


def test_the_chi_square_sees_a_bias_of_a_hundredth_of_a_gap(recorded: dict[str, Tensor]) -> None:
    draws = int(recorded["tetrajet.moments.draws"])
    law = Law(slots("tetrajet")["grad_input.grad_output"], recorded["tetrajet.moments.x"])
    off = law.mean + 0.01 * (law.high - law.low) * (law.variance > 0)
    assert chance(law, torch.where(law.up * (1 - law.up) * draws > SEEN, off, law.mean), draws) < 1e-12


def test_means_of_jetfire() -> None:
    """A gradient, drawn in Triton's interpreter: noise in (-1/2, 1/2) is added to magnitudes before rounding."""
    found, x = kernels("jetfire"), kernels("int8")["in.normal"]
    unit = (x.abs().unflatten(0, (2, 32)).unflatten(2, (2, 32)).amax((1, 3)) / 127).half().float()
    unit = unit.repeat_interleave(32, 0).repeat_interleave(32, 1)
    law = Law(slots("jetfire")["grad_input.grad_output"], x)
    assert chance(law, found["moments.mean"] * unit, int(found["moments.draws"]), least=3_000) > 1e-4
    ends_are_seen(law, found["moments.low"] * unit, found["moments.high"] * unit, int(found["moments.draws"]))


def test_means_of_bfloat16() -> None:
    """torchao's draws of bfloat16 have the law of the storage, and the storage's own draws have the same means."""
    found = kernels("torchao_bf16")
    (storage,) = (Storage.of(each) for each in find("bf16_sr").expansion().run["storage"])
    assert isinstance(storage, Stochastic)
    spec = {"format": str(storage.format), "scaling": storage.scaling.tree(), "rounding": "stochastic"}
    law = Law(QuantizerSpec.made_from(spec), found["x"])
    draws = int(found["draws"])
    assert chance(law, found["mean"], draws, least=900) > 1e-4
    ends_are_seen(law, found["low"], found["high"], draws)
    state: dict[str, Any] = {}
    ours = 1_000
    x = found["x"].repeat(ours, 1)
    storage.adopt(x.clone(), state)
    mean = storage.land(x, state, 7, Request(1.0, [], []), "eager").double().mean(0)
    assert chance(law, mean, ours, least=500) > 1e-4
