"""`altgrad runs`: what is in the store, what one run came to, where two differ, their numbers as one table.

All of it is read from the store's files, so it works beside a run that is training, and loads no torch. RUN is a run's
id, `project/id`, the unique beginning of an id, or a path. --json prints the same facts, non-finite numbers as the
strings "nan", "inf" and "-inf". Listing and removing have files of their own.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import completion
from altgrad.cli.console import one_line_errors, print_json, say, table
from altgrad.cli.run_list import list_runs, listed, step_text
from altgrad.cli.run_removal import prune, remove
from altgrad.cli.usage import Program
from altgrad.display import clean, event_text
from altgrad.metric_keys import split_key
from altgrad.numerals import counted, duration, number, size_text
from altgrad.progress import progress
from altgrad.store import Run, RunStore
from altgrad.store.files import spell_nonfinite
from altgrad.store.index import summary

app = Program(help="List, show, compare, export, remove and prune runs.", no_args_is_help=True)

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
UNSHOWN = {
    "status",
    "created",
    "project",
    "id",
    "steps",
    "step",
    "reason",
    "logged",
    "worse",
    "fingerprint",
    "spec_sha256",
    "scores",
    "data",
}
COUNTS = ("parameters", "quantised_parameters")
WORDS = {"quantised_parameters": "quantised", "ranks": "processes"}  # fmt: skip
"""Of meta.json: what is said elsewhere, and what only programs ask for; --json has all of it."""


app.command("list")(list_runs)
app.command("rm")(remove)
app.command()(prune)


@app.command()
def show(run: RunName, runs: Folder = RUNS, as_json: Json = False) -> None:
    """Show one run: who runs it, how far it came, its last numbers, checkpoints and latest events."""
    with one_line_errors():
        found = RunStore(runs).find(run)
        facts = listed(summary(found)) | _details(found)
    if as_json:
        print_json(facts)
        return
    table([], _about(facts))
    # A monitor's numbers are one for each site and quantity: hundreds, for which there are the panel and the report.
    numbers = {key: value for key, value in facts["metrics"].items() if not split_key(key)[1]}
    if numbers:
        say("")
        table([], [[key, number(value, 4)] for key, value in numbers.items()], title="last numbers")
    if facts["events"]:
        say("")
        rows = [[str(event["step"]), event_text(event["event"], event["message"])] for event in facts["events"]]
        table(["step", "event"], rows)


def _about(facts: dict[str, Any]) -> list[list[str]]:
    meta, holder = facts["meta"], facts["holder"]
    held = f" (pid {holder['pid']} on {holder['host']}, heartbeat {duration(holder['age'])} ago)" if holder else ""
    reason = f": {meta['reason']}" if meta.get("reason") else ""
    rows = [
        ["run", f"{facts['project']}/{facts['id']}"],
        ["status", facts["status"] + held + reason],
        ["step", step_text(facts)],
        ["started", f"{meta.get('created', '?')} ({duration(facts['age'])} ago)"],
        ["path", facts["path"]],
        ["size", size_text(facts["size"])],
        ["checkpoints", ", ".join(map(str, facts["checkpoints"])) or "none"],
    ]
    data = dict(meta.get("data") or {})
    if data:
        rows.append(["data", ", ".join(_flat(data.pop(key)) for key in ("source", "file") if key in data) or "–"])
    for split in ("train", "validation", "test"):
        counts = {key: data.pop(key) for key in list(data) if key.startswith(f"{split}_")}
        if counts:
            told = [_counted(count, key.removeprefix(f"{split}_")) for key, count in counts.items()]
            rows.append([f"  {split}", ", ".join(told)])
    rows += [[f"  {key}", _flat(value)] for key, value in data.items() if key != "sha256"]
    rows += [
        [WORDS.get(key, key), f"{value:,}" if key in COUNTS and isinstance(value, int) else _flat(value)]
        for key, value in meta.items() if key not in UNSHOWN and value not in ({}, [])
    ]  # fmt: skip
    sites = Counter(split_key(key)[0] for key in facts["metrics"] if split_key(key)[1])
    if sites:
        rows.append(["monitors", ", ".join(f"{group} {count}" for group, count in sites.items()) + " numbers (--json)"])
    return rows


def _counted(count: Any, things: str) -> str:
    """`1 document`, `26,213 bytes`."""
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}" if isinstance(count, int) else _flat(count)


def _flat(value: Any) -> str:
    """A value of meta.json in one line: `source sample, rows 12`."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    return number(value) if isinstance(value, float) else _plain(value)


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
        progress("comparing metrics")
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


@app.command()
def export(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Runs, named as elsewhere.  [default: all]", autocompletion=completion.run_ids
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
        say(f"{len(frame):,} values of {counted(len(chosen), 'run')} written to {facts['file']}.")


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


def _plain(value: Any) -> str:
    """A value of a spec or of meta.json in one line, as YAML and JSON would both read it."""
    return value if isinstance(value, str) else json.dumps(spell_nonfinite(value), ensure_ascii=False)
