"""Codes, exactly: bit fields, decoding, encoding and rounding one number at a time with integers and Fractions.

Codes without their sign count up through the magnitudes, so a magnitude lies at a real-valued *place* on that ladder:
a rung and the fraction of the gap above it. Rounding is then choosing between rung and rung + 1, and "ties to the even
code" is the parity of an integer for every E and M, M = 0 included (where the value's own integer multiple of the
spacing would say something else; P3109's K8P1 and gfloat agree with the code).

The ladder is climbed past its top as if it went on (E = 0: in equal steps), and a result above `max_code` is an
overflow, in every rounding mode alike:

    overflow     finite, too large        +-infinity                                        NaN
    saturate     +-max                    +-max                                             NaN
    inf          the format's infinity, else its NaN, else ValueError (both columns)        NaN

IEEE 754's exception, by which truncation never overflows, is left out on purpose: what an overflow becomes is the
caller's explicit choice, not a side effect of the rounding. This file is also the oracle the tensor code is tested
against; it shares no line with it. Of a table of values the same questions are answered in `table_codes`.
"""

import functools
import math
from enum import StrEnum
from fractions import Fraction
from typing import Literal, NamedTuple

from altgrad.formats.format import FloatFormat
from altgrad.formats.number_format import NumberFormat
from altgrad.formats.rounding import Rounding

Overflow = Literal["saturate", "inf"]
"""What too large a number becomes; see the module's table."""


class CodeClass(StrEnum):
    """What kind of value a code stands for."""

    zero = "zero"
    subnormal = "subnormal"
    normal = "normal"
    infinity = "infinity"
    nan = "nan"


class Fields(NamedTuple):
    """A code taken apart; each field as the unsigned integer of its bits."""

    sign: int
    exponent: int
    mantissa: int


class RungPlace(NamedTuple):
    """Where a magnitude lies: `fraction` (in [0, 1)) of the way from `rung` to the next; rungs may exceed max_code."""

    rung: int
    fraction: Fraction


def fields(fmt: FloatFormat, code: int) -> Fields:
    """The bit fields of `code`; ValueError unless 0 <= code < 2^bits."""
    if not 0 <= code < 1 << fmt.bits:
        raise ValueError(f"code {code:#x} is outside {fmt}'s 0 to {(1 << fmt.bits) - 1:#x}.")
    magnitude = code & ~_sign_bit(fmt)
    mantissa = magnitude & ((1 << fmt.mantissa_bits) - 1)
    return Fields(int(code != magnitude), magnitude >> fmt.mantissa_bits, mantissa)


def from_fields(fmt: FloatFormat, sign: int, exponent: int, mantissa: int) -> int:
    """The code with these bit fields; ValueError when one does not fit its bits."""
    for name, value, width in (
        ("sign", sign, 1),
        ("exponent", exponent, fmt.exponent_bits),
        ("mantissa", mantissa, fmt.mantissa_bits),
    ):
        if not 0 <= value < 1 << width:
            raise ValueError(f"{name} {value} does not fit {fmt}; its largest is {(1 << width) - 1}.")
    return (sign << (fmt.bits - 1)) | (exponent << fmt.mantissa_bits) | mantissa


@functools.singledispatch
def classify(fmt: NumberFormat, code: int) -> CodeClass:
    """What kind of value `code` is. Every non-zero value of an E = 0 format is sub-normal: none has a leading one."""
    assert isinstance(fmt, FloatFormat)
    sign, exponent, _ = fields(fmt, code)
    rung = code & ~_sign_bit(fmt)
    if rung > fmt.max_code:
        return CodeClass.infinity if fmt.has_inf and rung == fmt.max_code + 1 else CodeClass.nan
    if rung == 0:
        return CodeClass.nan if sign and not fmt.has_negative_zero else CodeClass.zero
    return CodeClass.normal if exponent else CodeClass.subnormal


