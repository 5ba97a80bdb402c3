"""`altgrad runs`: what is in the store, what one run came to, where two differ, their numbers as one table.

All of it is read from the store's files, so it works beside a run that is training, and loads no torch. RUN is a run's
id, `project/id`, the unique beginning of an id, or a path. --json prints the same facts, non-finite numbers as the
strings "nan", "inf" and "-inf".
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import completion
from altgrad.cli.console import fail, one_line_errors, print_json, say, table
from altgrad.cli.run_view import in_short
from altgrad.display import clean
from altgrad.numerals import duration, number
from altgrad.store import STATUSES, LockedError, Run, RunStore, seconds_since
from altgrad.store.files import spell_nonfinite
from altgrad.store.index import Summary, summaries, summary

app = typer.Typer(help="Runs in the store: list, show, compare, export, find, remove.", no_args_is_help=True)

RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="An id, its unique beginning, project/id, or a path.", autocompletion=completion.run_ids
    ),
]
Folder = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

RUNS = Path("runs")
EVENTS_SHOWN = 8
LOSS = "validation/loss"


@app.command("list")
def list_runs(
    project: Annotated[
        str | None, typer.Option(help="Only runs of this project.", autocompletion=completion.projects)
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only runs of this status, such as completed or dead.")] = None,
    match: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only ids like this, as 'e5m2-*'.")] = None,
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """List runs: status, step, validation loss and main score, and the time since each was started."""
    with one_line_errors():
        if status is not None and status not in (*STATUSES, "dead"):
            raise ValueError(f"{status!r} is not a status; use one of {', '.join((*STATUSES, 'dead'))}.")
        listed = summaries(RunStore(runs), project)
        found = [_listed(one) for one in listed if match is None or fnmatchcase(one.run.id, match)]
        found = [facts for facts in found if status in (None, facts["status"])]
    if as_json:
        print_json(found)
    elif not found:
        say(f"No such runs in {runs}." if project or status or match else f"No runs in {runs}.")
    else:
        table(["id", "status", "step", "validation loss", "score", "age"], [_row(facts, project) for facts in found])


@app.command()
def show(run: RunName, runs: Folder = RUNS, as_json: Json = False) -> None:
    """Show one run: who runs it, how far it came, its last numbers, checkpoints and latest events."""
    with one_line_errors():
        found = RunStore(runs).find(run)
        facts = _summary(found) | _details(found)
    if as_json:
        print_json(facts)
        return
    holder = facts["holder"]
    held = f" (pid {holder['pid']} on {holder['host']}, heartbeat {duration(holder['age'])} ago)" if holder else ""
    rows = [
        ["run", f"{facts['project']}/{facts['id']}"],
        ["status", facts["status"] + held],
        ["path", facts["path"]],
        ["started", f"{facts['meta'].get('created', '?')} ({duration(facts['age'])} ago)"],
        ["step", _step(facts)],
        ["checkpoints", ", ".join(map(str, facts["checkpoints"])) or "none"],
    ]
    known = {"status", "created", "project", "id", "steps"}
    rows += [[key, _plain(value)] for key, value in facts["meta"].items() if key not in known]
    # Ranges are one line per site and quantity: hundreds, for which there are the panel, the report and --json.
    rows += [[key, f"{value:.6g}"] for key, value in facts["metrics"].items() if not key.startswith("range/")]
    rows += [[f"event at {event['step']}", f"{event['event']}: {event['message']}"] for event in facts["events"]]
    table([], rows)


@app.command()
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A run, named as elsewhere.", autocompletion=completion.run_ids)
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.", autocompletion=completion.run_ids)],
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """Show where two runs differ: last losses, specs, and the first step and metric. See also `altgrad compare`.

    Metrics are compared to the last bit; times (keys under time/) do not count.
    """
    from altgrad.document import Document
    from altgrad.store.compare import differing_parts, first_metric_difference, in_words, spec_differences

    with one_line_errors():
        a, b = (RunStore(runs).find(name) for name in (first, second))
        leaves, parting = spec_differences(a, b), first_metric_difference(a, b)
        specs = [Document.parse(run.spec_text(), str(run.path / "spec.yaml")).data for run in (a, b)]
        last = [summary(run).final for run in (a, b)]
        steps = a.last().get("step")
    if as_json:
        spec = [{"path": leaf.path, "a": leaf.first, "b": leaf.second} for leaf in leaves]
        metrics = parting and {"step": parting.step, "key": parting.key, "a": parting.first, "b": parting.second}
        final = {"a": last[0], "b": last[1]}
        print_json({"a": str(a.path), "b": str(b.path), "spec": spec, "metrics": metrics, "final": final})
        return
    keys = list(dict.fromkeys(key for final in last for key in final))
    rows = [[key, *(number(final[key], 5) if key in final else "-" for final in last)] for key in keys]
    rows += [[path, *map(in_words, parts)] for path, parts in differing_parts(specs)]
    if rows:
        table(["", a.id, b.id], rows)
    if not leaves:
        say("The specs are the same.")
    if parting is not None:
        values = ["absent" if value is None else repr(value) for value in (parting.first, parting.second)]
        say(f"First difference at step {parting.step}: {clean(parting.key)} = {values[0]} and {values[1]}.")
    else:
        say("There are no metrics." if steps is None else f"The metrics are the same up to the last step, {steps}.")


@app.command()
def path(run: RunName, runs: Folder = RUNS, as_json: Json = False) -> None:
    """Print the absolute path of a run's folder."""
    with one_line_errors():
        found = str(RunStore(runs).find(run).path.absolute())
    if as_json:
        print_json({"path": found})
    else:
        say(found)


