"""`altgrad report`: a project's verdict in the terminal, and the report as files.

The heavy part (scipy, plotly, matplotlib, jinja2: the extra `report`) is imported inside the command. torch is not
needed: everything is read from the store, or from W&B.
"""

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli.console import fail, interactive, one_line_errors, print_json, say, table
from altgrad.store import RunStore

NEEDED = ("scipy", "jinja2", "plotly", "matplotlib")


def report(
    project: Annotated[
        str | None, typer.Option(help="The project whose runs are reported; needed unless --from is given.")
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
    static: Annotated[
        bool, typer.Option("--static", help="report.html without any script: small, figures as SVG.")
    ] = False,
    tuning_seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Seeds that chose learning rates; found from the runs if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON instead of text.")] = False,
) -> None:
    """Write a project's report: verdict with intervals, reasons and figures, as HTML, Markdown, LaTeX and data."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        fail(f"altgrad report needs {', '.join(missing)}; install them with: pip install 'altgrad[report]'.", 3)
    with one_line_errors():
        found = _read(project, runs, source or [], _seeds(tuning_seeds))
    from altgrad.reports.report import write_report

    with one_line_errors():
        folder = out or Path("reports") / found.name
        write_report(found, folder, static=static)
    _tell(found, folder, as_json)


def _seeds(text: str | None) -> tuple[int, ...]:
    words = [word for word in (text or "").split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"--tuning-seeds is {text!r}; write whole numbers with commas, as 0,1,2.")
    return tuple(int(word) for word in words)


def _read(project: str | None, runs: Path, sources: list[str], tuning: tuple[int, ...]) -> Any:
    from altgrad.reports.archive import load_archives
    from altgrad.reports.project import load
    from altgrad.reports.wandb_runs import load_from_wandb

    if sources and project is not None:
        raise ValueError("--project and --from both name runs; give one of them.")
    if len(sources) == 1 and sources[0].startswith("wandb:"):
        return load_from_wandb(sources[0], tuning=tuning)
    if sources:
        return load_archives([Path(source) for source in sources], tuning=tuning)
    if project is None:
        known = sorted({run.project for run in RunStore(runs).runs()})
        if len(known) != 1:
            raise ValueError(f"--project is needed; {runs} holds {', '.join(known[:8]) or 'no runs'}.")
        project = known[0]
    return load(RunStore(runs), project, tuning=tuning)


def _tell(project: Any, folder: Path, as_json: bool) -> None:
    from altgrad.reports.terminal import as_data, lines, rows

    page = folder / "report.html"
    if as_json:
        print_json(as_data(project) | {"report": str(page)})
        return
    head, foot = lines(project)
    for line in head:
        say(line)
    if cells := rows(project):
        say("")
        table(*cells)
        say("")
    for line in foot:
        say(line)
    say(f"report  {page}" if not interactive() else f"report  {page.resolve().as_uri()}")
