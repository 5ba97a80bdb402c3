"""replay(): a finished run told to a service from its beginning, out of the store.

The service takes the rows that it lacks under the run's id, so telling it twice is telling it once. What a mirror could
not deliver while the run went on is made up for here.
"""

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

from altgrad.store.files import read_jsonl_backwards
from altgrad.store.link import MirrorPipe
from altgrad.store.mirror import OPEN_SECONDS, MirrorSpec
from altgrad.store.runs import METRICS, Run

FINISH_SECONDS = 600.0


def replay(run: Run, spec: MirrorSpec, on_row: Callable[[int, int], None] = lambda step, last: None) -> str:
    """Tell the service everything of the run; where it shows it. on_row: hears the step of each row, and the last one.

    ValueError for a run that is running, which its own process mirrors; LinkError if the service fails.
    """
    status = run.status
    if status == "running":
        raise ValueError(f"run {run.id} is running; wait for its end, or stop it, before it is replayed.")
    last = next((int(row["step"]) for row in read_jsonl_backwards(run.path / METRICS)), 0)
    link = MirrorPipe(spec.tree(), run.path, None)
    try:
        where = link.opened(time.monotonic() + OPEN_SECONDS)
        for item in _items(run):
            link.send(item)
            on_row(item["step"], last)
        link.finish(status, time.monotonic() + FINISH_SECONDS)
    finally:
        link.kill()
    return where


def _items(run: Run) -> Iterator[dict[str, Any]]:
    """Rows and events in the order of their steps, a step's rows before its events."""
    rows = (
        {"row": number, "step": row.pop("step"), "values": {key: float(value) for key, value in row.items()}}
        for number, row in enumerate(run.metrics())
    )
    events = ({key: event[key] for key in ("step", "event", "message")} for event in run.events())
    return heapq.merge(rows, events, key=lambda item: item["step"])
