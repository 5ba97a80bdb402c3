"""Mirrors: other places where a run's numbers are shown. The store is the memory; a mirror may fail.

    loop -> bounded queue -> one thread -> pipe -> a process of its own -> the service's client -> the service

A tracker's client is a large guest: W&B's starts a program in another language, whose death writes to our terminal, and
hooks that may wait for ever when Python ends. In a process of its own it can do neither, takes no interpreter lock from
the training thread, and a deadline ends in one kill. What can go wrong (no key, no network, a full disk, a dead
process, a queue that overflows) becomes one `warning` event; from then on the mirror takes nothing. So a service always
has the first rows of a run and no gaps, and `altgrad sync` sends the rest from the store.

A sink is a kind of the family `sink`: one file with a frozen spec, whose `open` runs in that process and gives the
Service. It decides where numbers are shown, never the numbers, so it is no part of a run's fingerprint. Calling the
client in a thread of the training process was the road not taken: measured with W&B 0.31, a core that dies prints a Go
stack trace and leaves a Python one in an exit hook.

replay(): a finished run told to a service from its beginning, out of the store.

The service takes the rows that it lacks under the run's id, so telling it twice is telling it once. What a mirror could
not deliver while the run went on is made up for here.
"""

import heapq
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any

from altgrad.spec import Kind
from altgrad.store.files import read_jsonl_backwards
from altgrad.store.link import MirrorError, MirrorPipe
from altgrad.store.runs import METRICS, Run

OPEN_SECONDS = 15.0
"""How long a service may take until it is ready."""
CLOSE_SECONDS = 12.0
"""How long the end of a run waits for a service to take what is left."""
ROWS = 4096
"""Rows and events that may wait."""
BEGINNINGS = ("started", "resumed")


class Mirror(ABC):
    """A run at one service. Lives in the process that `mirror_process` runs; whatever it raises ends the mirror."""

    where: str = ""
    """For people: an address or a folder."""

    @abstractmethod
    def metrics(self, row: int, step: int, values: Mapping[str, float]) -> None:
        """Show a row. row: its place in the run's metrics, from 0. Steps never fall; several rows may share one."""

    @abstractmethod
    def event(self, step: int, event: str, message: str) -> None:
        """Show one thing that happened."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Send what is left, and say how the run ended (`completed`, `diverged`, ...)."""


class MirrorSpec(Kind, family="sink", package="altgrad.store"):
    """Where else a run's numbers go."""

    @abstractmethod
    def open(self, run: Run, resumed_at: int | None) -> Mirror:
        """Begin, in the mirror's own process. resumed_at: None for a run told from its beginning, else the step after
        which the rows go on. Rows that the service has under this run's id are not to be shown twice.
        """


class MirrorSink:
    """A sink of a run (`altgrad.store.tracker.Sink`) that shows it at a service, and never stops or slows it.

    It waits for the event that says how the run began before it opens the service. What fails is in `complaints`.
    """

    def __init__(self, spec: MirrorSpec, run: Run) -> None:
        self.kind = spec.kind
        self._spec, self._run = spec, run
        self._mail: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._complaints: SimpleQueue[str] = SimpleQueue()
        self._link: MirrorPipe | None = None
        self._failed = threading.Event()
        self._kept = 0
        self._status = "failed"
        self._thread = threading.Thread(target=self._work, name=f"altgrad-{spec.kind}", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over a row; a copy is made. Returns at once."""
        self._post({"step": step, "values": {key: float(value) for key, value in values.items()}})

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Hand over an event."""
        if event == "resumed":
            self._kept = (self._run.path / METRICS).stat().st_size
        if event == "stopped":
            self._status = str(details.get("status", "completed"))
        self._post({"step": step, "event": event, "message": message})

    def complaints(self) -> Iterator[str]:
        """What went wrong since the last time this was asked, each in one line."""
        while not self._complaints.empty():
            yield self._complaints.get()

    def close(self) -> None:
        """Let the service finish, for at most CLOSE_SECONDS; then it is ended."""
        self._mail.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail(f"it had not taken everything {CLOSE_SECONDS:g} s after the end")
            if self._link is not None:
                self._link.kill()
            self._thread.join(1.0)

    def _post(self, item: dict[str, Any]) -> None:
        if self._failed.is_set():
            return
        if self._mail.qsize() >= ROWS:
            self._fail(f"it could not keep up, with {ROWS} rows waiting")
            return
        self._mail.put(item)

    def _work(self) -> None:
        try:
            held: list[dict[str, Any]] = []
            while not held or held[-1].get("event") not in BEGINNINGS:
                item = self._mail.get()
                if item is None:
                    return
                held.append(item)
            resumed_at = held[-1]["step"] if held[-1]["event"] == "resumed" else None
            number = itertools.count(lines(self._run, self._kept) if resumed_at is not None else 0)
            self._link = MirrorPipe(self._spec.tree(), self._run.path, resumed_at)
            self._link.opened(time.monotonic() + OPEN_SECONDS)
            for item in itertools.chain(held, iter(self._mail.get, None)):
                self._link.send(item | {"row": next(number)} if "values" in item else item)
            self._link.finish(self._status, time.monotonic() + CLOSE_SECONDS)
        except MirrorError as error:
            self._fail(str(error))
        except Exception as error:  # whatever it is, a mirror is not worth a run
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            if self._link is not None:
                self._link.kill()

    def _fail(self, why: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            self._complaints.put(
                f"{self.kind}: {why}. Every number is in the store; `altgrad sync {self._run.project}/{self._run.id}` "
                "sends it."
            )


def lines(run: Run, size: int) -> int:
    """Rows in the first `size` bytes of the run's metrics."""
    left, found = size, 0
    with (run.path / METRICS).open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            left -= len(block)
            found += block.count(b"\n")
    return found


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
