"""Claims about SQNR, against exact rational arithmetic and the formula's edges."""

import math
from fractions import Fraction

import pytest
import torch

from altgrad.measures.sqnr import decibels, energies, sqnr
from altgrad.quantize import round_to


@pytest.mark.parametrize("fmt", ["e2m1", "e4m3fn", "e0m7"])
@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e12])
def test_it_is_the_ratio_of_exact_energies_in_decibels(fmt: str, factor: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(500) * factor
    cast = round_to(x, fmt, scale=factor)
    pairs = [(Fraction(a), Fraction(b)) for a, b in zip(x.tolist(), cast.tolist(), strict=True)]
    signal, noise = sum(a * a for a, _ in pairs), sum((a - b) ** 2 for a, b in pairs)
    assert float(sqnr(x, cast)) == pytest.approx(10 * math.log10(signal / noise), rel=1e-12)


def test_an_exact_cast_is_infinite_and_a_zero_signal_has_none() -> None:
    x = torch.tensor([0.5, -2.0, 0.0])
    assert float(sqnr(x, x)) == math.inf
    for zero in (torch.zeros(3), torch.empty(0)):
        assert math.isnan(float(sqnr(zero, zero)))
    assert math.isnan(float(sqnr(torch.zeros(3), x)))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_makes_it_nan(bad: float) -> None:
    x = torch.tensor([1.0, bad])
    assert math.isnan(float(sqnr(x, torch.tensor([1.0, 448.0]))))
    assert math.isnan(float(sqnr(x, x)))


def test_energies_of_pieces_add_up_to_those_of_the_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    cast = round_to(x, "e3m2")
    parts = [energies(a, b) for a, b in zip(x.split(5), cast.split(5), strict=True)]
    whole = decibels(torch.stack([a for a, _ in parts]).sum(), torch.stack([b for _, b in parts]).sum())
    assert float(whole) == pytest.approx(float(sqnr(x, cast)), rel=1e-12)


def test_narrow_floats_are_measured_at_their_values() -> None:
    x = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    assert float(sqnr(x, torch.tensor([1.0, 2.0]))) == pytest.approx(10.0)
