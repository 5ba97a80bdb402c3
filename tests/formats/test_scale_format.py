"""Scale formats against ml_dtypes, torch and gfloat: every code, and every point where rounding is hard."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import Domain, RoundMode, decode_float, round_float
from gfloat.formats import Signedness, format_info_ocp_e8m0, format_info_p3109

from altgrad.formats import SCALES, FloatFormat, Rounding, ScaleFormat
from altgrad.formats.catalog import SCALE_ALIASES

E8M0 = ScaleFormat.parse("e8m0fnu")
EVERY = pytest.mark.parametrize("fmt", [ScaleFormat.parse(line.name) for line in SCALES], ids=str)
UNSIGNED = [(width, precision) for width in range(2, 9) for precision in range(1, width + 1)]
MODES = {
    Rounding.nearest_even: RoundMode.TiesToEven,
    Rounding.nearest_away: RoundMode.TiesToAway,
    Rounding.toward_zero: RoundMode.TowardZero,
    Rounding.toward_positive: RoundMode.TowardPositive,
    Rounding.toward_negative: RoundMode.TowardNegative,
}


def hard_points(fmt):
    """Every value, the quarters of every gap, and what lies beyond the top."""
    values = [Fraction(fmt.decode(code)) for code in range(fmt.max_code + 1)]
    above = [*values[1:], 2 * values[-1]]
    return [low + (high - low) * Fraction(k, 4) for low, high in zip(values, above, strict=True) for k in range(4)]


def float32_around(fmt):
    """The same as float32 with their neighbours, within the range."""
    exact = np.array([float(point) for point in hard_points(fmt)], dtype=np.float64)
    exact = exact[exact <= fmt.max].astype(np.float32)
    points = np.unique(
        np.concatenate([exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(3e38))])
    )
    return points[(points >= np.float32(fmt.min_positive)) & (points <= np.float32(fmt.max))]


def test_every_code_of_e8m0fnu_has_the_value_ml_dtypes_torch_and_gfloat_give_it():
    codes = np.arange(256, dtype=np.uint8)
    ours = [E8M0.decode(int(code)) for code in codes]
    np.testing.assert_array_equal(ours, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64))
    np.testing.assert_array_equal(ours, torch.from_numpy(codes).view(torch.float8_e8m0fnu).to(torch.float32).numpy())
    np.testing.assert_array_equal(ours, [decode_float(format_info_ocp_e8m0, int(code)).fval for code in codes])


def codes_of_others(x):
    """What ml_dtypes and torch, which must agree, make of float32 x as e8m0fnu."""
    theirs = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist()
    assert theirs == torch.from_numpy(x).to(torch.float8_e8m0fnu).view(torch.uint8).tolist()
    return theirs


def test_e8m0fnu_rounds_as_ml_dtypes_and_torch_do_from_the_smallest_normal_float32_on():
    x = float32_around(E8M0)
    x = x[x >= np.float32(2.0**-126)]
    assert len(x) > 2000
    assert [E8M0.encode(E8M0.round(float(value))) for value in x] == codes_of_others(x)


def test_below_that_they_round_everything_up_and_we_and_gfloat_to_the_nearest():
    """A float32 sub-normal has no implied leading one, and both read its bits as if its lower neighbour were 0."""
    x = float32_around(E8M0)
    x = x[x < np.float32(2.0**-126)]
    ours = [E8M0.round(float(value)) for value in x]
    assert codes_of_others(x) == [int(value > 2.0**-127) for value in x.tolist()]
    assert ours == [2.0**-127 if value < 1.5 * 2.0**-127 else 2.0**-126 for value in x.tolist()]
    assert ours == [round_float(format_info_ocp_e8m0, value, RoundMode.TiesToAway) for value in x.tolist()]


@pytest.mark.parametrize(("width", "precision"), UNSIGNED)
@pytest.mark.parametrize(("kind", "domain"), [("ue", Domain.Extended), ("uf", Domain.Finite)])
def test_unsigned_p3109_formats_decode_and_round_as_gfloat_does(width, precision, kind, domain):
    fmt, theirs = (
        ScaleFormat.parse(f"p3109_k{width}p{precision}{kind}"),
        format_info_p3109(width, precision, Signedness.Unsigned, domain),
    )
    np.testing.assert_array_equal(
        [fmt.decode(code) for code in range(1 << width)],
        [decode_float(theirs, code).fval for code in range(1 << width)],
    )
    if (width, precision, kind) == (2, 2, "ue"):
        assert theirs.max == 0.75 and fmt.max == 0.5  # gfloat 0.5 overlooks that infinity's code is in the last binade
        return
    in_range = [float(point) for point in hard_points(fmt) if point <= fmt.max]
    for ours, mode in MODES.items():
        found = [fmt.round(value, ours) for value in in_range]
        assert found == [round_float(theirs, value, mode, sat=True) for value in in_range]


@EVERY
def test_decode_and_encode_are_inverse_on_every_code(fmt):
    codes = [fmt.encode(fmt.decode(code)) for code in range(1 << fmt.bits)]
    assert codes == list(range(1 << fmt.bits))


@EVERY
def test_rounding_is_idempotent_monotone_and_to_the_nearest(fmt):
    points = hard_points(fmt)
    for mode in MODES:
        rounded = [fmt.round(point, mode) for point in points]
        assert rounded == sorted(rounded)
        assert [fmt.round(value, mode) for value in rounded] == rounded
    values = [Fraction(fmt.decode(code)) for code in range(fmt.max_code + 1)]
    for point in points[:: max(1, len(points) // 64)]:
        assert abs(Fraction(fmt.round(point)) - point) == min(abs(value - point) for value in values)


@EVERY
def test_ties_go_up_without_a_zero_and_to_the_even_code_with_one(fmt):
    for code in range(fmt.max_code):
        low, high = fmt.decode(code), fmt.decode(code + 1)
        tie = (Fraction(low) + Fraction(high)) / 2
        assert fmt.encode(fmt.round(tie)) == (code + 1 if not fmt.has_zero or code % 2 else code)


@EVERY
def test_what_lies_outside_the_range_saturates_or_overflows_as_told(fmt):
    beyond = Fraction(fmt.max) * 2
    assert fmt.round(beyond) == fmt.round(math.inf) == fmt.max
    overflowed = [fmt.round(beyond, overflow="inf"), fmt.round(math.inf, overflow="inf")]
    assert all(value == math.inf if fmt.has_inf else math.isnan(value) for value in overflowed)
    assert math.isnan(fmt.round(math.nan))
    below = Fraction(fmt.min_positive) / 1000
    assert fmt.round(below) == fmt.round(0.0) == fmt.round(-0.0) == (0 if fmt.has_zero else fmt.min_positive)


@EVERY
def test_every_name_and_alias_parses_back_and_is_no_format_for_values(fmt):
    assert ScaleFormat.parse(str(fmt)) == fmt == ScaleFormat.parse(str(fmt).upper())
    spellings = [str(fmt), *(alias for alias, name in SCALE_ALIASES.items() if name == str(fmt))]
    for spelling in spellings:
        assert ScaleFormat.parse(spelling) == fmt
        with pytest.raises(ValueError, match=f"{spelling} is an unsigned scale format, not one for values"):
            FloatFormat.parse(spelling)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScaleFormat.parse("e4m3fn"), "'e4m3fn' is not a scale format. Write e8m0fnu or binary<K>p<P>u<e|f>."),
        (lambda: ScaleFormat.parse("e8m0fn"), "'e8m0fn' is not a scale format. Did you mean 'e8m0fnu'?"),
        (lambda: ScaleFormat.parse("binary8p9ue"), "precision 9 is outside 1 to 8 for 8 bits and ue."),
        (lambda: ScaleFormat.parse("e9m0fnu"), "a scale format of 9 bits is none of ours; they have 2 to 8."),
        (lambda: ScaleFormat(8, 2, "fnu"), "precision 2 is outside 1 to 1 for 8 bits and fnu."),
        (lambda: E8M0.decode(256), "code 0x100 is outside e8m0fnu's 0 to 0xff."),
        (lambda: E8M0.encode(3.0), "3.0 is not a value of e8m0fnu; round it first."),
        (lambda: E8M0.encode(0.0), "0.0 is not a value of e8m0fnu; round it first."),
        (lambda: E8M0.encode(2.0**-128), "is not a value of e8m0fnu; round it first."),
        (lambda: E8M0.encode(math.inf), "inf is not a value of e8m0fnu; round it"),
        (lambda: E8M0.encode(-1.0), "-1.0 is not a value of e8m0fnu; scales are positive."),
        (lambda: E8M0.round(-1.0), "-1.0 is negative, and e8m0fnu holds scales; scale by the magnitude."),
        (lambda: E8M0.round(-math.inf), "-inf is negative"),
        (lambda: E8M0.round(1.0, "stochastic"), "e8m0fnu is a scale format, whose roundings are deterministic"),
        (lambda: E8M0.round(1e39, overflow="wrap"), "'wrap' is not an overflow; choose saturate or inf."),
    ],
)
def test_a_mistake_is_a_value_error_with_a_remedy(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
