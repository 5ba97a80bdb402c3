"""One number or one code under the magnifying glass: its bits, its neighbours, and what each rounding does to it.

A number is read exactly as written (0.1 is one tenth, not the double nearest to it) and divided by the scale exactly:
x ~ q * scale. Errors are result - x in the units of x; `error_in_gaps` divides by the gap that x lies in, so nearest
stays within 1/2 and a directed rounding within 1. Beyond +-max, where results saturate, it grows past that.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction

from altgrad.formats.card import Plain, exact
from altgrad.formats.codes import classify, decode, encode, fields, neighbours, place, round_rung, round_value
from altgrad.formats.format import FloatFormat
from altgrad.formats.number_format import NumberFormat
from altgrad.formats.rounding import Rounding
from altgrad.formats.table import TableFormat


def read_number(text: str) -> float | Fraction:
    """The number a person wrote: `0.3`, `-1e-4`, `1/3`, `2^-9`, `nan`, `inf`, `-0`; ValueError for anything else."""
    try:
        if "^" in text:
            base, exponent = text.split("^")
            if base.lstrip("+-") == "2" and abs(int(exponent)) <= 1 << 16:
                return (-1 if base.startswith("-") else 1) * Fraction(2) ** int(exponent)
        elif text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return float(text)
        else:
            number = Fraction(text) if len(text) < 100 and abs(_decimal_exponent(text)) < 20000 else None
            if number is not None:
                return -0.0 if number == 0 and text.startswith("-") else number
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"'{text}' is not a number; write 0.3, 1/3, 2^-9, inf, nan, or a code as 0x7e or 0b1111110.")


def read_code(fmt: NumberFormat, text: str) -> int | None:
    """The code a person wrote as 0x.. or 0b..; None when it is no code but perhaps a number."""
    if not text.lower().startswith(("0x", "0b")):
        return None
    try:
        code = int(text, 0)
    except ValueError:
        raise ValueError(f"'{text}' is not a code; write hexadecimal like 0x7e or binary like 0b1111110.") from None
    decode(fmt, code)  # says what is out of range
    return code


@functools.singledispatch
def inspect_code(fmt: NumberFormat, code: int, scale: Fraction) -> dict[str, Plain]:
    """What a code is: bits by field, class, value, neighbours and both gaps; `below`, `above` are null beyond max."""
    assert isinstance(fmt, FloatFormat)
    sign, exponent, mantissa = fields(fmt, code)
    return {
        "code": code,
        "sign": f"{sign:b}",
        "exponent": f"{exponent:0{fmt.exponent_bits}b}" if fmt.exponent_bits else "",
        "mantissa": f"{mantissa:0{fmt.mantissa_bits}b}" if fmt.mantissa_bits else "",
        **_surroundings(fmt, code, scale),
    }


@inspect_code.register
def _(fmt: TableFormat, code: int, scale: Fraction) -> dict[str, Plain]:
    """The same of a table, whose bits have no fields: they stand under `bits`."""
    no_fields: dict[str, Plain] = {"code": code, "bits": f"{code:0{fmt.bits}b}", "sign": "", "exponent": ""}
    return no_fields | {"mantissa": "", **_surroundings(fmt, code, scale)}


def _surroundings(fmt: NumberFormat, code: int, scale: Fraction) -> dict[str, Plain]:
    value = decode(fmt, code)
    finite = not isinstance(value, float) or math.isfinite(value)
    below, above = neighbours(fmt, code) if finite else (None, None)

    def gap(low: float | Fraction | None, high: float | Fraction | None) -> float | str | None:
        return None if low is None or high is None else exact((Fraction(high) - Fraction(low)) * scale)

    return {
        "class": str(classify(fmt, code)),
        "value": exact(_scaled(value, scale)),
        "below": None if below is None else exact(_scaled(below, scale)),
        "above": None if above is None else exact(_scaled(above, scale)),
        "gap_below": gap(below, value),
        "gap_above": gap(value, above),
    }


@functools.singledispatch
def inspect_roundings(fmt: NumberFormat, value: Fraction, scale: Fraction) -> dict[str, Plain]:
    """What every rounding makes of `value` (in units of x), saturating: value, code, error, error_in_gaps, saturates.

    `stochastic` has two outcomes: its value is the farther one from zero, with `probability`; otherwise the result is
    that of toward_zero. `toward_average` is left out, since a number alone has no average.
    """
    assert isinstance(fmt, FloatFormat)
    grid_value = value / scale
    at = place(fmt, abs(grid_value))
    gap = (fmt.magnitude(at.rung + 1) - fmt.magnitude(at.rung)) * scale

    def overflows(rounding: Rounding, draw: Fraction | None) -> bool:
        return round_rung(fmt, grid_value, rounding, u=draw) > fmt.max_code

    return _roundings(fmt, value, scale, gap, at.fraction, overflows)


@inspect_roundings.register
def _(fmt: TableFormat, value: Fraction, scale: Fraction) -> dict[str, Plain]:
    grid_value, ends = value / scale, fmt.extended
    index, passed = fmt.place(grid_value)
    low = min(index, len(ends) - 2)
    gap = (Fraction(ends[low + 1]) - Fraction(ends[low])) * scale

    def overflows(rounding: Rounding, draw: Fraction | None) -> bool:
        return not 0 < fmt.round_index(grid_value, rounding, draw) < len(ends) - 1

    return _roundings(fmt, value, scale, gap, passed if grid_value >= 0 else (1 - passed) % 1, overflows)


def _roundings(
    fmt: NumberFormat,
    value: Fraction,
    scale: Fraction,
    gap: Fraction,
    probability: Fraction,
    overflows: Callable[[Rounding, Fraction | None], bool],
) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    grid_value = value / scale
    for rounding in Rounding:
        if rounding is Rounding.toward_average:
            continue
        draw = Fraction(0) if rounding is Rounding.stochastic else None
        rounded = round_value(fmt, grid_value, rounding, u=draw)
        error = Fraction(rounded) * scale - value
        found[str(rounding)] = {
            "value": exact(_scaled(rounded, scale)),
            "code": encode(fmt, rounded),
            "error": exact(error),
            "error_in_gaps": exact(error / gap),
            "saturates": overflows(rounding, draw),
            **({"probability": exact(probability)} if draw is not None else {}),
        }
    return found


def _decimal_exponent(text: str) -> int:
    return int(text.lower().partition("e")[2] or 0)


def _scaled(value: float | Fraction, scale: Fraction) -> float | Fraction:
    """value * scale, with zeros' signs, infinities and NaN kept."""
    if isinstance(value, float) and (value == 0 or not math.isfinite(value)):
        return value
    return Fraction(value) * scale
