"""`altgrad compare`: which of several arms is better, and how sure that is: `altgrad.compare`, drawn.

The answer stands first. Below it, where there are any: what differs in the arms' settings, a row an arm, and what was
taken for granted.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import completion, console
from altgrad.cli.console import drawable, fail, one_line_errors, print_json, say, table
from altgrad.cli.curves import KeptCurve, extremes
from altgrad.numerals import signed

CURVE, SHORTEST, VERDICT = 20, 6, 16
"""Blocks of a curve; below so many it is left out, and so many columns of a terminal are the verdict's."""
BLOCKS = "▁▂▃▄▅▆▇█"


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="Runs, projects, CSV, JSON or JSON-lines files, folders of TensorBoard, or wandb:ENTITY/PROJECT.",
            show_default=False,
            autocompletion=completion.run_ids,
        ),
    ],
    reference: Annotated[
        str | None, typer.Option(metavar="ARM", help="The arm that the others are compared with, or a run of it.")
    ] = None,
    key: Annotated[str, typer.Option(metavar="METRIC", help="What is compared.")] = "validation/loss",
    margin: Annotated[float, typer.Option(help="Differences smaller than this count as equivalent.")] = 0.01,
    higher: Annotated[bool, typer.Option("--higher", help="Higher values are better, as of a score.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page as well.")] = None,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 6 if an arm is worse, with 7 if none is but one is undecided."),
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say which of several arms is better, and how sure that is.

    Takes runs of AltGrad and of any other loop. Runs that differ in their seed alone are one arm, and arms are paired
    by seed. One seed an arm decides nothing.
    """
    from altgrad.reports.compare import compare_runs, data_of
    from altgrad.reports.comparison_page import write_page

    with one_line_errors():
        try:
            found = compare_runs(
                targets, runs=runs, metric=key, reference=reference, margin=margin,
                better="higher" if higher else "lower",
            )  # fmt: skip
        except ImportError as error:
            fail(str(error), 3)
        if html is not None:
            write_page(found, html)
    if as_json:
        print_json(data_of(found))
    else:
        _draw(found)
        if html is not None:
            say(f"page  {html}")
    if exit_code:
        raise typer.Exit(found.exit_code)


def _draw(found: Any) -> None:
    from altgrad.reports.rows import columns_of, rows_of

    console.paragraph(found.sentence)
    if found.differences:
        say("")
        header, cells = found.settings
        table(header, [[*map(_short, row[:-1]), row[-1]] for row in cells], title="what differs")
    say("")
    lost = ("diverged",) * any(arm.diverged for arm in found.arms.values())
    header, cells = columns_of(rows_of(found), "arm", "mean", "difference", "95 % interval", "n", *lost)
    taken = sum(2 + max(map(len, column)) for column in zip(header, *cells, strict=True))
    blocks = min(CURVE, console.width() - taken - VERDICT - 2) if console.interactive() else CURVE
    rows = [{**row, "curve": _sparkline(*found.curve(row["arm"]), blocks=blocks)} for row in rows_of(found)]
    table(*columns_of(rows, *header, "curve", "verdict"))
    for line in [*found.said_of_curves, *_fragile(found), *found.notes]:
        console.paragraph(line)


def _sparkline(steps: Any, values: Any, *, blocks: int) -> str:
    """The curve as one row of blocks; empty where there are few points or no room, or the terminal has no blocks."""
    if len(steps) < 3 or blocks < SHORTEST or not drawable():
        return ""
    kept = KeptCurve()
    for step, value in zip(steps, values, strict=True):
        kept.add(int(step), float(value))
    columns = [column for column in kept.columns(blocks) if column is not None]
    low, high = extremes(columns) or (0.0, 1.0)
    span = high - low or 1.0
    return "".join("×" if each.broken else BLOCKS[round((each.high - low) / span * 7)] for each in columns)


def _fragile(found: Any) -> list[str]:
    return [
        f"{arm.arm}: with few seeds and skewed noise the interval may be too narrow; Bonferroni's "
        f"[{signed(arm.bonferroni.low)}, {signed(arm.bonferroni.high)}] says {arm.bonferroni_verdict}."
        for arm in found.verdict.judged if arm.is_fragile
    ]  # fmt: skip


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
