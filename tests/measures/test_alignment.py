"""Claims about grid alignment, against exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.formats.codes import round_rung
from altgrad.measures.alignment import alignment, alignment_sums, grid_offset
from altgrad.quantize import round_to

FORMATS = [FloatFormat.parse(f"e{e}m{7 - e}f") for e in range(8)]
FORMATS += [FloatFormat.parse(name) for name in ("e4m3fn", "e5m2", "e2m1")]


def exact_offset(value: float, fmt: FloatFormat, scale: float) -> Fraction | None:
    """None beyond the reach of the format."""
    if not math.isfinite(value):
        return None
    u = abs(Fraction(value) / Fraction(scale))
    r = round_rung(fmt, u, Rounding.nearest_even)
    if r > fmt.max_code:
        return None
    binade = math.frexp(u)[1] - 1 if u else fmt.e_min
    binade = min(max(binade, fmt.e_min), max(fmt.e_min, fmt.max_binade))
    return abs(u - fmt.magnitude(r)) / Fraction(2) ** (binade - fmt.mantissa_bits)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**-5])
def test_offsets_are_exact(adversarial: dict[str, Tensor], fmt: FloatFormat, scale: float) -> None:
    for case, w in adversarial.items():
        exact = [exact_offset(v, fmt, scale) for v in w.flatten().tolist()]
        found = grid_offset(w, fmt, scale=scale).flatten().tolist()
        for a, b in zip(found, exact, strict=True):
            assert math.isnan(a) if b is None else a == pytest.approx(float(b), rel=1e-6) and 0 <= a <= 0.5, case
        inside = [b for b in exact if b is not None]
        sums, of_one = alignment_sums(w, fmt, scale=scale), alignment(w, fmt, scale=scale)
        assert int(sums["inside"]) == len(inside)
        assert int(sums["aligned"]) == sum(b == 0 for b in inside)
        if inside:
            assert float(of_one["mean_offset"]) == pytest.approx(float(sum(inside) / len(inside)), rel=1e-6)
        else:
            assert math.isnan(float(of_one["mean_offset"])) and math.isnan(float(of_one["aligned_share"]))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_stored_weights_are_aligned_throughout(fmt: FloatFormat) -> None:
    torch.manual_seed(0)
    w = torch.randn(5000)
    found = alignment(round_to(w, fmt, scale=0.25), fmt, scale=0.25)
    assert (float(found["mean_offset"]), float(found["aligned_share"])) == (0, 1)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_masters_spread_evenly_over_a_binade_have_a_mean_offset_of_a_quarter(fmt: FloatFormat) -> None:
    top = 2.0**fmt.max_binade
    w = torch.linspace(top / 2, top, 8193)[:-1] + top / 32768
    assert float(alignment(w, fmt)["mean_offset"]) == pytest.approx(0.25, abs=1e-3)


def test_alignment_is_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)
    assert_one_graph(lambda w, s: alignment(w, FORMATS[4], scale=s), torch.randn(20, 10), torch.tensor(0.3))
