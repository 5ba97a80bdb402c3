"""`altgrad sync`: tell W&B or TensorBoard what the store knows of runs, from their beginning.

For what a mirror could not deliver, and for runs that never had one. Repeating it changes nothing: a service has a run
under its id, and gets the rows that it lacks.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import completion, console
from altgrad.progress import progress
from altgrad.store import RunStore


def sync(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Ids, their beginnings, project/id, or paths.",
            show_default=False,
            autocompletion=completion.run_ids,
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="Every run of this project that is not running.", autocompletion=completion.projects),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="SINK", help="A kind of sink or YAML for one; left out: as the run's own `track` says."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
) -> None:
    """Send runs of the store to W&B or TensorBoard.

    Repeating it changes nothing.
    """
    store = RunStore(runs)
    with console.one_line_errors():
        found = [store.find(name) for name in names or ()]
        if project is not None:
            found += [run for run in store.runs(project) if run.status != "running"]
        if not found:
            raise ValueError(f"{'no runs in project ' + project if project else 'name a run, or a --project'}.")
        chosen = [(run, sink) for run in found for sink in _sinks(run, to)]
    failed = sum(not _send(run, sink) for run, sink in chosen)
    if failed:
        raise typer.Exit(3)


def _sinks(run: Any, to: str | None) -> list[Any]:
    """Where this run goes. ValueError if nobody says."""
    from altgrad.document import Document
    from altgrad.spec.credentials import refuse_credentials
    from altgrad.store.mirror import MirrorSpec

    document = Document.parse(run.spec_text() if to is None else f"track: [{to}]", "--to" if to else str(run.path))
    refuse_credentials(document)
    told = document.data.get("track") or []
    if not told:
        raise ValueError(f"{run.project}/{run.id} has no `track` in its spec; say where: --to wandb.")
    return [MirrorSpec.of(each) for each in told]


def _send(run: Any, sink: Any) -> bool:
    from altgrad.store.link import MirrorError
    from altgrad.store.mirror import replay

    name = f"{run.project}/{run.id}"
    progress(f"sending {name} to {sink.kind}")
    try:
        where = replay(run, sink, lambda step, last: progress(f"sending {name} to {sink.kind}", step, last))
    except (MirrorError, ValueError) as error:
        console.say(f"{name} -> {sink.kind}: {str(error).rstrip('.')}.", sys.stderr)
        return False
    console.say(f"{name} -> {sink.kind}: {where}")
    return True
