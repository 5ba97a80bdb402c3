"""`altgrad formats compare`: which of some formats keeps most of a tensor, and at which scale.

The figures are those of `altgrad.measures.format_fit`; here they are asked for and drawn. torch is loaded inside the
command, since the rest of `altgrad formats` answers without it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from altgrad.cli.console import one_line_errors, print_json, say, table
from altgrad.formats import FloatFormat
from altgrad.numerals import percent

DISTRIBUTIONS = "normal,laplace,t5"


class Column(NamedTuple):
    """One column of the table: a measure under one of the four scales."""

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
MORE_IS_BETTER = {"sqnr_db": True, "underflow_rate": False, "saturation_rate": False, "code_utilisation": True}
LEGEND = (
    "First four columns: SQNR in dB, at the scale that puts amax at the largest value (nothing saturates there) and at",
    "the scale of least squared error, among powers of two (2^k) and all; [x c]: c times the amax scale of its kind.",
    "Underflow and codes used (entropy of the codes / its maximum) are at amax 2^k, then at best real.",
    "* best of its column.",
)

Json = dict[str, Any]


def compare(
    formats: Annotated[list[str], typer.Argument(help="Formats, such as e4m3fn e5m2 e3m4.")],
    dist: Annotated[
        str | None, typer.Option("--dist", help=f"Distributions, by commas.  [default: {DISTRIBUTIONS}]")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option("--tensor", metavar="FILE:NAME", help="A tensor of a .safetensors file instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare formats on a distribution or a tensor: SQNR at the amax and at the best scale, underflow, codes used.

    A distribution is 2^20 of its quantiles with unit variance: nothing is drawn, so the figures are always the same.
    """
    with one_line_errors():
        chosen = list(dict.fromkeys(FloatFormat.parse(name) for name in formats))
        if dist is not None and tensor is not None:
            raise ValueError("--dist and --tensor name two different things to compare on; give one of them.")
        found = [_compared(name, values, chosen) for name, values in _inputs(dist, tensor).items()]
        if as_json:
            print_json(found)
            return
        for comparison in found:
            _print(comparison)
        for line in LEGEND:
            say(line)


def _inputs(dist: str | None, tensor: str | None) -> dict[str, Any]:
    """What to compare on, by name; all of it is made before any figure is, so that a mistake shows at once."""
    from altgrad.data.tensor_file import read_tensor
    from altgrad.measures.reference_sample import reference_sample

    if tensor is None:
        names = dict.fromkeys(name.strip() for name in (DISTRIBUTIONS if dist is None else dist).split(","))
        return {name: reference_sample(name) for name in names}
    path, separator, name = tensor.rpartition(":")
    if not separator or not path or not name:
        raise ValueError(f"--tensor {tensor} names no tensor; write FILE:NAME, such as model.safetensors:embed.weight.")
    return {name: read_tensor(path, name)}


def _compared(name: str, values: Any, formats: Sequence[FloatFormat]) -> Json:
    """The figures of one input, as --json prints them."""
    from altgrad.measures.format_fit import fit_formats

    formats_fits = fit_formats(values, formats)
    found: Json = {
        fmt: {scale: cast_fit._asdict() for scale, cast_fit in fit._asdict().items()}
        for fmt, fit in formats_fits.items()
    }
    scales = next(iter(found.values()))
    return {
        "name": name,
        "count": values.numel(),
        "finite_count": int(values.isfinite().sum()),
        "formats": found,
        "best": {scale: {measure: best_of(found, scale, measure) for measure in MORE_IS_BETTER} for scale in scales},
    }


def best_of(formats: Mapping[str, Json], scale: str, measure: str) -> list[str]:
    """The formats that are best in a measure under a scale, ties included; none where all are alike."""
    sign = 1 if MORE_IS_BETTER[measure] else -1
    values = {name: fits[scale][measure] * sign for name, fits in formats.items()}
    known = [value for value in values.values() if not math.isnan(value)]
    if not known or min(known) == max(known):
        return []
    return [name for name, value in values.items() if value == max(known)]


def _print(comparison: Json) -> None:
    formats, count, finite = comparison["formats"], comparison["count"], comparison["finite_count"]
    best = comparison["best"]
    rows = [
        [name, *(_cell(fits, column) + "*" * (name in best[column.scale][column.measure]) for column in COLUMNS)]
        for name, fits in formats.items()
    ]
    left_out = f", {count - finite:,} of them not finite and left out" * (count != finite)
    title = f"{comparison['name']}: {count:,} values{left_out}"
    table(["format", *(column.title for column in COLUMNS)], rows, title=title)
    say("")


def _cell(fits: Json, column: Column) -> str:
    value = fits[column.scale][column.measure]
    if column.measure != "sqnr_db":
        return percent(value)
    amax = {"best_power_of_two": "amax_power_of_two", "best_real": "amax_real"}.get(column.scale)
    ratio = f" [x {fits[column.scale]['scale'] / fits[amax]['scale']:.3g}]" if amax else ""
    return f"{value:.2f}{ratio}"
