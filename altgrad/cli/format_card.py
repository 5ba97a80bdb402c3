"""The card of a format as a person sees it: its facts, the codes worth pointing at, and its values on a line."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from typing import cast

from altgrad.cli.console import say, table
from altgrad.formats import FloatFormat, NumberFormat, ScaleFormat, TableFormat
from altgrad.formats.card import (
    SCALE_SPECIALS,
    SPECIALS,
    Landmark,
    describe_scale,
    exact,
    format_facts,
    landmarks,
    same_grids,
    scale_landmarks,
    table_facts,
    table_landmarks,
)

_LINE_WIDTH = 64


def print_card(fmt: FloatFormat) -> None:
    """The card of an ExMy."""
    card = format_facts(fmt)
    normal = f", {fmt.max_binade - fmt.e_min + 1} of them normal" if fmt.exponent_bits else ""
    per_binade = f"{1 << fmt.mantissa_bits} per normal binade" if fmt.exponent_bits else "1, 2, 4 ... a binade"
    alike = ", ".join(f"{_times(shift)}{name}" for name, shift in same_grids(fmt))
    domain = "yes" if fmt.in_tensor_domain else "no: they run in float32, which is narrower"
    facts = [
        ["source", str(card["source"] or "none: an ExMy without a name of its own")],
        ["also called", ", ".join(cast(list[str], card["aliases"])) or "-"],
        ["fields", f"1 sign, {fmt.exponent_bits} exponent, {fmt.mantissa_bits} mantissa: {fmt.bits} bits"],
        ["bias", str(fmt.bias) if fmt.exponent_bits else "none: fixed point"],
        ["specials", f"{fmt.specials}: {SPECIALS[fmt.specials]}"],
        ["max", _full(fmt.max)],
        ["min normal", _full(fmt.min_normal)],
        ["min sub-normal", _full(fmt.min_subnormal) if card["min_subnormal"] is not None else "none"],
        ["range", f"{card['binades']} binades{normal}"],
        ["codes", per_binade],
        ["finite codes", f"{fmt.code_count} of {1 << fmt.bits}"],
        ["same grid as", alike or "no other named format"],
        ["casts in tensors", domain],
    ]
    table([], facts, title=str(fmt))
    _print_codes(fmt, landmarks(fmt), (1, fmt.exponent_bits, fmt.mantissa_bits))


def print_table_card(fmt: TableFormat) -> None:
    """The card of a table of values."""
    line = table_facts(fmt)
    facts = [
        ["table", f"{len(fmt.values)} codes, {len(fmt.ranked)} values: {fmt.bits} bits"],
        ["source", str(line["source"] or "none: values without a name")],
        ["also called", ", ".join(cast(list[str], line["aliases"])) or "-"],
        ["highest", _full(fmt.highest)],
        ["lowest", _full(fmt.lowest)],
        ["max", f"{_full(fmt.max)}, where scales put amax"],
        ["smallest", _full(fmt.min_positive)],
        ["range", f"{line['binades']} binades"],
        ["finite codes", f"{fmt.code_count} of {1 << fmt.bits}"],
        ["midpoints", "halfway" if fmt.midpoints is None else "its own"],
        ["zero", "+0 and -0" if fmt.has_negative_zero else "one" if fmt.zero_codes else "none"],
    ]
    table([], facts, title=fmt.short_name)
    _print_codes(fmt, table_landmarks(fmt), (fmt.bits,))


def print_scale_card(fmt: ScaleFormat) -> None:
    """The card of a scale format."""
    card = describe_scale(fmt)
    facts = [
        ["scale format", "unsigned: holds the scale of a block or a tensor, never its values"],
        ["source", str(card["source"] or "none: a width without a name of its own")],
        ["also called", ", ".join(cast(list[str], card["aliases"])) or "-"],
        ["fields", f"{card['exponent_bits']} exponent, {card['mantissa_bits']} mantissa: {fmt.bits} bits"],
        ["bias", str(fmt.bias)],
        ["specials", f"{fmt.specials}: {SCALE_SPECIALS[fmt.specials]}"],
        ["max", _full(fmt.max)],
        ["min positive", _full(fmt.min_positive)],
        ["finite codes", f"{fmt.code_count} of {1 << fmt.bits}"],
        ["rounds", "to the nearest, ties to the even code" if fmt.has_zero else "to the nearest, ties up"],
    ]
    table([], facts, title=str(fmt))
    _print_codes(fmt, scale_landmarks(fmt), (fmt.bits - fmt.precision + 1, fmt.precision - 1))


def _print_codes(fmt: NumberFormat | ScaleFormat, marks: Sequence[Landmark], widths: Sequence[int]) -> None:
    """The codes worth pointing at, their bits parted into fields of these widths, and the number line."""
    digits = (fmt.bits + 3) // 4
    rows = [
        [_span(mark.first, mark.last, digits), _bits(mark.first, widths), mark.meaning, short(mark.value)]
        for mark in marks
    ]
    table(["code", "bits", "meaning", "value"], rows)
    for line in number_line(fmt):
        say(line)
    say("")


def number_line(fmt: NumberFormat | ScaleFormat) -> list[str]:
    """The positive values of a format along a linear and a logarithmic axis: how many fall in each cell.

    A cell shows | for one value, 2 to 9 for that many, # for more, a blank for none. Lines are at most 100 wide.
    """
    units = _positive_units(fmt)
    if not units:
        return []
    last = _LINE_WIDTH - 1
    linear = [unit * last // units[-1] for unit in units]
    first = math.log2(units[0])
    span = math.log2(units[-1]) - first or 1.0  # a single value has no span: it sits at the left
    logarithmic = [math.floor((math.log2(unit) - first) / span * last) for unit in units]
    low, high = short(fmt.min_positive), short(fmt.highest if isinstance(fmt, NumberFormat) else fmt.max)
    return [
        "positive values on a line (| one, 2-9 that many, # more, blank none)",
        f"  linear  {'0':>{len(low)}} [{_cells(linear)}] {high}",
        f"  log2    {low} [{_cells(logarithmic)}] {high}",
    ]


def _positive_units(fmt: NumberFormat | ScaleFormat) -> list[int]:
    """The positive values, ascending, as whole multiples of some number."""
    if isinstance(fmt, TableFormat):
        return [int(Fraction(value) * 2**149) for value in fmt.ranked if value > 0]
    assert isinstance(fmt, FloatFormat | ScaleFormat)
    return [unit for unit in map(fmt.units, range(fmt.max_code + 1)) if unit]


def _cells(places: Sequence[int]) -> str:
    counts = [0] * _LINE_WIDTH
    for place in places:
        counts[place] += 1
    return "".join("#" if count > 9 else " |23456789"[count] for count in counts)


def _span(first: int, last: int, digits: int) -> str:
    start = f"0x{first:0{digits}x}"
    return start if first == last else f"{start}-0x{last:0{digits}x}"


def _bits(code: int, widths: Sequence[int]) -> str:
    digits = iter(f"{code:0{sum(widths)}b}")
    return " ".join("".join(islice(digits, width)) for width in widths if width)


def _times(shift: int) -> str:
    if shift == 0:
        return ""
    if abs(shift) > 9:
        return f"2^{shift} x "
    return f"{1 << shift} x " if shift > 0 else f"1/{1 << -shift} x "


def short(value: float | Fraction | None) -> str:
    """A limit in few characters: a power of two outside 2^-3..2^13 as such, everything else to six digits."""
    if value is None:
        return "-"
    power = _power_of_two(value)
    if power is not None and not -4 < power < 14:
        return f"2^{power}"
    shown = exact(value)
    return shown if isinstance(shown, str) else f"{shown:.6g}"


def _full(value: float | Fraction | None) -> str:
    """A limit in full: in decimal, and as a power of two when it is one."""
    if value is None:
        return "none"
    power, shown = _power_of_two(value), exact(value)
    decimal = "" if isinstance(shown, str) else f"{shown:.12g}"
    return " = ".join(part for part in (f"2^{power}" if power is not None else "", decimal or str(shown)) if part)


def _power_of_two(value: float | Fraction) -> int | None:
    if not isinstance(value, Fraction) and not math.isfinite(value):
        return None
    numerator, denominator = Fraction(value).as_integer_ratio()
    if numerator <= 0 or numerator & (numerator - 1) or denominator & (denominator - 1):
        return None
    return numerator.bit_length() - denominator.bit_length()
