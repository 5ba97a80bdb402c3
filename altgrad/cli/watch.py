"""`altgrad watch RUN`: the panel of a run that another process trains, by what that process leaves in the store.

Nothing is asked of the run itself: its two logs are read from the start and then followed, so an onlooker can come
and go, on another host that shares the disk too. A run resumed from a checkpoint takes its logs back to that step
and writes the rest again; the curves then let go of what came after it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from altgrad.cli import completion, console
from altgrad.cli.panel import WATCHING, PlainLines, RunPanel, choose
from altgrad.progress import progress
from altgrad.store.files import Tail
from altgrad.store.runs import EVENTS, METRICS, Run, RunStore, recorded_scores
from altgrad.store.tracker import Sink

POLL_SECONDS = 0.5
# What an event row has besides its details.
EVENT_KEYS = ("step", "event", "message", "time")
BEGINNINGS = ("started", "resumed")


def recall(run: Run, sink: Sink) -> None:
    """Tell a panel what the run said before it was stopped, so that the curves of a resumed run begin at its beginning.

    Plain lines and others are told nothing: whoever keeps them has the earlier ones.
    """
    if isinstance(sink, RunPanel):
        _tell(sink, Tail(run.path / METRICS), Tail(run.path / EVENTS))


def follow(run: Run, sink: RunPanel | PlainLines, wait: Callable[[float], None] = time.sleep) -> str:
    """Feed `sink` from the run's logs until the run is no longer running; returns its status. The caller closes
    `sink`.

    A run whose process was killed calls itself running for ever; the store knows better (`dead`), and so this ends.
    It is asked twice, since a run that is being resumed is held by nobody for a moment.
    """
    metrics, events = Tail(run.path / METRICS), Tail(run.path / EVENTS)
    doubts = 0
    while True:
        status = run.status  # read before the logs: what it wrote before it stopped is then certainly in them
        told = _tell(sink, metrics, events)
        doubts = doubts + 1 if status == "dead" else 0
        if (status not in ("running", "dead")) or doubts > 1 or not sink.heard:
            break
        if told:
            sink.late(metrics.age())
        wait(POLL_SECONDS)
    sink.status(status)
    return status


def _tell(sink: RunPanel | PlainLines, metrics: Tail, events: Tail) -> bool:
    """Pass the new rows on in the order of their steps, an event after the numbers of its step; whether there were
    any.
    """
    told = False
    numbers = ((row["step"], 1, row) for row in metrics.rows())
    happenings = ((row["step"], 0 if row.get("event") in BEGINNINGS else 2, row) for row in events.rows())
    for step, place, row in heapq.merge(numbers, happenings, key=lambda item: item[:2]):
        told = True
        if place != 1:
            details = {key: value for key, value in row.items() if key not in EVENT_KEYS}
            sink.event(step, str(row.get("event", "?")), str(row.get("message", "")), **details)
        else:
            sink.metrics(step, {key: value for key, value in row.items() if key != "step" and _is_number(value)})
    return told


def _is_number(value: object) -> bool:
    """Whether this becomes a float: no text, no structure, no integer beyond float's range."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 1000)


def _evaluate_every(run: Run) -> int:
    """Steps between two evaluations of a run; 0 where its spec does not say."""
    from altgrad.document import Document

    found = Document.parse(run.spec_text(), str(run.path / "spec.yaml")).data.get("evaluate_every")
    return found if isinstance(found, int) else 0


def watch(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's id, `project/id`, the unique beginning of an id, or a path.",
            autocompletion=completion.run_ids,
        ),
    ],
    runs: Annotated[Path, typer.Option(help="The folder that holds all runs.")] = Path("runs"),
) -> None:
    """Watch a run that another process trains, until it ends. Ctrl-C leaves the run alone."""
    try:
        found = RunStore(runs).find(run)
        progress(f"watching {found.id}")
        meta = found.meta()
        steps = meta.get("steps")
        references, worse = meta.get("references"), meta.get("worse")
        sink = choose(
            found.id,
            steps if isinstance(steps, int) else 0,
            references if isinstance(references, dict) else None,
            worse if isinstance(worse, dict) else None,
            recorded_scores(meta),
            WATCHING,
        )
        sink.watched.evaluate_every = _evaluate_every(found)
        try:
            status = follow(found, sink)
        finally:
            sink.close()
    except ValueError as error:
        console.fail(error, 2)
    except OSError as error:
        console.fail(console.reason(error), 3)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    console.say(f"{found.id}: {status}")
