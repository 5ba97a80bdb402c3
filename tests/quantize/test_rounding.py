"""Claims about round_to that other people's software can check: ml_dtypes, torch, gfloat, and exact fractions."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import RoundMode, round_ndarray
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from altgrad.formats import CATALOG, FloatFormat, Rounding, round_rung, round_value
from altgrad.quantize import round_to
from altgrad.quantize.grid import bound_units, round_units

NAMES = [entry.name for entry in CATALOG]
ML_DTYPES = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3ieee": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
}
TORCH_DTYPES = {
    "e5m2": torch.float8_e5m2,
    "e4m3fn": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GFLOAT_MODES = {
    Rounding.nearest_even: RoundMode.TiesToEven,
    Rounding.nearest_away: RoundMode.TiesToAway,
    Rounding.toward_zero: RoundMode.TowardZero,
    Rounding.toward_positive: RoundMode.TowardPositive,
    Rounding.toward_negative: RoundMode.TowardNegative,
}


def in_range(x, fmt):
    return x[x.abs() <= float(fmt.max)]


def spread(fmt, count):
    """Random float32 of both signs whose exponents cover the format's range and what lies just below it."""
    random = np.random.default_rng(0)
    exponent = random.integers(fmt.e_min - fmt.mantissa_bits - 3, fmt.max_binade + 1, count)
    significand = random.integers(1 << 23, 1 << 24, count) * random.choice([-1.0, 1.0], count)
    return torch.from_numpy(np.ldexp(significand, exponent - 23).astype(np.float32))


def bfloat16_patterns():
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


