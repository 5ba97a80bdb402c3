"""`altgrad formats`: list the formats with a name, show the card of any, put one number under the magnifying glass,
and compare some on a tensor.

The facts come from `altgrad.formats`, the comparison from `altgrad.conversion`; this file only draws them: tables by
rich in a terminal, aligned plain text in a pipe, JSON with --json. Only `compare` needs torch, and rich is loaded when
a person looks.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from typing import Annotated, Any, NamedTuple, cast

import typer

from altgrad.cli import completion
from altgrad.cli.console import one_line_errors, print_json, say, table
from altgrad.formats import CATALOG, SCALES, AmbiguousFormatError, FloatFormat, ScaleFormat, encode, round_value
from altgrad.formats.card import (
    SCALE_SPECIALS,
    SPECIALS,
    Landmark,
    Plain,
    describe_scale,
    exact,
    format_facts,
    landmarks,
    same_grids,
    scale_landmarks,
)
from altgrad.formats.inspection import inspect_code, inspect_roundings, read_code, read_number
from altgrad.numerals import percent

app = typer.Typer(help="Number formats: any ExMy of 2 to 16 bits.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

_LINE_WIDTH = 64


class Column(NamedTuple):
    """One column of a comparison: a measure under one of the four scales."""

    title: str
    scale: str
    measure: str


COLUMNS = (
    Column("amax 2^k", "amax_power_of_two", "sqnr_db"),
    Column("amax real", "amax_real", "sqnr_db"),
    Column("best 2^k", "best_power_of_two", "sqnr_db"),
    Column("best real", "best_real", "sqnr_db"),
    Column("underflow", "amax_power_of_two", "underflow_rate"),
    Column("at best", "best_real", "underflow_rate"),
    Column("saturation at best", "best_real", "saturation_rate"),
    Column("codes used", "amax_power_of_two", "code_utilisation"),
    Column("at best", "best_real", "code_utilisation"),
)
_LEGEND = (
    "First four columns: SQNR in dB, at the scale that puts amax at the largest value (nothing saturates there) and at",
    "the scale of least squared error, among powers of two (2^k) and all; [x c]: c times the amax scale of its kind.",
    "Underflow and codes used (entropy of the codes / its maximum) are at amax 2^k, then at best real.",
    "* best of its column.",
)


@app.command("list")
def list_formats(as_json: AsJson = False) -> None:
    """List the formats that have a name; `show` and specs take any other ExMy of 2 to 16 bits as well.

    Scale formats, which are unsigned and hold scales only, come last.
    """
    formats = [FloatFormat.parse(line.name) for line in CATALOG]
    scales = [ScaleFormat.parse(line.name) for line in SCALES]
    if as_json:
        print_json([*map(format_facts, formats), *map(describe_scale, scales)])
        return
    every: list[FloatFormat | ScaleFormat] = [*formats, *scales]
    sources = [line.source for line in CATALOG] + [f"scale: {line.source}" for line in SCALES]
    rows = [
        [str(fmt), str(fmt.bits), str(fmt.code_count), _short(fmt.max), _short(_smallest(fmt)), source]
        for fmt, source in zip(every, sources, strict=True)
    ]
    table(["name", "bits", "codes", "max", "smallest", "source"], rows)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A format, such as e4m3fn, e7m0, e5m2b20 or bf16.", autocompletion=completion.formats)
    ],
    as_json: AsJson = False,
) -> None:
    """Show a format's card: limits, special codes, equal grids and the number line. An ambiguous name shows each."""
    with one_line_errors():
        scale = _scale_format(name)
        if scale is not None:
            if as_json:
                print_json(describe_scale(scale))
            else:
                _print_scale_card(scale)
            return
        try:
            formats, ambiguous = [FloatFormat.parse(name)], None
        except AmbiguousFormatError as error:
            formats, ambiguous = [FloatFormat.parse(choice) for choice in error.choices], error
        if as_json and ambiguous:
            print_json({"ambiguous": name, "formats": [format_facts(fmt) for fmt in formats]})
        elif as_json:
            print_json(format_facts(formats[0]))
        else:
            if ambiguous:
                say(f"{ambiguous}\n")
            for fmt in formats:
                _print_card(fmt)