@functools.singledispatch
def decode(fmt: NumberFormat, code: int) -> float | Fraction:
    """The value of `code`: a float, -0.0, infinities and NaN included; a Fraction where float64 cannot hold it."""
    assert isinstance(fmt, FloatFormat)
    kind, sign = classify(fmt, code), fields(fmt, code).sign
    if kind is CodeClass.nan:
        return math.nan
    if kind is CodeClass.infinity:
        return -math.inf if sign else math.inf
    return _signed(_plain(fmt.magnitude(code & ~_sign_bit(fmt))), bool(sign))


@functools.singledispatch
def encode(fmt: NumberFormat, value: float | Fraction) -> int:
    """The code of a value that the format has; -0 becomes +0 where there is no -0, and NaN the canonical (quiet) NaN.

    ValueError for a value off the grid, and for an infinity or NaN the format has no code for.
    """
    assert isinstance(fmt, FloatFormat)
    if isinstance(value, float) and not math.isfinite(value):
        return _encode_special(fmt, value)
    rung, fraction = place(fmt, abs(Fraction(value)))
    if fraction or rung > fmt.max_code:
        raise ValueError(f"{value} is not a value of {fmt}; round it first.")
    negative = _is_negative(value) and (rung > 0 or fmt.has_negative_zero)
    return rung | (_sign_bit(fmt) if negative else 0)


