"""k-bit stochastic rounding: what `random_bits` means, and which of gfloat's four modes it is.

Let F = 2^k times the fraction of the gap passed and n in [0, 2^k) the k bits drawn. A value moves away from zero iff

    ours                  n < floor(F)              no move below 2^-k of a gap; never biased away from zero
    StochasticFastest     n' >= 2^k - F             the same: n' = 2^k - 1 - n, the complement of the bits
    StochasticFast        n' + 1/2 >= 2^k - F       n < F rounded to the nearest, ties up
    Stochastic            n' >= 2^k - RNE(F)        n < F rounded to the nearest, ties to even
    StochasticOdd         n' >= 2^k - RNO(F)        n < F rounded to the nearest, ties to odd

So `random_bits=k` is StochasticFastest, fed the complement of our bits, bit for bit. Where F is an integer all five are
one. Without `random_bits` all 24 bits are compared with F as it is: n < ceil(F). (gfloat's documentation says that
StochasticFastest rounds too far from zero; its code, tested here, errs towards zero.)
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from gfloat import RoundMode, round_float, round_ndarray

from altgrad.formats import FloatFormat, Rounding, place, round_value
from altgrad.quantize import round_to
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.noise import counted_bits

NAMES = ["e4m3fn", "e5m2", "e4m3fnuz", "e3m4p3109", "e7m0", "e1m6", "e0m7", "e2m1", "e2m3"]
FORMATS = pytest.mark.parametrize("name", NAMES)
BITS = pytest.mark.parametrize("k", [1, 2, 3, 5])


def points(fmt, k, every):
    """float32 values of both signs, in range: in every `every`-th gap all 2^-k and 2^-(k+1) of it, and beside them."""
    rungs = [r for r in range(fmt.max_code) if r % every == 0 or r < 3 or r > fmt.max_code - 3]
    found = []
    for rung in rungs:
        low, high = fmt.magnitude(rung), fmt.magnitude(rung + 1)
        found += [float(low + (high - low) * Fraction(part, 2 << k)) for part in range(2 << k)]
    exact = np.array(found, dtype=np.float32)
    up = np.unique(np.concatenate([exact, *(np.nextafter(exact, np.float32(to)) for to in (-1, 3e38))]))
    up = up[(up >= 0) & (up <= float(fmt.max))]
    return torch.from_numpy(np.concatenate([-up, up]))


def ours(fmt, x, n, k):
    """Our rounding of x by the k bits n; the bits below them are set, to show that they do not count."""
    noise = torch.full_like(x, (n << (24 - k)) | ((1 << (24 - k)) - 1), dtype=torch.int32)
    return bound_units(round_units(x, fmt, Rounding.stochastic, noise, k), fmt)


def theirs(info, x, mode, n, k):
    """gfloat's, in float64 where all it computes is exact."""
    bits = np.full(x.shape, n, dtype=np.int64)
    rounded = round_ndarray(info, x.double().numpy(), mode, True, bits, k)
    return torch.from_numpy(rounded).to(torch.float32)


