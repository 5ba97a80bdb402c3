"""Claims about eden: a run keeps its length along itself, in the mean, through the scales of its blocks."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.grid import round_units
from altgrad.quantize.transform import HadamardSpec
from altgrad.spec import SpecError
from tests.recipes.vendor import data, scaled, slots


def recipe(**more: Any) -> dict[str, Any]:
    """MS-EDEN's cast: nearest, to a range that ends at 5.93, under a bound a little below the middle of e4m3fn."""
    return {**slots("quartet2")["grad_weight.grad_output"].tree(), **more}


def made(run: int = 32, site: str = "m/input", **more: Any) -> Quantizer:
    return Quantizer(recipe(**more), site, run=run)  # type: ignore[arg-type]


def test_corrected_scales_are_drawn_between_their_neighbours_with_the_recorded_moments() -> None:
    """The references' 100,000 draws of every scale have the mean and the ends of the law of stochastic rounding."""
    found, fmt = data("quartet2"), FloatFormat.parse("e4m3fn")
    wanted = found["moments.corrected_scale"].flatten()
    low, high = (round_units(wanted, fmt, mode) for mode in (Rounding.toward_zero, Rounding.toward_positive))
    assert torch.equal(found["moments.scale_low"].flatten(), low)
    assert torch.equal(found["moments.scale_high"].flatten(), high)
    variance = (wanted - low) * (high - wanted) / int(found["moments.draws"])
    z = (found["moments.scale_mean"].flatten() - wanted) / variance.sqrt()
    assert stats.chi2.sf(float((z**2).sum()), len(z)) > 1e-4


def test_a_run_has_its_own_length_along_itself_in_the_mean() -> None:
    """With real scales <x, Q(x)> = <x, x> in every draw; with scales of a format in the mean, in grid units."""
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))

    def along(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b.double()).view(16, 2, 32).sum(-1)

    spec = {**scaled("e2m1", "block", scale="real", size=32), "correction": "eden"}
    torch.testing.assert_close(along(x, Quantizer(spec, run=32)(x)), along(x, x), rtol=1e-6, atol=0)  # type: ignore[arg-type]
    plain = Quantizer(recipe(correction="none")).cast(x, False)  # type: ignore[arg-type]
    assert plain.scale is not None
    drawn, counted = made(), x / plain.scale**2
    ratios = torch.stack([along(counted, drawn(x)) for _ in range(300)]) / along(counted, x)
    z = (ratios.mean(0) - 1) / (ratios.var(0) / 300).sqrt()
    assert float(ratios.var(0).min()) > 0 and stats.chi2.sf(float((z**2).sum()), z.numel()) > 1e-4


CASES: dict[str, dict[str, Any]] = {
    "eden": recipe(),
    "eden_100": recipe(),
    "stochastic": recipe(correction="none", rounding="stochastic"),
    "nearest": recipe(correction="none"),
}
for _case in ("eden_100", "stochastic", "nearest"):  # to the range's end, as the reference has it under no override
    CASES[_case] = {**CASES[_case], "scaling": {**CASES[_case]["scaling"], "target": 16 / 17}}


@pytest.mark.parametrize("case", ["eden", *(pytest.param(name, marks=pytest.mark.long) for name in list(CASES)[1:])])
def test_under_fresh_signs_it_is_unbiased_at_less_than_half_the_error_of_stochastic_rounding(case: str) -> None:
    """As recorded, and what it is compared with: 20,000 draws there, 500 here, of turning, casting and turning back."""
    found, draws = data("quartet2_statistics"), 500
    x = found["x"]
    turn = HadamardSpec(size=32, signs="call").build("m/grad_weight", 3)
    cast = Quantizer(CASES[case], "m/input.grad_weight", run=32)  # type: ignore[arg-type]

    def drawn() -> Tensor:
        matrix = turn.matrix(x, True)
        return turn.turn_back(cast(turn.turn(x, matrix)), matrix).detach()

    samples = torch.stack([drawn() for _ in range(draws)])
    error = float(((samples - x) ** 2).sum((1, 2)).mean() / (x**2).sum())
    assert error == pytest.approx(float(found[f"{case}.relative_error"]), rel=0.03)
    variance = samples.var(0) / draws + found[f"{case}.var"] / int(found["draws"])
    z = (samples.mean(0) - found[f"{case}.mean"]) / variance.sqrt()
    assert stats.chi2.sf(float((z**2).sum()), z.numel()) > 1e-4


def test_the_bias_for_a_two_sparse_run_is_percents() -> None:
    """Signs of a Hadamard matrix are no uniform rotation: of (1, 1/4, 0, ...) the second entry comes back off."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1] = 1.0, 0.25
    turn, cast = HadamardSpec(size=32, signs="call").build("m/grad_weight", 0), made()
    samples = []
    for _ in range(300):
        matrix = turn.matrix(x, True)
        samples.append(turn.turn_back(cast(turn.turn(x, matrix)), matrix)[0])
    mean = torch.stack(samples).mean(0)
    assert abs(float(mean[0]) - 1) < 0.05 and 0.002 < abs(float(mean[1]) - 0.25) < 0.1


def test_zero_runs_ragged_ends_and_infinities_keep_their_scales() -> None:
    x = torch.randn(4, 72, generator=torch.Generator().manual_seed(1))
    x[1] = 0
    x[2, 3] = math.inf
    plain, corrected = Quantizer(recipe(correction="none")).cast(x, False), made().cast(x, False)  # type: ignore[arg-type]
    assert plain.scale is not None and corrected.scale is not None
    assert torch.equal(corrected.rounded, plain.rounded)
    same = corrected.scale == plain.scale
    assert same[:, 64:].all() and same[1].all() and same[2, :32].all() and not same[0, :64].all()
    assert not made()(x[1:2]).any() and made()(x)[2, 3] == math.inf
    # An overflow that becomes inf: its run is not taken to 0.
    wide = made(format="e5m2", overflow="inf", scaling={"kind": "block", "scale": "real", "size": 16, "margin": -1})
    found = wide(x[:1])
    assert bool(found.isinf().any()) and bool((found[x[:1] != 0] != 0).all())


def test_scales_are_drawn_for_each_pass_and_site() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    one, other = made(), made(site="n/input")
    assert not torch.equal(one(x), one(x)) and not torch.equal(made()(x), other(x))
    assert torch.equal(made()(x), made()(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"format": "e2m1", "scaling": "current"}, "correction: eden .* scaling: current has none"),
        (scaled("e2m1", "mx"), "correction: eden does not go with scale: e8m0"),
        (scaled("e2m1", "nvfp4", shape="square"), "correction: eden .* shape: square spans several"),
    ],
)
def test_what_has_no_scales_for_it_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        QuantizerSpec.made_from({**spec, "correction": "eden"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="correction: eden needs a transform"):
        Quantizer(recipe())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scaling.size 16 does not divide transform.size 24"):
        made(run=24)
