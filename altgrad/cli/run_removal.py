"""`altgrad runs rm` and `altgrad runs prune`: removing runs, or what nobody needs of them, after asking.

Nothing is removed of a run that some process holds; of several that are named, then nothing at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import completion
from altgrad.cli.console import fail, one_line_errors, print_json, say
from altgrad.numerals import counted, size_text
from altgrad.progress import progress, rest
from altgrad.store import STATUSES, LockedError, Run, RunStore, seconds_since

Folder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
RUNS = Path("runs")
NAMED = 10
DAY = 86400.0


def remove(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Ids, their beginnings, project/id, paths, or patterns ('e5*').",
            autocompletion=completion.run_ids,
        ),
    ],
    yes: Yes = False,
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """Delete runs with all their checkpoints, after asking. Runs in use are refused."""
    with one_line_errors():
        store = RunStore(runs)
        chosen = list(dict.fromkeys(run for name in names for run in _named(store, name)))
        _refuse_held(chosen)
        _ask("Permanently delete", [(run, run.size()) for run in chosen], yes, "Nothing was deleted.")
        for number, run in enumerate(chosen):
            progress("deleting", number, len(chosen))
            run.delete()
    if as_json:
        paths = [str(run.path) for run in chosen]
        print_json({"deleted": paths[0] if len(names) == 1 == len(paths) else paths})
    else:
        say(f"Deleted {_words(chosen)}.")


def prune(
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="S", help="Also delete all runs of this status, as failed or dead; repeatable."),
    ] = None,
    older: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Only runs that were started before that.")
    ] = 0.0,
    yes: Yes = False,
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """Free disk space: all checkpoints but the last, and runs that `train --resume never` archived; after asking.

    Numbers, specs and the last checkpoint stay, so every run can still be resumed, evaluated and reported.
    """
    with one_line_errors():
        statuses = set(status or ())
        if unknown := statuses - {*STATUSES, "dead"} | statuses & {"running"}:
            known = ", ".join(name for name in (*STATUSES, "dead") if name != "running")
            raise ValueError(f"{sorted(unknown)[0]!r} is not a status that can be pruned; use one of {known}.")
        whole, thinned = _prunable(RunStore(runs), project, statuses, older * DAY)
        for what, sized in (("", whole), (" all checkpoints but the last of", thinned)):
            _ask(f"Permanently delete{what}", sized, yes or not sized, "Nothing was removed.")
        freed = sum(size for _, size in whole)
        for run, _ in whole:
            run.delete()
        for number, (run, _) in enumerate(thinned):
            progress("removing checkpoints", number, len(thinned))
            freed += run.prune()
    if as_json:
        paths = [[str(run.path) for run, _ in each] for each in (whole, thinned)]
        print_json({"deleted": paths[0], "thinned": paths[1], "bytes": freed})
    elif whole or thinned:
        say(f"Deleted {counted(len(whole), 'run')}, removed checkpoints of {len(thinned)}; {size_text(freed)} freed.")
    else:
        say("Nothing to prune.")


Sized = list[tuple[Run, int]]


def _prunable(store: RunStore, project: str | None, statuses: set[str], age: float) -> tuple[Sized, Sized]:
    """Runs to delete, and runs to take checkpoints of, with the bytes that frees. Running and damaged ones are left."""
    whole: Sized = []
    thinned: Sized = []
    for number, run in enumerate(store.runs(project, set_aside=True)):
        progress("reading the store", number)
        try:
            status, created = run.status, str(run.meta().get("created"))
            if status == "running" or (age and seconds_since(created) < age):
                continue
        except (ValueError, TypeError, OSError):
            continue
        if run.is_set_aside or status in statuses:
            whole.append((run, run.size()))
        elif size := run.prunable():
            thinned.append((run, size))
    return whole, thinned


def _named(store: RunStore, name: str) -> list[Run]:
    return store.matching(name) if any(mark in name for mark in "*?[") else [store.find(name)]


def _refuse_held(runs: Sequence[Run]) -> None:
    for run in runs:
        if holder := run.holder:
            raise LockedError(run.path, holder)


def _ask(what: str, sized: Sequence[tuple[Run, int]], yes: bool, otherwise: str) -> None:
    """Ask before something is removed; without a yes, say what `otherwise` says and leave with 1."""
    if yes:
        return
    rest()
    total = size_text(sum(size for _, size in sized))
    if len(sized) == 1:
        (run, _) = sized[0]
        question = f"{what} {run.project}/{run.id} ({total} at {run.path})?"
    else:
        for run, size in sized[:NAMED]:
            typer.echo(f"{run.project}/{run.id}  {size_text(size)}", err=True)
        if len(sized) > NAMED:
            typer.echo(f"and {len(sized) - NAMED} more", err=True)
        question = f"{what} {len(sized)} runs ({total})?"
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:  # nobody there to answer
        agreed = False
        typer.echo("", err=True)
    if not agreed:
        fail(otherwise, 1)


def _words(runs: Sequence[Run]) -> str:
    return f"{runs[0].project}/{runs[0].id}" if len(runs) == 1 else f"{len(runs)} runs"
