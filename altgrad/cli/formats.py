"""`altgrad formats`: list the formats with a name, show the card of any, put one number under the magnifying glass,
and compare some on a tensor.

The facts come from `altgrad.formats`, the comparison from `altgrad.conversion`; this file only draws them: tables by
rich in a terminal, aligned plain text in a pipe, JSON with --json. Only `compare` needs torch, and rich is loaded when
a person looks.
"""

from fractions import Fraction
from typing import Annotated, Any, NamedTuple, cast

import typer

from altgrad.cli import completion
from altgrad.cli.console import one_line_errors, print_json, say, table
from altgrad.cli.format_card import print_card, print_scale_card, print_table_card, short
from altgrad.cli.usage import Program
from altgrad.formats import (
    CATALOG,
    SCALES,
    TABLES,
    AmbiguousFormatError,
    FloatFormat,
    NumberFormat,
    ScaleFormat,
    TableFormat,
    encode,
    parse_format,
    round_value,
)
from altgrad.formats.card import Plain, describe_scale, exact, format_facts, table_facts
from altgrad.formats.inspection import inspect_code, inspect_roundings, read_code, read_number
from altgrad.numerals import percent

app = Program(help="Show and compare formats: any ExMy, and tables of values.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


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

    Then come tables of values, which no ExMy describes, and scale formats, which are unsigned and hold scales only.
    """
    formats = [FloatFormat.parse(line.name) for line in CATALOG]
    tables = [cast(TableFormat, parse_format(line.name)) for line in TABLES]
    scales = [ScaleFormat.parse(line.name) for line in SCALES]
    if as_json:
        print_json([*map(format_facts, formats), *map(table_facts, tables), *map(describe_scale, scales)])
        return
    every: list[NumberFormat | ScaleFormat] = [*formats, *tables, *scales]
    sources = [line.source for line in CATALOG] + [f"table: {line.source}" for line in TABLES]
    sources += [f"scale: {line.source}" for line in SCALES]
    rows = [
        [str(fmt), str(fmt.bits), str(fmt.code_count), short(fmt.max), short(fmt.min_positive), source]
        for fmt, source in zip(every, sources, strict=True)
    ]
    table(["name", "bits", "codes", "max", "smallest", "source"], rows)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A format, such as e4m3fn, e7m0, e5m2b20, bf16, nf4 or '[-1, 0, 1]'.",
            autocompletion=completion.formats,
        ),
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
                print_scale_card(scale)
            return
        table_format = _table_format(name)
        if table_format is not None:
            if as_json:
                print_json(table_facts(table_format))
            else:
                print_table_card(table_format)
            return
        try:
            formats, ambiguous = [cast(FloatFormat, parse_format(name))], None
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
                print_card(fmt)


@app.command("inspect", context_settings={"ignore_unknown_options": True})
def inspect_value(
    name: Annotated[str, typer.Argument(help="A format, such as e4m3fn.", autocompletion=completion.formats)],
    value: Annotated[str, typer.Argument(help="A number (0.3, -1/3, 2^-9), or a code (0x7e, 0b1111110).")],
    scale: Annotated[str, typer.Option("--scale", help="x ~ q * scale; a positive number, such as 2^-4.")] = "1",
    as_json: AsJson = False,
) -> None:
    """Show one number in a format: bits by field, neighbours, both gaps, and the error of each rounding."""
    with one_line_errors():
        fmt, factor = parse_format(name), read_number(scale)
        if not isinstance(factor, Fraction) or factor <= 0:
            raise ValueError(f"--scale {scale} is not a scale; give a positive number, such as 2^-4.")
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


def _scale_format(name: str) -> ScaleFormat | None:
    """The scale format of that name; None where it is none, which leaves the complaint to FloatFormat.parse."""
    try:
        return ScaleFormat.parse(name)
    except ValueError:
        return None


def _table_format(name: str) -> TableFormat | None:
    """The table of that name or of those values; None for any other format, and for what is none."""
    if name.strip().startswith(("[", "{")):
        return cast(TableFormat, parse_format(name))
    try:
        found = parse_format(name)
    except ValueError:
        return None
    return found if isinstance(found, TableFormat) else None


def _print_inspection(facts: dict[str, Plain]) -> None:
    code = cast(int, facts["code"])
    fields = ["bits"] if "bits" in facts else ["sign", "exponent", "mantissa"]
    bits = " ".join(str(facts[field]) for field in fields if facts[field])
    rows = [
        ["code", f"{code:#x}, nearest to {facts['asked']}" if facts["rounding"] else f"{code:#x}"],
        [" ".join(fields), bits],
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


def _text(value: Plain) -> str:
    return f"{value:.9g}" if isinstance(value, float | int) else "none" if value is None else str(value)