@pytest.mark.parametrize("points", ["bf16", "critical", "random"])
@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_even_equals_ml_dtypes_and_torch_bit_for_bit(name, points, critical_points, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = {
        "bf16": lambda: bfloat16_patterns().to(torch.float32),
        "critical": lambda: critical_points(fmt),
        "random": lambda: spread(fmt, 1_000_000),
    }[points]()
    x = in_range(x, fmt)
    found = round_to(x, fmt)
    theirs = x.numpy().astype(ML_DTYPES[name]).astype(np.float32)
    assert_same_bits(found, torch.from_numpy(theirs), x)
    if name in TORCH_DTYPES:
        assert_same_bits(found, x.to(TORCH_DTYPES[name]).to(torch.float32), x)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_a_bfloat16_tensor_rounds_as_its_float32_values_do(name, assert_same_bits):
    x = bfloat16_patterns()
    for mode in GFLOAT_MODES:
        assert_same_bits(round_to(x, name, mode), round_to(x.to(torch.float32), name, mode), x)


@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_mode_equals_gfloat_bit_for_bit(name, mode, as_gfloat, critical_points, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = torch.cat([critical_points(fmt, 1 if fmt.bits <= 8 else 7), spread(fmt, 5_000)])
    theirs = round_ndarray(as_gfloat(fmt), x.numpy().astype(np.float64), GFLOAT_MODES[mode], sat=True)
    assert_same_bits(round_to(x, fmt, mode), torch.from_numpy(theirs), x)


@pytest.mark.parametrize("name", NAMES)
def test_every_mode_equals_exact_fractions(name, critical_points, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 1 if fmt.bits <= 8 else 9973)
    x = x[:: 1 + x.numel() // 2500]
    for mode in GFLOAT_MODES:
        assert_same_bits(round_to(x, fmt, mode), [float(round_value(fmt, v, mode)) for v in x.tolist()], x)


@pytest.mark.parametrize("name", NAMES)
def test_ties_of_vendors_and_the_side_of_an_average_equal_exact_fractions(name, critical_points, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 1 if fmt.bits <= 8 else 9973)
    x = x[:: 1 + x.numel() // 600]
    for mode in (Rounding.nearest_ties_to_zero, Rounding.nearest_ties_up):
        assert_same_bits(round_to(x, fmt, mode), [float(round_value(fmt, v, mode)) for v in x.tolist()], x)
    for average in (x.roll(1), x * 1.25, -x):
        average = average.clamp(-(2.0**127), 2.0**127)
        pairs = zip(x.tolist(), average.tolist(), strict=True)
        expected = [float(round_value(fmt, v, "toward_average", average=a)) for v, a in pairs]
        assert_same_bits(round_to(x, fmt, "toward_average", average=average), expected, x)


@pytest.mark.parametrize("name", NAMES)
def test_a_stochastic_outcome_is_that_of_the_exact_draw(name, critical_points, assert_same_bits):
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 1 if fmt.bits <= 8 else 9973)
    x = x[:: 1 + x.numel() // 1000]
    for draw in (0, 1, 1 << 22, (1 << 22) - 1, (1 << 23) - 1, 1 << 23, 3 << 22, (1 << 24) - 1):
        noise = torch.full(x.shape, draw, dtype=torch.int32)
        found = bound_units(round_units(x, fmt, Rounding.stochastic, noise), fmt)
        u = Fraction(draw, 1 << 24)
        assert_same_bits(found, [float(round_value(fmt, v, "stochastic", u=u)) for v in x.tolist()], x)


@pytest.mark.parametrize("name", ["e7m0", "e7m0p3109", "e3m0", "e3m0b3fnuz"])
def test_ties_between_powers_of_two_go_to_the_even_code(name):
    fmt = FloatFormat.parse(name)
    values = torch.tensor(fmt.magnitudes)
    even = values[1:-1] * torch.where(torch.arange(1, fmt.max_code) % 2 == 0, 1, 2)
    for sign in (1.0, -1.0):
        assert torch.equal(round_to(1.5 * sign * values[1:-1], fmt), sign * even)
        assert round_to(sign * values[1] / 2, fmt) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_overflow_infinity_nan_and_minus_zero_follow_the_table(name, dtype, assert_same_bits):
    fmt = FloatFormat.parse(name)
    top, beyond = float(fmt.max), float(torch.finfo(dtype).max)
    x = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 0.0, beyond, -beyond], dtype=dtype)
    zero = -0.0 if fmt.has_negative_zero else 0.0
    over = [top, -top] if x[-2].item() > top else [beyond, -beyond]
    for mode in GFLOAT_MODES:
        saturated = round_to(x, fmt, mode)
        assert_same_bits(saturated[:5], [top, -top, math.nan, zero, 0.0], x)
        if beyond > 2 * top:
            assert_same_bits(saturated[5:], over, x[5:])
        if not fmt.has_nan:
            with pytest.raises(ValueError, match=f"{fmt} has neither inf nor NaN"):
                round_to(x, fmt, mode, overflow="inf")
            continue
        became = math.inf if fmt.has_inf else math.nan
        found = round_to(x, fmt, mode, overflow="inf")
        assert_same_bits(found[:5], [became, -became, math.nan, zero, 0.0], x)
        if beyond > 2 * top:
            assert_same_bits(found[5:], [became, -became], x[5:])


@pytest.mark.parametrize("name", [name for name in NAMES if FloatFormat.parse(name).has_nan])
def test_overflow_starts_where_the_unbounded_ladder_leaves_the_format(name, critical_points):
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 1 if fmt.bits <= 8 else 9973)
    x = x[x.abs() >= float(fmt.max) / 2]
    for mode in GFLOAT_MODES:
        found = ~round_to(x, fmt, mode, overflow="inf").isfinite()
        assert found.tolist() == [round_rung(fmt, Fraction(v), mode) > fmt.max_code for v in x.tolist()]


def test_an_unknown_overflow_or_rounding_or_a_missing_key_is_refused():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="'wrap' is not an overflow; choose saturate or inf"):
        round_to(x, "e4m3fn", overflow="wrap")
    with pytest.raises(ValueError, match="'nearest' is not a rounding"):
        round_to(x, "e4m3fn", "nearest")
    with pytest.raises(ValueError, match="stochastic rounding needs a key for its counted bits; pass key="):
        round_to(x, "e4m3fn", "stochastic")
    for bits in (0, 25):
        with pytest.raises(ValueError, match=f"random_bits={bits}; stochastic rounding uses 1 to 24 bits"):
            round_to(x, "e4m3fn", "stochastic", key=0, random_bits=bits)


def examples(daily, long):
    """How many examples of a law are tried, daily and in the long half."""
    return pytest.mark.parametrize("examples", [daily, pytest.param(long, marks=pytest.mark.long)])


def holds(examples, law, **drawn):
    settings(max_examples=examples)(given(**drawn)(law))()


@st.composite
def formats(draw):
    """Any format that tensors can be cast to, of any bias."""
    e = draw(st.integers(0, 8))
    m = draw(st.integers(max(0, 1 - e), 15 - e))
    choices = ["f", "fnuz", *["fn", "p3109"] * (e + m > 1), *["ieee"] * (e > 1 and m > 0)]
    fmt = FloatFormat(e, m, draw(st.integers(-140, 140)) if e else 0, draw(st.sampled_from(choices)))
    assume(fmt.in_tensor_domain)
    return fmt


