"""How far a sweep is: a row a run, brought up to date from the driver's tracks and the store, and a line a change."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from altgrad.numerals import counted, duration, number
from altgrad.progress import progress
from altgrad.store.files import Tail
from altgrad.store.runs import EVENTS
from altgrad.sweeps.driver import DONE, Sweep, Track

ORDER = ("failed", "running", "pending", "diverged", "completed", "waiting")


@dataclass
class RunProgress:
    """What is shown of one run."""

    id: str
    state: str = "waiting"
    arm: str = ""
    axes: dict[str, str] = field(default_factory=dict)
    """The values of its cell on the axes, by the last part of their paths."""
    seed: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation: float | None = None
    alarms: int = 0
    deaths: int = 0
    remaining: float | None = None
    reason: str = ""
    changed: float = 0.0


@dataclass
class SweepProgress:
    """The rows of a sweep. Of runs that are under way, and of those alone, the numbers are read from the store."""

    name: str
    began: float = field(default_factory=time.monotonic)
    rows: dict[str, RunProgress] = field(default_factory=dict)
    _tails: dict[str, Tail] = field(default_factory=dict)
    _before: int | None = None

    def update(self, tracks: Sequence[Track]) -> list[RunProgress]:
        """Read what is new; the rows whose state changed."""
        changed = []
        for track in tracks:
            run = track.planned.id
            if run not in self.rows:
                self.rows[run] = _row(track)
            row = self.rows[run]
            new = track.state != row.state
            if new or track.state == "running":
                self._read(row, track)
            if new:
                row.state, row.reason, row.changed = track.state, track.reason, time.monotonic()
                changed.append(row)
            row.deaths = track.died
        if self._before is None:
            self._before = self.done_steps()
        return changed

    def _read(self, row: RunProgress, track: Track) -> None:
        if not track.run.exists:
            return
        found = track.run.last("train/loss", "time/wall_seconds", "validation/loss")
        row.step = int(found.get("step", 0))
        row.loss, row.validation = found.get("train/loss"), found.get("validation/loss")
        seconds = found.get("time/wall_seconds")
        row.remaining = seconds / row.step * (row.steps - row.step) if seconds and row.step else None
        tail = self._tails.setdefault(row.id, Tail(track.run.path / EVENTS))
        row.alarms += sum(event.get("event") == "alarm" for event in tail.rows())

    def done_steps(self) -> int:
        """Steps trained in all, those of ended runs counted whole."""
        return sum(row.steps if row.state in DONE else row.step for row in self.rows.values())

    def remaining(self) -> float | None:
        """Seconds to the end, at the rate of steps since this was begun; None before there is one."""
        done, whole = self.done_steps(), sum(row.steps for row in self.rows.values())
        fresh = done - (self._before or 0)
        return (time.monotonic() - self.began) / fresh * (whole - done) if fresh > 0 else None

    def counts(self) -> dict[str, int]:
        """Runs by state, in the order of `ORDER`, states without a run left out."""
        states = [row.state for row in self.rows.values()]
        return {state: states.count(state) for state in ORDER if state in states}


def _row(track: Track) -> RunProgress:
    place, spec = track.planned.place, track.planned.spec
    axes = {path.rpartition(".")[2]: str(value) for path, value in place.axes.items()}
    return RunProgress(track.planned.id, steps=spec.steps, arm=place.arm or spec.name, axes=axes, seed=place.seed)


class SweepView:
    """What shows a sweep while it runs; this one only says how many runs are done to whoever listens."""

    def look(self, driver: Sweep) -> None:
        """Called after every round; takes the driver's news."""
        driver.news.clear()
        progress("training runs", sum(track.state in DONE for track in driver.tracks), len(driver.tracks))

    def say(self, line: str) -> None:
        """Show one line."""

    def close(self) -> None:
        """Called at the end."""


class SweepLines(SweepView):
    """A line for every run that ends, and for everything that happens to one."""

    def __init__(self, name: str, print_line: Callable[[str], object] | None = None) -> None:
        self.progress = SweepProgress(name)
        self._begun = False
        self._print = print_line or _print_on_stderr

    def look(self, driver: Sweep) -> None:
        changed = self.progress.update(driver.tracks)
        whole = len(driver.tracks)
        if not self._begun:
            self._begun = True
            counts = ", ".join(f"{count} {state}" for state, count in self.progress.counts().items())
            self.say(f"{self.progress.name}: {counted(whole, 'run')}: {counts}")
            changed = []
        news, driver.news[:] = list(driver.news), []
        for line in news:
            self.say(line)
        done = sum(row.state in DONE for row in self.progress.rows.values())
        progress("training runs", done, whole)
        for row in changed:
            if row.state in ("completed", "diverged"):
                loss = "-" if row.validation is None else number(row.validation, 5)
                why = f": {row.reason}" if row.reason else ""
                left = f"ETA {duration(self.progress.remaining())}"
                self.say(f"{done:>{len(str(whole))}}/{whole}  {row.state} {row.id}  validation {loss}  {left}{why}")

    def say(self, line: str) -> None:
        self._print(line)


def _print_on_stderr(line: str) -> None:
    print("".join(c if c.isprintable() else "?" for c in line), file=sys.stderr, flush=True)
