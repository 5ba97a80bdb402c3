"""`altgrad report`: a project's verdict in the terminal, and the report as files: `altgrad.report`, drawn."""

from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import completion, console
from altgrad.cli.console import fail, one_line_errors, print_json, say, table


def report(
    project: Annotated[
        str | None,
        typer.Option(
            help="The project whose runs are reported; needed unless --from is given.",
            autocompletion=completion.projects,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")] = Path("runs"),
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="wandb:ENTITY/PROJECT|FILE",
            help="Read the runs from Weights & Biases instead, all their steps, or from a report's runs.parquet ("
            "several if the project was run in several places).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the report goes; reports/<project> if left out.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive/--static", help="Figures by plotly.js (5 MB), or SVG without any script.")
    ] = False,
    tuning_seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Seeds that chose learning rates; found from the runs if left out."),
    ] = None,
    pair: Annotated[
        str, typer.Option(metavar="FIRST,SECOND", help="The two optimizers that the verdict compares.")
    ] = "adamw,manifold_adamw",
    reference: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="The arm to compare with, or a run of it; else the twin or the least cast."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON instead of text.")] = False,
) -> None:
    """Write a project's report. Verdict, intervals and figures, as HTML, Markdown, LaTeX and data."""
    from altgrad.reports import report as reports

    with one_line_errors():
        try:
            found = reports.report(
                project, runs=runs, sources=source or (), out=out, interactive=interactive,
                tuning_seeds=_seeds(tuning_seeds), pair=_pair(pair), reference=reference,
            )  # fmt: skip
        except ImportError as error:
            fail(str(error), 3)
    if as_json:
        print_json(found.data() | {"report": str(found.path)})
        return
    console.paragraph(found.headline)
    say(found.counts)
    if found.rows:
        say("")
        table(*found.rows)
        say("")
    for line in found.notes:
        say(line)
    say(f"report  {found.path.resolve().as_uri() if console.interactive() else found.path}")


def _seeds(text: str | None) -> tuple[int, ...]:
    words = [word for word in (text or "").split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--tuning-seeds is {text!r}; write whole numbers with commas, as 0,1,2.")
    return tuple(int(word) for word in words)


def _pair(text: str) -> tuple[str, str]:
    first, _, second = (word.strip() for word in text.partition(","))
    if not (first and second) or "," in second:
        raise ValueError(f"--pair is {text!r}; write two optimizers with a comma, as adamw,madam.")
    return first, second
