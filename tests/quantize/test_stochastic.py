"""Claims about stochastic rounding: a grid value never moves, the mean is exact, and the bits are countable."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.formats import CATALOG, FloatFormat, Rounding, place
from altgrad.quantize import at_rung, round_to
from altgrad.quantize.grid import round_units

NAMES = [entry.name for entry in CATALOG]
DRAWS = 1 << 24
CHUNK = 1 << 21


def every_draw():
    """Every possible noise, in chunks of int32."""
    for start in range(0, DRAWS, CHUNK):
        yield torch.arange(start, start + CHUNK, dtype=torch.int32)


def values_of(fmt):
    up = torch.tensor(fmt.magnitudes, dtype=torch.float32)
    return torch.cat([-up, up])


def unmoved(x, fmt, noise, **options):
    found = round_units(x, fmt, Rounding.stochastic, noise, **options)
    return torch.equal(found.view(torch.int32), x.expand_as(found).contiguous().view(torch.int32))


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_any_format_moves_under_the_extreme_draws(name):
    """A draw moves x iff it is below the fraction of the gap passed, so a draw of 0 would move it if any did."""
    fmt = FloatFormat.parse(name)
    x = values_of(fmt)
    for draw in (0, 1, DRAWS // 2, DRAWS - 1):
        noise = torch.full_like(x, draw, dtype=torch.int32)
        assert unmoved(x, fmt, noise)
        assert unmoved(x, fmt, noise, random_bits=1)


@pytest.mark.parametrize("name", ["e4m3fn", "e7m0", "e0m7"])
def test_no_draw_of_all_moves_a_value(name):
    """Each of the 2^24 draws meets one code after the other; `long` lets every draw meet every code."""
    fmt = FloatFormat.parse(name)
    x = values_of(fmt)
    x = x.repeat(1 + CHUNK // x.numel())[:CHUNK]
    assert all(unmoved(x, fmt, noise) for noise in every_draw())


@pytest.mark.long
@pytest.mark.parametrize("name", ["e4m3fn", "e7m0", "e0m7"])
def test_no_draw_moves_any_value(name):
    fmt = FloatFormat.parse(name)
    x = values_of(fmt)
    for noise in every_draw():
        assert all(unmoved(value, fmt, noise) for value in x)


@pytest.mark.parametrize(("name", "x"), [("e4m3fn", 1.3), ("e7m0", -5.0), ("e0m15", 0.40001), ("e4m3fn", 2.0**-33)])
def test_of_all_draws_exactly_the_fraction_of_the_gap_moves_a_value(name, x):
    fmt = FloatFormat.parse(name)
    u = torch.tensor(x)
    at = place(fmt, abs(Fraction(u.item())))
    far = math.copysign(fmt.magnitude(at.rung + 1), x)
    moved = sum(int((round_units(u, fmt, Rounding.stochastic, noise) == far).sum()) for noise in every_draw())
    assert moved == math.ceil(at.fraction * DRAWS)


@pytest.mark.parametrize("bits", [1, 2, 5, 11, 24])
def test_k_random_bits_realise_multiples_of_two_to_the_minus_k_rounded_down(bits):
    fmt = FloatFormat.parse("e4m3fn")
    step = 2.0**-bits
    noise = torch.arange(DRAWS - 1, -1, -(DRAWS >> 12), dtype=torch.int32)  # one draw of each 12-bit class
    for fraction in (0.0, step / 2, step * 0.999, step, 1.5 * step, 0.3, 0.5, 1 - step / 2, 1 - 2.0**-20):
        x = torch.tensor(1 + fraction / 8)  # e4m3fn's gap from 1 to 2 is 1/8
        passed = (x.item() - 1) * 8
        moved = (round_units(x, fmt, Rounding.stochastic, noise, bits) == 1.125).double().mean().item()
        if bits <= 12:
            assert moved == math.floor(passed / step) * step
        assert passed >= step or moved == 0
    below = torch.full((100_000,), 1 + step / 8 * 0.99)
    assert bits == 24 or bool((round_to(below, fmt, "stochastic", key=4, random_bits=bits) == 1).all())


POINTS = {
    "normal": [1.3, -1.04, 100.0],
    "sub-normal": [2.0**-9 * 3.7, -(2.0**-9) * 1.01],
    "below the smallest value": [2.0**-12, -(2.0**-17), 1e-5],
    "next to a power of two": [1.9999, 2.0001, -0.9999, -(2.0**-6) * 0.999, 2.0**-6 * 1.001],
}


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e7m0", "e4m3fnuz", "e3m4"])
def test_the_mean_of_a_million_draws_is_the_value(name, kind):
    fmt = FloatFormat.parse(name)
    for key, value in enumerate(POINTS[kind]):
        x = torch.full((1_000_000,), min(max(value, -float(fmt.max)), float(fmt.max)))
        exact = x[0].item()
        at = place(fmt, abs(Fraction(exact)))
        low, high = (math.copysign(fmt.magnitude(r), exact) for r in (at.rung, at.rung + 1))
        p = float(at.fraction)
        error = abs(high - low) * math.sqrt(p * (1 - p) / x.numel())
        found = round_to(x, fmt, "stochastic", key=key)
        assert bool(((found == low) | (found == high)).all())
        # 2^-24 of a gap is what 24 bits leave
        assert abs(found.double().mean().item() - exact) <= 4 * error + abs(high - low) * 2.0**-24


@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_the_mean_is_the_value_under_a_scale_too(scale):
    x = torch.full((1_000_000,), 0.7213)
    found = round_to(x, "e2m1", "stochastic", scale=scale, key=11).double()
    assert found.unique().numel() == 2
    assert abs(found.mean().item() - 0.7213) < 4 * found.std().item() / 1000 + 1e-7


def test_the_result_does_not_depend_on_pieces_or_threads():
    x = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    whole = round_to(x, "e4m3fn", "stochastic", key=21)
    pieces = [
        round_to(rows, "e4m3fn", "stochastic", key=21, offset=at * rows.numel()) for at, rows in enumerate(x.split(250))
    ]
    assert torch.equal(torch.cat(pieces), whole)
    torch.set_num_threads(2)
    assert torch.equal(round_to(x, "e4m3fn", "stochastic", key=21), whole)
    assert torch.equal(round_to(x, "e4m3fn", "stochastic", key=torch.tensor(21)), whole)
    assert not torch.equal(round_to(x, "e4m3fn", "stochastic", key=22), whole)


@settings(max_examples=40)
@given(cuts=st.sets(st.integers(1, 4_999), max_size=12), name=st.sampled_from(["e4m3fn", "e5m2", "e7m0", "e0m7"]))
def test_the_result_does_not_depend_on_where_a_tensor_is_cut(cuts, name):
    x = torch.randn(5_000, generator=torch.Generator().manual_seed(1))
    whole, ends = round_to(x, name, "stochastic", key=5), [0, *sorted(cuts), 5_000]
    pieces = [round_to(x[a:b], name, "stochastic", key=5, offset=a) for a, b in itertools.pairwise(ends)]
    assert torch.equal(torch.cat(pieces), whole)


def test_indices_beyond_2_31_round_as_their_own():
    x = torch.full((2000,), 1.06)
    start = (1 << 31) - 1000
    whole = round_to(x, "e4m3fn", "stochastic", key=1, offset=start)
    assert torch.equal(whole[1000:], round_to(x[:1000], "e4m3fn", "stochastic", key=1, offset=1 << 31))
    assert not torch.equal(whole[1000:], round_to(x[:1000], "e4m3fn", "stochastic", key=1))


@pytest.mark.parametrize("name", NAMES)
def test_any_value_goes_to_one_of_its_two_neighbours_with_its_sign(name, critical_points):
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 9973)
    for key in range(4):
        found = round_to(x, fmt, "stochastic", key=key)
        down, up = round_to(x, fmt, "toward_negative"), round_to(x, fmt, "toward_positive")
        assert bool(((found == down) | (found == up)).all())
        zero = (found == 0) & (x.signbit() if fmt.has_negative_zero else x.new_zeros(x.shape, dtype=torch.bool))
        assert torch.equal(found.signbit(), (found < 0) | zero)
        assert torch.equal(round_to(-x, fmt, "stochastic", key=key), -found)


def test_infinity_and_nan_do_not_draw():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e30, -1e30])
    for name in ("e4m3fn", "e0m7", "e7m0"):
        top = at_rung(torch.tensor(1 << 20), name).item()
        found = round_to(x, name, "stochastic", key=0)
        assert found[[0, 1, 3, 4]].tolist() == [top, -top, top, -top] and found[2].isnan()
    found = round_to(x, "e5m2", "stochastic", key=0, overflow="inf")
    assert found[[0, 1, 3, 4]].tolist() == [math.inf, -math.inf, math.inf, -math.inf] and found[2].isnan()
