"""Where a run's numbers go: any number of sinks, of which the run's own two files are one.

    metrics.jsonl   {"step": 10, "train/loss": 2.31, "time/wall_seconds": 3.2}
    events.jsonl    {"step": 12, "event": "alarm", "time": "2026-03-01T12:00:00.000Z", "message": "..."}

`step` counts finished optimizer steps; several lines may share one. Everything that depends on a clock has a key under
`time/`, so that two identical runs write the same bytes everywhere else. A resumed run first takes its files back to
the step of its checkpoint (`RunFiles.rewind`) and writes the same lines again: the loop must therefore log all of step
k before it checkpoints step k.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol, TypeAlias, runtime_checkable

from altgrad.store.files import Appender, truncate_jsonl, utc_now
from altgrad.store.runs import EVENTS, METRICS, Run

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"


class Sink(Protocol):
    """A place that numbers and events go to: the run's files, a panel in the terminal, an experiment tracker.

    A sink whose loss must not stop a run (a remote service) handles its own failures; an error raised here stops it.
    """

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values measured after `step` finished optimizer steps, by key."""

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        """Take one thing that happened: `event` is its kind (started, alarm, ...), `message` one line for people."""

    def close(self) -> None:
        """Finish; nothing is sent after this."""


@runtime_checkable
class FallibleSink(Sink, Protocol):
    """A sink that may fail without stopping the run, and says so here."""

    def complaints(self) -> Iterator[str]:
        """What went wrong since the last time this was asked, each in one line."""


class Tracker:
    """A sink that passes everything on to its sinks, in their order; what one complains of is a `warning` to all."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks
        self._fallible = [sink for sink in sinks if isinstance(sink, FallibleSink)]
        self._step = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the values on; without values nothing is passed."""
        self._step = step
        if values:
            for sink in self.sinks:
                sink.metrics(step, values)
        self._pass_complaints(self.sinks)

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        """Pass the event on."""
        self._step = step
        for sink in self.sinks:
            sink.event(step, event, message, **details)
        self._pass_complaints(self.sinks)

    def close(self) -> None:
        """Close every sink, the last first, even if one of them raises; those left hear its complaints."""
        with ExitStack() as stack:
            for number, sink in enumerate(self.sinks):
                stack.callback(self._pass_complaints, self.sinks[:number])
                stack.callback(sink.close)

    def _pass_complaints(self, sinks: Sequence[Sink]) -> None:
        for fallible in self._fallible:
            for complaint in fallible.complaints():
                for sink in sinks:
                    sink.event(self._step, "warning", complaint)


class RunFiles:
    """The sink that appends to the run's metrics.jsonl and events.jsonl; held by the process that holds the run.

    A torn last line that a death left is cut when the file is opened, and a `notice` event says so.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line. Whatever turns into a float is taken (a tensor or array of one element); ints stay ints."""
        assert "step" not in values, "step is the line's own key"
        numbers = {key: int(value) if isinstance(value, int) else float(value) for key, value in values.items()}
        self._metrics.append({"step": step, **numbers})

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        """Append one line, stamped with the present; `details` may not be called step, event, time or message."""
        assert "time" not in details, "time is the line's own key"
        self._events.append({"step": step, "event": event, "time": utc_now(), "message": message, **details})

    def sync(self) -> None:
        """Force both files to disk: before a checkpoint counts as written, the history up to it must be there."""
        self._metrics.sync()
        self._events.sync()

    def logged(self) -> dict[str, int]:
        """Bytes in each file by name: what a checkpoint, and the end of the run, remember to have been whole."""
        return {METRICS: self._metrics.size(), EVENTS: self._events.size()}

    def rewind(self, step: int) -> int:
        """Take both files back to lines of at most `step`, each atomically; returns how many lines went."""
        self.close()
        dropped = sum(truncate_jsonl(self._run.path / name, step) for name in (METRICS, EVENTS))
        self._open()
        return dropped

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._events.close()

    def _open(self) -> None:
        self._metrics = Appender(self._run.path / METRICS)
        self._events = Appender(self._run.path / EVENTS)
        for name, file in ((METRICS, self._metrics), (EVENTS, self._events)):
            if file.cut:
                last = self._run.last()
                self.event(
                    int(last.get("step", 0)), "notice", f"{name} ended in a torn line; {file.cut} bytes were cut."
                )