def near(fmt):
    """Float32 values on, between and beyond the values of a format, and any others."""
    step = st.integers(-1, 4).map(lambda quarters: 1 + quarters / 2 ** (fmt.mantissa_bits + 2))
    rung, sign = st.integers(0, fmt.max_code), st.sampled_from([1.0, -1.0])
    on = st.builds(lambda r, f, s: s * f * float(fmt.magnitude(r)), rung, step, sign)
    anywhere = st.floats(width=32, allow_nan=False, allow_infinity=False)
    return st.lists(on.filter(lambda v: abs(v) < 2.0**127) | anywhere, min_size=2, max_size=24)


@examples(60, 150)
def test_any_format_rounds_as_exact_fractions_do(examples, assert_same_bits):
    def law(fmt, mode, data):
        x = torch.tensor(data.draw(near(fmt)), dtype=torch.float32)
        assert_same_bits(round_to(x, fmt, mode), [float(round_value(fmt, v, mode)) for v in x.tolist()], x)

    holds(examples, law, fmt=formats(), mode=st.sampled_from(list(GFLOAT_MODES)), data=st.data())


@examples(60, 150)
def test_rounding_any_format_is_idempotent_monotone_odd_and_nearest(examples):
    def law(fmt, data):
        x = torch.tensor(sorted(data.draw(near(fmt))), dtype=torch.float32)
        for mode in GFLOAT_MODES:
            rounded = round_to(x, fmt, mode)
            assert torch.equal(round_to(rounded, fmt, mode), rounded)
            assert bool((rounded.diff() >= 0).all())
        for mode in ("nearest_even", "nearest_away", "toward_zero"):
            assert torch.equal(round_to(-x, fmt, mode), -round_to(x, fmt, mode))
        down, up = (round_to(x, fmt, mode) for mode in ("toward_negative", "toward_positive"))
        assert torch.equal(round_to(-x, fmt, "toward_positive"), -down)
        inside = x.abs() <= float(fmt.max)
        assert bool(((down <= x) & (x <= up))[inside].all())
        exact = x.double()
        for mode in ("nearest_even", "nearest_away"):
            distance = (round_to(x, fmt, mode).double() - exact).abs()
            assert torch.equal(distance[inside], torch.minimum(exact - down, up - exact)[inside])

    holds(examples, law, fmt=formats(), data=st.data())


@examples(60, 150)
def test_a_power_of_two_scale_commutes_with_a_power_of_two_factor_for_any_format(examples, assert_same_bits):
    """Q(2^k x; 2^k) = 2^k Q(x), of numbers and results that float32 holds on both sides; float64 tells which."""

    def law(fmt, k, data):
        x = torch.tensor(data.draw(near(fmt)), dtype=torch.float32)
        for mode in Rounding:
            rounded = round_to(x, fmt, mode, key=k, average=x.flip(0))
            sides = torch.stack([x, rounded]).double() * 2.0**k
            held = (sides.float().double() == sides).all(0)
            if mode is Rounding.toward_average:  # x 2^k of each, or neither
                held = held & held.flip(0)
            goal = (x * 2.0**k).flip(0)
            scaled = round_to(x * 2.0**k, fmt, mode, scale=2.0**k, key=k, average=goal)  # all: bits go by the index
            assert_same_bits(scaled[held], (rounded * 2.0**k)[held], x[held])

    holds(examples, law, fmt=formats(), k=st.integers(-60, 60), data=st.data())


@examples(40, 100)
def test_stochastic_rounding_to_any_format_gives_a_neighbour_and_leaves_its_values(examples):
    def law(fmt, key, data):
        x = torch.tensor(data.draw(near(fmt)), dtype=torch.float32)
        found = round_to(x, fmt, "stochastic", key=key)
        down, up = (round_to(x, fmt, mode) for mode in ("toward_negative", "toward_positive"))
        assert bool(((found == down) | (found == up)).all())
        assert torch.equal(round_to(found, fmt, "stochastic", key=key), found)
        assert torch.equal(round_to(-x, fmt, "stochastic", key=key), -found)

    holds(examples, law, fmt=formats(), key=st.integers(0, (1 << 63) - 1), data=st.data())
