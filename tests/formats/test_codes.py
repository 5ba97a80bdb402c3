"""Codes against outside oracles, exhaustively; rounding at every value, every midpoint and their neighbours."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import RoundMode, decode_float, round_float
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.formats import (
    CATALOG,
    CodeClass,
    FloatFormat,
    Rounding,
    classify,
    decode,
    encode,
    fields,
    from_fields,
    neighbours,
    round_rung,
    round_value,
)

NAMES = [line.name for line in CATALOG]
EIGHT_BIT_OR_LESS = [name for name in NAMES if FloatFormat.parse(name).bits <= 8]
BEYOND_THE_CATALOG = ["e0m7fn", "e1m6fnuz", "e4m0fn", "e5m0p3109", "e3m0fnuz", "e2m2b-3", "e0m1", "e1m0", "e6m2b90ieee"]
ORACLE_MODES = {
    Rounding.nearest_even: RoundMode.TiesToEven,
    Rounding.nearest_away: RoundMode.TiesToAway,
    Rounding.toward_zero: RoundMode.TowardZero,
    Rounding.toward_positive: RoundMode.TowardPositive,
    Rounding.toward_negative: RoundMode.TowardNegative,
}
DTYPES = {
    "e5m10": np.float16,
    "e8m7": ml_dtypes.bfloat16,
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
}
TORCH_DTYPES = {
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "e5m10": torch.float16,
    "e8m7": torch.bfloat16,
}


def same(a, b):
    """Equal as values, with NaN equal to NaN and the zeros told apart."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def critical_points(fmt, stride=1):
    """Every value, every midpoint, the float32 neighbours of both, and points above max; both signs.

    float32 and not float64 neighbours, because gfloat rounds in doubles: 0.49999999999999994 + 0.5 is its 1.0.
    """
    values = [
        (fmt.magnitude(rung), fmt.magnitude(rung + 1)) for rung in [*range(0, fmt.max_code, stride), fmt.max_code]
    ]
    points = {float(point) for low, high in values for point in (low, (low + high) / 2)}
    points |= {float(factor * fmt.magnitude(fmt.max_code + 1)) for factor in (1, 2, 100)}
    points = {point for point in points if point < 2.0**128}
    single = np.array(sorted(points), dtype=np.float32)
    assert set(single.tolist()) == points
    points |= {float(x) for way in (-np.inf, np.inf) for x in np.nextafter(single, np.float32(way)) if np.isfinite(x)}
    return sorted(points | {-point for point in points}) + [-0.0]


@pytest.mark.parametrize("name", NAMES + BEYOND_THE_CATALOG)
def test_every_code_decodes_as_gfloat_says(name, as_gfloat):
    fmt = FloatFormat.parse(name)
    theirs = as_gfloat(fmt)
    stride = 1 if fmt.bits <= 9 else 13
    for code in range(0, 1 << fmt.bits, stride):
        found = decode_float(theirs, code)
        assert same(decode(fmt, code), float(found.fval)), hex(code)
        kind = classify(fmt, code)
        # gfloat's IEEE rules call the values of an E = 0 format sub-normal as well
        assert kind == CodeClass[found.fclass.name.lower().replace("infinite", "infinity")], hex(code)
        assert fields(fmt, code) == (found.signbit, found.exp, found.significand), hex(code)


@pytest.mark.parametrize("name", DTYPES)
def test_every_code_decodes_as_ml_dtypes_says(name):
    fmt = FloatFormat.parse(name)
    raw = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among the codes
        theirs = raw.view(DTYPES[name]).astype(np.float64)
    assert all(same(decode(fmt, code), float(theirs[code])) for code in range(1 << fmt.bits))


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_code_decodes_as_torch_says(name):
    fmt = FloatFormat.parse(name)
    raw = torch.arange(1 << fmt.bits, dtype=torch.int32).to(torch.uint16 if fmt.bits > 8 else torch.uint8)
    theirs = raw.view(TORCH_DTYPES[name]).to(torch.float64).tolist()
    assert all(same(decode(fmt, code), theirs[code]) for code in range(1 << fmt.bits))


@pytest.mark.parametrize("name", NAMES + BEYOND_THE_CATALOG)
def test_encode_undoes_decode_for_every_code(name):
    fmt = FloatFormat.parse(name)
    for code in range(1 << fmt.bits):
        value = decode(fmt, code)
        if math.isnan(value):
            assert classify(fmt, encode(fmt, value)) is CodeClass.nan
        else:
            assert encode(fmt, value) == code
        assert from_fields(fmt, *fields(fmt, code)) == code


@pytest.mark.parametrize("name", EIGHT_BIT_OR_LESS + BEYOND_THE_CATALOG)
@pytest.mark.parametrize("mode", ORACLE_MODES)
def test_rounding_agrees_with_gfloat_at_every_critical_point(name, mode, as_gfloat):
    fmt = FloatFormat.parse(name)
    theirs = as_gfloat(fmt)
    for x in critical_points(fmt):
        expected = float(round_float(theirs, x, ORACLE_MODES[mode], sat=True))
        assert same(round_value(fmt, x, mode), expected), x