@app.command("inspect", context_settings={"ignore_unknown_options": True})
def inspect_value(
    name: Annotated[str, typer.Argument(help="A format, such as e4m3fn.", autocompletion=completion.formats)],
    value: Annotated[str, typer.Argument(help="A number (0.3, -1/3, 2^-9), or a code (0x7e, 0b1111110).")],
    scale: Annotated[str, typer.Option("--scale", help="x ~ q * scale; a positive number, such as 2^-4.")] = "1",
    as_json: AsJson = False,
) -> None:
    """Show one number in a format: bits by field, neighbours, both gaps, and the error of each rounding."""
    with one_line_errors():
        fmt, factor = FloatFormat.parse(name), read_number(scale)
        if not isinstance(factor, Fraction) or factor <= 0:
            raise ValueError(f"--scale {scale} is no scale; give a positive number, such as 2^-4.")
        code = read_code(fmt, value)
        number = read_number(value) if code is None else None
        if code is None:
            on_grid = number / factor if isinstance(number, Fraction) else cast(float, number)
            code = encode(fmt, round_value(fmt, on_grid))
        facts: dict[str, Plain] = {"format": str(fmt), "scale": exact(factor), **inspect_code(fmt, code, factor)}
        asked = number if isinstance(number, Fraction) else None
        facts["asked"] = value
        facts["rounding"] = None if asked is None else cast(Plain, inspect_roundings(fmt, asked, factor))
        if as_json:
            print_json(facts)
        else:
            _print_inspection(facts)