def place(fmt: FloatFormat, magnitude: Fraction) -> RungPlace:
    """Where a magnitude (>= 0) lies on the format's ladder, continued beyond its top."""
    exponent = fmt.e_min - fmt.mantissa_bits
    over, under = magnitude.as_integer_ratio()  # in units of the smallest value, 2^exponent, from the next line on
    over, under = (over << -exponent, under) if exponent < 0 else (over, under << exponent)
    binade = 0  # how many binades above the lowest, whose spacing is one unit
    if fmt.exponent_bits:
        binade = max(0, (over // under).bit_length() - 1 - fmt.mantissa_bits)
    steps, rest = divmod(over, under << binade)
    return RungPlace((binade << fmt.mantissa_bits) + steps, Fraction(rest, under << binade))


@functools.singledispatch
def round_value(
    fmt: NumberFormat,
    value: float | Fraction,
    rounding: Rounding | str = Rounding.nearest_even,
    *,
    overflow: Overflow = "saturate",
    u: Fraction | None = None,
    average: float | Fraction | None = None,
) -> float | Fraction:
    """The format's value that `value` rounds to; exact for every input, however near a tie.

    `u` in [0, 1) is the uniform draw of `stochastic`, which moves away from zero iff u < fraction of the gap passed.
    `average` is what `toward_average` goes to, a finite number.
    The sign survives: a negative number that rounds to zero is -0.0 where the format has it, else 0.0. NaN stays NaN
    in every format. ValueError for a missing or misplaced `u`, and as the module's table says.
    """
    assert isinstance(fmt, FloatFormat)
    if isinstance(value, float) and math.isnan(value):
        return math.nan
    negative = _is_negative(value)
    if isinstance(value, float) and math.isinf(value):
        return _overflowed(fmt, negative, overflow)
    rung = round_rung(fmt, Fraction(value), rounding, u=u, average=average)
    if rung > fmt.max_code:
        return _overflowed(fmt, negative, overflow)
    return _signed(_plain(fmt.magnitude(rung)), negative and (rung > 0 or fmt.has_negative_zero))


def round_rung(
    fmt: FloatFormat,
    value: Fraction,
    rounding: Rounding | str = Rounding.nearest_even,
    *,
    u: Fraction | None = None,
    average: float | Fraction | None = None,
) -> int:
    """The rung, unsigned, that `value` rounds to on the ladder without a top; above `max_code` it is an overflow.

    ValueError for a missing or misplaced `u`, and a missing `average`.
    """
    at, mode = place(fmt, abs(value)), Rounding.parse(rounding)
    if mode is Rounding.toward_average:
        low, high = fmt.magnitude(at.rung), fmt.magnitude(at.rung + 1)
        if average is None:
            raise ValueError("toward_average needs the average that decides; give average=.")
        reached = Fraction(average) * (-1 if value < 0 else 1)
        return at.rung + (value != 0 and reached - low >= high - reached)
    return at.rung + _away(at, mode, value < 0, u)


@functools.singledispatch
def neighbours(fmt: NumberFormat, code: int) -> tuple[float | Fraction | None, float | Fraction | None]:
    """The next lower and next higher value of a finite `code`; None beyond +-max. ValueError for other codes."""
    assert isinstance(fmt, FloatFormat)
    if classify(fmt, code) in (CodeClass.nan, CodeClass.infinity):
        raise ValueError(f"code {code:#x} of {fmt} is {decode(fmt, code)}; only finite values have neighbours.")
    sign = fields(fmt, code).sign
    rung = code & ~_sign_bit(fmt)
    signed = -rung if sign else rung
    lower, upper = (
        _signed(_plain(fmt.magnitude(abs(r))), r < 0) if abs(r) <= fmt.max_code else None
        for r in (signed - 1, signed + 1)
    )
    return lower, upper


def _away(at: RungPlace, mode: Rounding, negative: bool, u: Fraction | None) -> bool:
    """Whether rounding leaves zero behind by one more rung."""
    half = Fraction(1, 2)
    if mode is Rounding.stochastic:
        if u is None or not 0 <= u < 1:
            raise ValueError(f"stochastic rounding draws u = {u}; give a Fraction in [0, 1).")
        return u < at.fraction
    if mode is Rounding.nearest_even:
        return at.fraction > half or (at.fraction == half and at.rung % 2 == 1)
    if mode.is_nearest:
        away = mode is Rounding.nearest_away or (mode is Rounding.nearest_ties_up and not negative)
        return at.fraction >= half if away else at.fraction > half
    if mode is Rounding.toward_zero or at.fraction == 0:
        return False
    return negative == (mode is Rounding.toward_negative)


def _overflowed(fmt: FloatFormat, negative: bool, overflow: Overflow) -> float | Fraction:
    if overflow == "saturate":
        return _signed(fmt.max, negative)
    if overflow != "inf":
        raise ValueError(f"'{overflow}' is not an overflow; choose saturate or inf.")
    if fmt.has_inf:
        return -math.inf if negative else math.inf
    if fmt.has_nan:
        return math.nan
    raise ValueError(f"{fmt} has neither infinity nor NaN for an overflow; use overflow='saturate'.")


def _encode_special(fmt: FloatFormat, value: float) -> int:
    if math.isinf(value):
        if not fmt.has_inf:
            raise ValueError(f"{fmt} has no infinity; round it first, which saturates.")
        return (fmt.max_code + 1) | (_sign_bit(fmt) if value < 0 else 0)
    if not fmt.has_nan:
        raise ValueError(f"{fmt} has no NaN; every code of it is finite.")
    if not fmt.has_negative_zero:
        return _sign_bit(fmt)
    # IEEE's quiet NaN has the highest mantissa bit set; `fn` has one NaN per sign, at the top
    return (fmt.max_code + 1) | ((1 << fmt.mantissa_bits) >> 1 if fmt.has_inf else 0)


def _sign_bit(fmt: FloatFormat) -> int:
    return 1 << (fmt.bits - 1)


def _is_negative(value: float | Fraction) -> bool:
    return math.copysign(1.0, value) < 0 if isinstance(value, float) else value < 0


def _signed(value: float | Fraction, negative: bool) -> float | Fraction:
    return -value if negative else value


def _plain(value: Fraction) -> float | Fraction:
    """A float where float64 holds the value exactly, else the Fraction itself."""
    try:
        return float(value) if float(value) == value else value
    except OverflowError:
        return value