@BITS
@FORMATS
def test_random_bits_are_gfloats_stochastic_fastest_for_every_draw(name, k, as_gfloat, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = points(fmt, k, every=1 if k < 5 else 7)
    for n in range(1 << k):
        expected = theirs(as_gfloat(fmt), x, RoundMode.StochasticFastest, (1 << k) - 1 - n, k)
        assert_same_bits(ours(fmt, x, n, k), expected, x)


@pytest.mark.parametrize("name", ["e4m3fn", "e7m0", "e0m7"])
def test_gfloats_scalar_rounding_says_the_same(name, as_gfloat, assert_same_bits):
    fmt, k = FloatFormat.parse(name), 3
    x, info = points(fmt, k, every=19), as_gfloat(fmt)
    for n in range(1 << k):
        mode, complement = RoundMode.StochasticFastest, (1 << k) - 1 - n
        assert_same_bits(ours(fmt, x, n, k), [round_float(info, v, mode, True, complement, k) for v in x.tolist()], x)


@pytest.mark.parametrize("k", [8, 16, 24])
@FORMATS
def test_the_same_holds_for_the_bits_that_round_to_counts(name, k, as_gfloat, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(k)) * float(fmt.max) / 4
    x = torch.cat([x[:10_000].clamp(-float(fmt.max), float(fmt.max)), x[10_000:] * 2.0**-7])
    noise = counted_bits(x.shape, 5) >> (24 - k)
    complement = ((1 << k) - 1 - noise).to(torch.int64).numpy()
    expected = round_ndarray(as_gfloat(fmt), x.double().numpy(), RoundMode.StochasticFastest, True, complement, k)
    assert_same_bits(round_to(x, fmt, "stochastic", key=5, random_bits=k), torch.from_numpy(expected), x)


@BITS
@FORMATS
def test_where_the_fraction_is_a_multiple_of_two_to_the_minus_k_all_four_modes_agree(name, k, as_gfloat):
    fmt = FloatFormat.parse(name)
    info = as_gfloat(fmt)
    x = points(fmt, k, every=11)
    whole = [(place(fmt, abs(Fraction(v))).fraction * (1 << k)).denominator == 1 for v in x.tolist()]
    x = x[torch.tensor(whole)]
    assert x.numel() > 4 << k
    for n in range(1 << k):
        found = ours(fmt, x, n, k)
        for mode in (RoundMode.Stochastic, RoundMode.StochasticOdd, RoundMode.StochasticFast):
            assert torch.equal(found, theirs(info, x, mode, (1 << k) - 1 - n, k)), mode


@BITS
def test_elsewhere_the_other_three_modes_move_values_that_ours_leaves(k, as_gfloat):
    """They round F to the nearest, so 3/4 of 2^-k of a gap moves for one draw in 2^k; by ours it moves for none."""
    fmt = FloatFormat.parse("e4m3fn")
    x = torch.tensor([1 + 2.0**-k * 0.75 / 8])
    for mode in (RoundMode.Stochastic, RoundMode.StochasticOdd, RoundMode.StochasticFast):
        found = [theirs(as_gfloat(fmt), x, mode, n, k).item() for n in range(1 << k)]
        assert sorted(found) == [1.0] * ((1 << k) - 1) + [1.125]
    assert all(ours(fmt, x, n, k).item() == 1 for n in range(1 << k))


@BITS
@FORMATS
def test_a_value_moves_for_exactly_the_draws_below_its_fraction_in_whole_parts(name, k):
    """Our own definition in exact arithmetic: u = n 2^-k against floor(F) 2^-k, the sign and the top included."""
    fmt = FloatFormat.parse(name)
    x = points(fmt, k, every=29)
    for n in range(1 << k):
        found = ours(fmt, x, n, k).tolist()
        for value, rounded in zip(x.tolist(), found, strict=True):
            at = place(fmt, abs(Fraction(value)))
            away = n < math.floor(at.fraction * (1 << k))
            expected = math.copysign(float(fmt.magnitude(at.rung + away)), value)
            assert rounded == expected, (value, n)


@BITS
@FORMATS
def test_the_mean_over_all_draws_is_less_than_two_to_the_minus_k_of_a_gap_towards_zero(name, k):
    fmt = FloatFormat.parse(name)
    x = points(fmt, k, every=5)
    mean = torch.stack([ours(fmt, x, n, k).double() for n in range(1 << k)]).mean(0)
    gaps = torch.tensor([_gap(fmt, value) for value in x.tolist()], dtype=torch.float64)
    lost = (x.double().abs() - mean.abs()) / gaps
    assert bool((lost >= 0).all())
    assert bool((lost < 2.0**-k).all())


def _gap(fmt, value):
    rung = place(fmt, abs(Fraction(value))).rung
    return float(fmt.magnitude(min(rung + 1, fmt.max_code)) - fmt.magnitude(min(rung, fmt.max_code - 1)))


@FORMATS
def test_without_random_bits_the_draw_meets_the_whole_fraction(name):
    """n < F, not n < floor(F): for F between 0 and 1 the draw 0 still moves a value, as the exact oracle says."""
    fmt = FloatFormat.parse(name)
    tiny = float(fmt.min_subnormal) * 2.0**-30
    between = float(fmt.magnitude(1)) * 0.7
    x = torch.tensor([tiny, -tiny, between, -between])
    for n in (0, 1, int(0.7 * 2**24), int(0.7 * 2**24) + 2, 2**24 - 1):
        draw = Fraction(n, 1 << 24)
        expected = [round_value(fmt, v, Rounding.stochastic, u=draw) for v in x.tolist()]
        found = bound_units(round_units(x, fmt, Rounding.stochastic, torch.full((4,), n, dtype=torch.int32)), fmt)
        assert found.tolist() == [float(value) for value in expected]
    assert ours(fmt, x[:2], 0, 24).tolist() == [0.0, 0.0]
