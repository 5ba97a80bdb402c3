"""Measures on tables of values: the same definitions, on grids whose two halves differ."""

import math

import pytest
import torch

from altgrad.formats import FloatFormat, Rounding, TableFormat, parse_format
from altgrad.measures import alignment, code_histogram, code_utilisation, stiffness_exponents, stiffness_histogram
from altgrad.measures.best_scale import Magnitudes, best_power_of_two, best_real
from altgrad.measures.flips import expected_flips, flip_counts, gap_fraction
from altgrad.measures.format_fit import fit_formats
from altgrad.measures.range import pinned_counts, range_counts
from altgrad.measures.value_histogram import ValueHistogram, fit_histogram
from altgrad.quantize import Grid, round_to
from altgrad.quantize.codes import to_codes
from altgrad.quantize.grid import grid_units, round_units


def table(name: str) -> TableFormat:
    found = parse_format(name)
    assert isinstance(found, TableFormat)
    return found


def sample(n: int = 2000) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(4))


def test_range_is_counted_at_both_ends() -> None:
    fmt, x = table("int4"), torch.tensor([-9.0, -8.4, -8.6, 7.4, 7.6, 0.3, math.inf, 0.0])
    unbounded = round_units(x, fmt, Rounding.nearest_even)
    counts = range_counts(x, unbounded, round_to(x, fmt), fmt)
    assert {name: int(count) for name, count in counts.items()} == {
        "finite": 7, "nonzero": 6, "underflow": 1, "subnormal": 0, "saturated": 3, "nonfinite": 1,
    }  # fmt: skip
    pinned = pinned_counts(x, round_to(x, fmt), fmt)
    assert (int(pinned["pinned"]), int(pinned["clipped"])) == (6, 5)


def test_codes_are_counted_by_the_tables_own_codes() -> None:
    fmt = table("posit8")
    every = torch.tensor(fmt.ranked)
    used = code_utilisation(code_histogram(to_codes(every, fmt), fmt), fmt)
    assert float(used["utilisation"]) == pytest.approx(1) and float(used["unused_share"]) == 0
    assert float(used["top_share"]) == pytest.approx(2 / 255) and float(used["zero_share"]) == pytest.approx(1 / 255)


def test_spacings_are_counted_by_their_binade() -> None:
    fmt = table("nf4")
    histogram = stiffness_histogram(torch.tensor([0.0, 0.9, -0.9, 2.0]), fmt)
    assert list(stiffness_exponents(fmt)) == [-4, -3, -2] and histogram.tolist() == [1, 0, 3]


def test_a_weight_on_an_uneven_grid_flips_as_often_as_its_gaps_say() -> None:
    fmt, w = table("nf4"), torch.tensor(table("nf4").ranked)
    for sign in (-1, 1):
        delta = torch.full_like(w, 0.01 * sign)
        drawn = torch.zeros(())
        for key in range(80):
            drawn += flip_counts(w, round_to(w + delta, fmt, "stochastic", key=key), fmt)["flips"]
        expected = float(expected_flips(w, delta, fmt))
        assert abs(float(drawn) / 80 - expected) < 4 * math.sqrt(expected / 80)
        assert float(gap_fraction(w, delta, fmt)[-1 if sign > 0 else 0]) == 0


def test_stored_weights_are_aligned_and_masters_lie_evenly() -> None:
    fmt, x = table("nf4"), sample().div(4)
    assert float(alignment(round_to(x, fmt), fmt)["aligned_share"]) == 1
    assert 0.2 < float(alignment(x, fmt)["mean_offset"]) < 0.3


@pytest.mark.parametrize("name", ["int8", "int4", "nf4", "[-1,-0.2,0,0.1,0.4]"])
def test_the_best_scale_is_the_best_that_casting_finds(name: str) -> None:
    fmt, x = table(name), sample()

    def error(scale: float) -> float:
        return float((round_to(x, fmt, scale=scale).double() - x.double()).square().sum())

    magnitudes = Magnitudes.of(x, signed=not fmt.is_symmetric)
    best = best_power_of_two(magnitudes, fmt)
    assert error(best) == min(error(2.0**k) for k in range(-12, 6))
    real = best_real(magnitudes, fmt)
    assert error(real) <= min(error(real * (1 + step / 200)) for step in range(-100, 101)) * (1 + 1e-6)


def test_formats_are_compared_with_tables_among_them() -> None:
    x = sample()
    formats = [FloatFormat.parse("e2m1"), table("nf4"), table("int4"), table("posit8")]
    fits = fit_formats(x, formats)
    assert fits["nf4"].best_real.sqnr_db > fits["e2m1"].best_real.sqnr_db > 10
    histogram = ValueHistogram()
    histogram.add(x)
    for name, fit in fit_histogram(histogram, formats).items():
        assert fit.amax_power_of_two.sqnr_db == pytest.approx(fits[name].amax_power_of_two.sqnr_db, abs=0.05)
        assert fit.best_real.sqnr_db == pytest.approx(fits[name].best_real.sqnr_db, abs=0.1)


def test_an_exmy_as_a_table_has_the_same_figures() -> None:
    from bench.patterns import as_table

    fmt, x = FloatFormat.parse("e3m2"), sample()
    own = as_table(fmt)
    assert own.midpoint_bits == fmt.midpoint_bits and own.ranked == fmt.ranked
    assert fit_formats(x, [own])[str(own)] == fit_formats(x, [fmt])["e3m2"]
    grid = Grid(fmt, torch.tensor(0.25))
    assert stiffness_histogram(x, own, scale=grid.scale).equal(stiffness_histogram(x, fmt, scale=grid.scale))
    assert grid_units(x).equal(x)
