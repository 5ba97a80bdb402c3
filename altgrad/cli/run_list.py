"""`altgrad runs list`: one row a run, in the columns and the order that are asked for.

A column is one of COLUMNS, a field of the spec by its path (`optimizer.lr`), or a metric by its key (`train/loss`),
whose last value is shown. The numbers of a column are written alike. Only what is shown is read.
"""

import json
import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad.cli import completion
from altgrad.cli.console import one_line_errors, print_json, say, table
from altgrad.cli.run_view import in_short
from altgrad.numerals import alike, duration, size_text
from altgrad.store import STATUSES, RunStore, seconds_since
from altgrad.store.files import spell_nonfinite
from altgrad.store.index import Summary, summaries

LOSS = "validation/loss"
Facts = dict[str, Any]


def _said(value: Any) -> str:
    return "-" if value is None else str(value)


COLUMNS: Mapping[str, tuple[str, Callable[[Facts], Any], Callable[[Any], str] | None]] = {
    "id": ("id", lambda facts: facts["id"], _said),
    "project": ("project", lambda facts: facts["project"], _said),
    "status": ("status", lambda facts: facts["status"], _said),
    "step": ("step", lambda facts: facts["step"], _said),
    "loss": ("validation loss", lambda facts: facts[LOSS], None),
    "score": ("score", lambda facts: facts["score"] and facts["score"]["value"], None),
    "age": ("age", lambda facts: facts["age"], duration),
    "size": ("size", lambda facts: facts["size"], size_text),
    "seed": ("seed", lambda facts: facts["meta"].get("seed"), _said),
    "parameters": ("parameters", lambda facts: facts["meta"].get("parameters"), _said),
}
"""By name: the heading, the value in a run's facts, and how it is written; None for numbers written alike."""
USUAL = "id,status,step,loss,score,age,size"


def list_runs(
    project: Annotated[
        str | None, typer.Option(help="Only runs of this project.", autocompletion=completion.projects)
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only runs of this status, such as completed or dead.")] = None,
    match: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only ids like this, as 'e5m2-*'.")] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="C,C", help=f"Of {', '.join(COLUMNS)}; a field of the spec (optimizer.lr); a metric (train/loss)."
        ),
    ] = USUAL,
    sort: Annotated[
        str | None, typer.Option(metavar="C", help="Sort by a column, its lowest first; -C: its highest first.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N of them.")] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List runs: status, step, validation loss and main score, age and size, or the columns you name."""
    with one_line_errors():
        if status is not None and status not in (*STATUSES, "dead"):
            raise ValueError(f"{status!r} is not a status; use one of {', '.join((*STATUSES, 'dead'))}.")
        names = [known(name.strip(), "--columns") for name in columns.split(",") if name.strip()]
        by, backwards = (known(sort.removeprefix("-"), "--sort"), sort.startswith("-")) if sort else ("", False)
        found = summaries(RunStore(runs), project)
        kept = [each for each in found if match is None or fnmatchcase(each.run.id, match)]
        rows = [(listed(each), each) for each in kept if status in (None, each.status)]
        if by:
            keys = [_order(value, backwards) for value in _column(by, rows)]
            rows = [rows[index] for index in sorted(range(len(rows)), key=lambda index: keys[index])]
        rows = rows[:limit]
        cells = [_cells(name, rows, project) for name in names] if not as_json else []
    if as_json:
        extra = [name for name in names if name not in COLUMNS]
        shown = [{key: value for key, value in facts.items() if key != "meta"} for facts, _ in rows]
        print_json([each | {name: _value(name, *row) for name in extra} for each, row in zip(shown, rows, strict=True)])
    elif not rows:
        say(f"No such runs in {runs}." if project or status or match else f"No runs in {runs}.")
    else:
        table([_heading(name, rows) for name in names], list(zip(*cells, strict=True)))


def known(name: str, option: str) -> str:
    """The column that is named. ValueError for what can be none."""
    if name not in COLUMNS and "." not in name and "/" not in name and not name.isidentifier():
        raise ValueError(f"{option}: {name!r} names no column; use {', '.join(COLUMNS)}, optimizer.lr, train/loss.")
    return name


def listed(found: Summary) -> Facts:
    """A run's facts; one that was damaged is listed as that, since the others must still be seen."""
    facts: Facts = {"project": found.run.project, "id": found.run.id, "path": str(found.run.path), "meta": found.meta}
    facts["size"] = found.size
    try:
        age = seconds_since(str(found.meta.get("created")))
    except (ValueError, TypeError):
        return facts | {"status": "damaged", "step": None, "steps": None, LOSS: None, "score": None, "age": None}
    score = None if found.score is None else {"name": found.main, "value": found.score}
    steps = found.meta.get("steps")
    now = {"status": found.status, "step": found.step, "steps": steps, LOSS: found.loss, "score": score, "age": age}
    return facts | now