@app.command()
def compare(
    formats: Annotated[
        list[str], typer.Argument(help="Formats, such as e4m3fn e5m2 e3m4.", autocompletion=completion.formats)
    ],
    dist: Annotated[
        str | None, typer.Option("--dist", help="Distributions, by commas.  [default: normal,laplace,t5]")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option("--tensor", metavar="FILE:NAME", help="A tensor of a .safetensors file instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare formats on a distribution or a tensor: SQNR at the amax and at the best scale, underflow, codes used.

    A distribution is 2^20 of its quantiles with unit variance: nothing is drawn, so the figures are always the same.
    """
    with one_line_errors():
        from altgrad.conversion.format_comparison import compare_formats

        comparisons = compare_formats(formats, dist=dist, tensor=tensor)
    if as_json:
        print_json(comparisons)
        return
    for comparison in comparisons:
        _print_comparison(comparison)
    for line in _LEGEND:
        say(line)


def _print_comparison(comparison: dict[str, Any]) -> None:
    count, finite, best = comparison["count"], comparison["finite_count"], comparison["best"]
    rows = [
        [name, *(_fit(fits, column) + "*" * (name in best[column.scale][column.measure]) for column in COLUMNS)]
        for name, fits in comparison["formats"].items()
    ]
    left_out = f", {count - finite:,} of them not finite and left out" * (count != finite)
    title = f"{comparison['name']}: {count:,} values{left_out}"
    table(["format", *(column.title for column in COLUMNS)], rows, title=title)
    say("")


def _fit(fits: dict[str, Any], column: Column) -> str:
    value = fits[column.scale][column.measure]
    if column.measure != "sqnr_db":
        return percent(value)
    amax = {"best_power_of_two": "amax_power_of_two", "best_real": "amax_real"}.get(column.scale)
    ratio = f" [x {fits[column.scale]['scale'] / fits[amax]['scale']:.3g}]" if amax else ""
    return f"{value:.2f}{ratio}"


def _print_card(fmt: FloatFormat) -> None:
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


def _scale_format(name: str) -> ScaleFormat | None:
    """The scale format of that name; None where it is none, which leaves the complaint to FloatFormat.parse."""
    try:
        return ScaleFormat.parse(name)
    except ValueError:
        return None


def _print_scale_card(fmt: ScaleFormat) -> None:
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


def _print_codes(fmt: FloatFormat | ScaleFormat, marks: Sequence[Landmark], widths: Sequence[int]) -> None:
    """The codes worth pointing at, their bits parted into fields of these widths, and the number line."""
    digits = (fmt.bits + 3) // 4
    rows = [
        [_span(mark.first, mark.last, digits), _bits(mark.first, widths), mark.meaning, _short(mark.value)]
        for mark in marks
    ]
    table(["code", "bits", "meaning", "value"], rows)
    for line in number_line(fmt):
        say(line)
    say("")


def number_line(fmt: FloatFormat | ScaleFormat) -> list[str]:
    """The positive values of a format along a linear and a logarithmic axis: how many fall in each cell.

    A cell shows | for one value, 2 to 9 for that many, # for more, a blank for none. Lines are at most 100 wide.
    """
    units = [unit for unit in map(fmt.units, range(fmt.max_code + 1)) if unit]
    last = _LINE_WIDTH - 1
    linear = [unit * last // units[-1] for unit in units]
    span = math.log2(units[-1]) or 1.0  # a single value has no span: it sits at the left
    logarithmic = [math.floor(math.log2(unit) / span * last) for unit in units]
    low, high = _short(_smallest(fmt)), _short(fmt.max)
    return [
        "positive values on a line (| one, 2-9 that many, # more, blank none)",
        f"  linear  {'0':>{len(low)}} [{_cells(linear)}] {high}",
        f"  log2    {low} [{_cells(logarithmic)}] {high}",
    ]


def _smallest(fmt: FloatFormat | ScaleFormat) -> float | Fraction | None:
    return fmt.min_positive if isinstance(fmt, ScaleFormat) else fmt.min_subnormal


def _cells(places: Sequence[int]) -> str:
    counts = [0] * _LINE_WIDTH
    for place in places:
        counts[place] += 1
    return "".join("#" if count > 9 else " |23456789"[count] for count in counts)


def _print_inspection(facts: dict[str, Plain]) -> None:
    code = cast(int, facts["code"])
    bits = " ".join(str(facts[field]) for field in ("sign", "exponent", "mantissa") if facts[field])
    rows = [
        ["code", f"{code:#x}, nearest to {facts['asked']}" if facts["rounding"] else f"{code:#x}"],
        ["sign exponent mantissa", bits],
        ["class", str(facts["class"])],
        ["value", _text(facts["value"])],
        ["below, above", f"{_text(facts['below'])}, {_text(facts['above'])}"],
        ["gap below, above", f"{_text(facts['gap_below'])}, {_text(facts['gap_above'])}"],
    ]
    scaled = "" if facts["scale"] == 1 else f" * {_text(facts['scale'])}"
    table([], rows, title=f"{facts['asked']} in {facts['format']}{scaled}")
    roundings = cast(dict[str, dict[str, Plain]] | None, facts["rounding"])
    if roundings is None:
        return
    lines = []
    for name, found in roundings.items():
        notes = ["saturates"] * bool(found["saturates"])
        if "probability" in found and found["value"] != roundings["toward_zero"]["value"]:
            notes.append(f"with probability {_text(found['probability'])}, else as toward_zero")
        values = [_text(found[key]) for key in ("value", "error", "error_in_gaps")]
        lines.append([name, values[0], f"{found['code']:#x}", *values[1:], "; ".join(notes)])
    table(["rounding", "result", "code", "error", "in gaps", ""], lines)


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


def _text(value: Plain) -> str:
    return f"{value:.9g}" if isinstance(value, float | int) else "none" if value is None else str(value)


def _short(value: float | Fraction | None) -> str:
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