@pytest.mark.parametrize("name", DTYPES)
def test_nearest_even_agrees_with_ml_dtypes_inside_the_range(name):
    fmt = FloatFormat.parse(name)
    points = [x for x in critical_points(fmt, 1 if fmt.bits <= 8 else 61) if abs(x) <= fmt.max]
    single = np.array(points, dtype=np.float32)
    theirs = single.astype(DTYPES[name]).astype(np.float64)
    for x, expected in zip(single.tolist(), theirs.tolist(), strict=True):
        assert same(round_value(fmt, x), expected), x


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_nearest_even_agrees_with_torch_inside_the_range(name):
    fmt = FloatFormat.parse(name)
    points = [x for x in critical_points(fmt, 1 if fmt.bits <= 8 else 61) if abs(x) <= fmt.max]
    single = torch.tensor(points, dtype=torch.float32)
    theirs = single.to(TORCH_DTYPES[name]).to(torch.float64)
    for x, expected in zip(single.tolist(), theirs.tolist(), strict=True):
        assert same(round_value(fmt, x), expected), x


@pytest.mark.parametrize("name", ["e7m0", "e7m0p3109", "e3m0fnuz"])
def test_ties_of_powers_of_two_go_to_the_even_code(name):
    fmt = FloatFormat.parse(name)
    assert round_value(fmt, fmt.min_subnormal / 2) == 0.0
    for rung in range(1, fmt.max_code):
        tie = 3 * fmt.magnitudes[rung] / 2
        assert encode(fmt, round_value(fmt, tie)) == rung + rung % 2


@pytest.mark.parametrize("name", EIGHT_BIT_OR_LESS + BEYOND_THE_CATALOG)
def test_every_mode_keeps_every_value(name):
    fmt = FloatFormat.parse(name)
    for code in range(1 << fmt.bits):
        value = decode(fmt, code)
        if math.isfinite(value):
            for mode in Rounding:
                u = Fraction(0) if mode == "stochastic" else None
                assert same(round_value(fmt, value, mode, u=u, average=value), value), (code, mode)


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "e7m0", "e0m7", "e3m0fnuz"])
def test_stochastic_rounding_is_unbiased_in_value(name):
    fmt = FloatFormat.parse(name)
    draws = [Fraction(k, 16) for k in range(16)]
    for (low, high), k, sign in itertools.product(itertools.pairwise(fmt.magnitudes), (0, 1, 5, 8, 15), (1, -1)):
        x = sign * (Fraction(low) + Fraction(k, 16) * (Fraction(high) - Fraction(low)))
        outcomes = [Fraction(round_value(fmt, x, "stochastic", u=u)) for u in draws]
        assert sum(outcomes) / 16 == x
        assert {abs(outcome) for outcome in outcomes} <= {low, high}


@pytest.mark.parametrize("u", [None, Fraction(1), Fraction(-1, 2)])
def test_stochastic_rounding_needs_a_draw_in_its_range(u):
    with pytest.raises(ValueError, match=r"give a Fraction in \[0, 1\)"):
        round_value(FloatFormat.parse("e4m3fn"), 0.3, "stochastic", u=u)


@pytest.mark.parametrize("name", NAMES + BEYOND_THE_CATALOG)
@pytest.mark.parametrize("mode", ORACLE_MODES)
def test_overflow_becomes_what_the_table_says(name, mode):
    fmt = FloatFormat.parse(name)
    for sign in (1, -1):
        for x in (sign * math.inf, sign * 1e300, sign * 8 * float(fmt.max)):
            assert round_value(fmt, x, mode) == sign * fmt.max
            if not fmt.has_nan:
                with pytest.raises(ValueError, match=f"{fmt} has neither infinity nor NaN"):
                    round_value(fmt, x, mode, overflow="inf")
            elif fmt.has_inf:
                assert round_value(fmt, x, mode, overflow="inf") == sign * math.inf
            else:
                assert math.isnan(round_value(fmt, x, mode, overflow="inf"))
    assert math.isnan(round_value(fmt, math.nan, mode))


def test_overflow_starts_where_the_unbounded_ladder_leaves_the_format():
    fmt = FloatFormat.parse("e4m3fn")  # the next rung would be 480, whose code is odd
    assert round_value(fmt, 464, overflow="inf") == 448
    assert math.isnan(round_value(fmt, 464.0001, overflow="inf"))
    assert round_value(fmt, 479, "toward_zero", overflow="inf") == 448
    assert math.isnan(round_value(fmt, 480, "toward_zero", overflow="inf"))
    assert round_rung(fmt, Fraction(480)) == fmt.max_code + 1