def step_text(facts: Facts) -> str:
    """`3/4`."""
    step = 0 if facts["step"] is None else facts["step"]
    return f"{step}/{facts['steps']}" if facts["steps"] is not None else str(step)


def _value(name: str, facts: Facts, found: Summary) -> Any:
    """What a run has in a column; None for nothing, and for all of a run that cannot be read."""
    if name in COLUMNS:
        return COLUMNS[name][1](facts)
    try:
        if "/" in name:
            return found.run.last(name).get(name)
        from altgrad.document import Document

        value: Any = Document.recorded(found.run.spec_text(), "spec.yaml").data
        for part in name.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (ValueError, OSError, LookupError, TypeError):
        return None
    return value


def _order(value: Any, backwards: bool) -> tuple[int, float, str]:
    """Numbers before texts before nothing, in either direction; NaN counts as nothing."""
    if isinstance(value, int | float) and not math.isnan(value):
        return 0, -value if backwards else value, ""
    if value is None or isinstance(value, float):
        return 2, 0.0, ""
    text = str(value)
    return 1, 0.0, "".join(chr(0x10FFFF - ord(letter)) for letter in text) if backwards else text


def _column(name: str, rows: list[tuple[Facts, Summary]]) -> list[Any]:
    """The values of a column. ValueError for one that no run has anything in."""
    values = [_value(name, *row) for row in rows]
    if rows and name not in COLUMNS and all(value is None for value in values):
        from altgrad.spec import did_you_mean

        raise ValueError(f"none of {len(rows)} runs has {name!r} in its spec or metrics.{did_you_mean(name, COLUMNS)}")
    return values


def _cells(name: str, rows: list[tuple[Facts, Summary]], project: str | None) -> list[str]:
    """The column in words; numbers are written alike, and `table` sets them to the right."""
    values = _column(name, rows)
    if name == "id" and not project:
        return [f"{facts['project']}/{facts['id']}" for facts, _ in rows]
    if name == "step":
        return [step_text(facts) for facts, _ in rows]
    if name == "score":
        texts = alike(values)
        if _heading(name, rows) != "score":
            return texts
        return [
            f"{text} {in_short(facts['score']['name'])}" if facts["score"] else text
            for text, (facts, _) in zip(texts, rows, strict=True)
        ]
    write = COLUMNS[name][2] if name in COLUMNS else None
    if write is not None:
        return ["-" if value is None else write(value) for value in values]
    if name == "loss" or "/" in name:
        return alike(values)
    return [value if isinstance(value, str) else _plain(value) for value in values]


def _heading(name: str, rows: list[tuple[Facts, Summary]]) -> str:
    """What stands above a column; the score's own name where all runs that have one share it."""
    scores = {facts["score"]["name"] for facts, _ in rows if facts["score"]} if name == "score" else set()
    return in_short(scores.pop()) if len(scores) == 1 else COLUMNS[name][0] if name in COLUMNS else name


def _plain(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return "-" if value is None else json.dumps(spell_nonfinite(value))