@app.command("rm")
def remove(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """Delete a run with all its checkpoints, after asking. A run that some process holds is refused."""
    with one_line_errors():
        found = RunStore(runs).find(run)
        if holder := found.holder:
            raise LockedError(found.path, holder)
        size = sum(file.lstat().st_size for file in found.path.rglob("*"))
        question = f"Delete {found.project}/{found.id} ({number(size)}B at {found.path}) for good?"
        if not yes and not _confirmed(question):
            fail("Nothing was deleted.", 1)
        found.delete()
    if as_json:
        print_json({"deleted": str(found.path)})
    else:
        say(f"Deleted {found.project}/{found.id}.")


@app.command()
def export(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Runs, named as elsewhere.  [default: all]", autocompletion=completion.run_ids
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="All runs of this project.", autocompletion=completion.projects)
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file.")] = None,
    runs: Folder = RUNS,
    as_json: Json = False,
) -> None:
    """Export metrics as one tidy table: run, step, group, site, quantity, value."""
    from altgrad.store.frames import tidy_frame

    with one_line_errors():
        if (csv is None) == (parquet is None):
            raise ValueError("export writes one file: give --csv FILE or --parquet FILE.")
        if names and project is not None:
            raise ValueError("export takes runs or --project, not both.")
        store = RunStore(runs)
        chosen = [store.find(name) for name in names] if names else list(store.runs(project))
        if not chosen:
            raise ValueError(f"No runs in {runs}{'' if project is None else f'/{project}'}.")
        frame = tidy_frame(chosen)
        if csv is not None:
            frame.to_csv(csv, index=False, na_rep="nan")
        else:
            frame.to_parquet(parquet, index=False)
    facts = {"file": str(csv or parquet), "runs": len(chosen), "values": len(frame)}
    if as_json:
        print_json(facts)
    else:
        say(f"{facts['values']:,} values of {facts['runs']:,} runs written to {facts['file']}.")


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # nobody there to answer
        return False


def _summary(run: Run) -> dict[str, Any]:
    """What a listing says of a run, read from the run itself."""
    return _listed(summary(run))


def _listed(found: Summary) -> dict[str, Any]:
    """A run's facts; one that was damaged is listed as that, since the others must still be seen."""
    facts: dict[str, Any] = {"project": found.run.project, "id": found.run.id, "path": str(found.run.path)}
    try:
        age = seconds_since(str(found.meta.get("created")))
    except (ValueError, TypeError):
        return facts | {"status": "damaged", "step": None, "steps": None, LOSS: None, "score": None, "age": None}
    score = None if found.score is None else {"name": found.main, "value": found.score}
    steps = found.meta.get("steps")
    known = {"status": found.status, "step": found.step, "steps": steps, LOSS: found.loss, "score": score, "age": age}
    return facts | known


def _details(run: Run) -> dict[str, Any]:
    from altgrad.document import Document

    latest: dict[str, float] = {}
    for row in run.metrics():
        latest.update(row)
    latest.pop("step", None)
    holder = run.holder
    return {
        "holder": holder and {"pid": holder.pid, "host": holder.host, "age": holder.heartbeat_age},
        "meta": run.meta(),
        "spec": Document.parse(run.spec_text(), str(run.path / "spec.yaml")).data,
        "metrics": latest,
        "checkpoints": run.checkpoints.steps(),
        "events": list(run.events())[-EVENTS_SHOWN:],
    }


def _row(facts: dict[str, Any], project: str | None) -> list[str]:
    loss, score = facts[LOSS], facts["score"]
    return [
        facts["id"] if project else f"{facts['project']}/{facts['id']}",
        facts["status"],
        _step(facts),
        "-" if loss is None else number(loss, 5),
        "-" if score is None else f"{number(score['value'], 4)} {in_short(score['name'])}",
        duration(facts["age"]),
    ]


def _step(facts: dict[str, Any]) -> str:
    step = 0 if facts["step"] is None else facts["step"]
    return f"{step}/{facts['steps']}" if facts["steps"] is not None else str(step)


def _plain(value: Any) -> str:
    """A value of a spec or of meta.json in one line, as YAML and JSON would both read it."""
    return value if isinstance(value, str) else json.dumps(spell_nonfinite(value), ensure_ascii=False)