def test_an_unknown_overflow_is_refused():
    with pytest.raises(ValueError, match="'wrap' is not an overflow; choose saturate or inf"):
        round_value(FloatFormat.parse("e4m3fn"), 1e9, overflow="wrap")


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_underflow_keeps_its_sign_where_there_is_a_minus_zero(name):
    fmt = FloatFormat.parse(name)
    zero = -0.0 if fmt.has_negative_zero else 0.0
    for x in (-0.0, -fmt.min_subnormal / 4, Fraction(-fmt.min_subnormal) / 4):
        assert same(round_value(fmt, x), zero)
    assert encode(fmt, -0.0) == (1 << (fmt.bits - 1) if fmt.has_negative_zero else 0)


def test_a_wide_format_rounds_beyond_float64():
    fmt = FloatFormat.parse("e15m0")
    assert round_value(fmt, Fraction(2) ** 9000 * 5) == Fraction(2) ** 9002
    assert decode(fmt, fmt.max_code) == Fraction(2) ** 16384
    assert encode(fmt, Fraction(1, 2**16382)) == 1


@pytest.mark.parametrize("name", EIGHT_BIT_OR_LESS)
def test_neighbours_are_the_next_values(name):
    fmt = FloatFormat.parse(name)
    grid = sorted({-value for value in fmt.magnitudes} | set(fmt.magnitudes))
    for position, value in enumerate(grid):
        below = grid[position - 1] if position else None
        above = grid[position + 1] if position + 1 < len(grid) else None
        assert neighbours(fmt, encode(fmt, value)) == (below, above)


def test_special_codes_have_no_neighbours():
    with pytest.raises(ValueError, match="code 0x7f of e4m3fn is nan; only finite values have neighbours"):
        neighbours(FloatFormat.parse("e4m3fn"), 0x7F)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("e4m3fn", 0.3, "0.3 is not a value of e4m3fn; round it first"),
        ("e4m3fn", 480.0, "480.0 is not a value"),
        ("e4m3fn", math.inf, "e4m3fn has no infinity"),
        ("e2m1", math.nan, "e2m1 has no NaN"),
    ],
)
def test_encode_refuses_what_has_no_code(name, value, message):
    with pytest.raises(ValueError, match=message):
        encode(FloatFormat.parse(name), value)


def test_codes_and_fields_out_of_range_are_refused():
    fmt = FloatFormat.parse("e4m3fn")
    for code in (-1, 256):
        with pytest.raises(ValueError, match="is outside e4m3fn's 0 to 0xff"):
            decode(fmt, code)
    with pytest.raises(ValueError, match="exponent 16 does not fit e4m3fn; its largest is 15"):
        from_fields(fmt, 0, 16, 0)


@st.composite
def formats(draw):
    e = draw(st.integers(0, 8))
    m = draw(st.integers(max(0, 1 - e), 8 - e))
    choices = ["f", "fnuz", *["fn", "p3109"] * (e + m > 1), *["ieee"] * (e > 1 and m > 0)]
    return FloatFormat(e, m, draw(st.integers(-300, 300)) if e else 0, draw(st.sampled_from(choices)))


@settings(max_examples=60)
@given(formats())
def test_codes_of_any_format_ascend_and_roundtrip(fmt):
    last = None
    for rung in range(fmt.max_code + 1):
        value = Fraction(decode(fmt, rung))
        assert last is None or value > last
        assert encode(fmt, value) == rung
        assert rung == 0 or encode(fmt, -value) == rung | 1 << (fmt.bits - 1)
        last = value


@settings(max_examples=300)
@given(formats(), st.fractions(-(2**20), 2**20), st.sampled_from(list(Rounding)), st.integers(-320, 320), st.data())
def test_rounding_any_number_in_any_format_is_idempotent_odd_and_to_a_neighbour(fmt, factor, mode, shift, data):
    x = factor * Fraction(2) ** shift
    u = data.draw(st.fractions(0, 1).filter(lambda u: u < 1)) if mode == "stochastic" else None
    rounded = round_value(fmt, x, mode, u=u, average=x)
    assert round_value(fmt, rounded, mode, u=u, average=rounded) == rounded
    mirror = {Rounding.toward_positive: Rounding.toward_negative, Rounding.toward_negative: Rounding.toward_positive}
    if mode is not Rounding.nearest_ties_up:
        assert round_value(fmt, -x, mirror.get(mode, mode), u=u, average=-x) == -rounded
    if abs(x) <= fmt.magnitude(fmt.max_code):
        low, high = (Fraction(round_value(fmt, x, side)) for side in ("toward_negative", "toward_positive"))
        assert low <= x <= high
        assert rounded in (low, high)
        if mode.is_nearest:
            assert abs(Fraction(rounded) - x) == min(x - low, high - x)
        upper = neighbours(fmt, encode(fmt, round_value(fmt, x, "toward_negative")))[1]
        assert low == high or upper == high


@settings(max_examples=200)
@given(formats(), st.fractions(-1000, 1000), st.fractions(-1000, 1000), st.sampled_from(list(ORACLE_MODES)))
def test_rounding_is_monotone(fmt, a, b, mode):
    low, high = min(a, b) * Fraction(fmt.max), max(a, b) * Fraction(fmt.max)
    for shrink in (1, 1000, 10**6):
        assert round_value(fmt, low / shrink, mode) <= round_value(fmt, high / shrink, mode)
