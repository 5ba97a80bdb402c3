"""A sweep in the terminal: one row a run for people, one line a change of state for pipes.

The driver calls `look` after every round; numbers are read from the store, for the runs that are under way only. Rows
stand in the order of what matters: failed, running, then the latest finished; those that wait are a count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from altgrad.cli import console
from altgrad.cli.console import Screen
from altgrad.cli.layout import apart
from altgrad.cli.watch import Tail
from altgrad.display import Line, clean, duration, number
from altgrad.store.runs import EVENTS

REFRESH_SECONDS = 0.5
DONE = ("completed", "diverged", "failed")
ORDER = ("failed", "running", "pending", "diverged", "completed", "waiting")
STYLES = {"failed": "bold red", "diverged": "red", "running": "green", "pending": "yellow", "completed": "cyan"}
SMALLEST = (50, 8)


@dataclass
class Row:
    """What is shown of one run."""

    id: str
    state: str = "waiting"
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
class Picture:
    """The rows of a sweep, brought up to date from the driver's tracks and the store."""

    name: str
    began: float = field(default_factory=time.monotonic)
    rows: dict[str, Row] = field(default_factory=dict)
    _tails: dict[str, Tail] = field(default_factory=dict)
    _before: int | None = None

    def update(self, tracks: Sequence[Any]) -> list[Row]:
        """Read what is new; the rows whose state changed."""
        changed = []
        for track in tracks:
            run = track.planned.id
            row = self.rows.setdefault(run, Row(run, steps=track.planned.spec.steps))
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

    def _read(self, row: Row, track: Any) -> None:
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
        """Seconds to the end, at the rate of steps since this picture was begun; None before there is one."""
        done, whole = self.done_steps(), sum(row.steps for row in self.rows.values())
        fresh = done - (self._before or 0)
        return (time.monotonic() - self.began) / fresh * (whole - done) if fresh > 0 else None

    def counts(self) -> dict[str, int]:
        """Runs by state, in the order of `ORDER`, states without a run left out."""
        states = [row.state for row in self.rows.values()]
        return {state: states.count(state) for state in ORDER if state in states}


class Quiet:
    """Shows nothing."""

    def look(self, driver: Any) -> None:
        driver.news.clear()

    def say(self, line: str) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Lines:
    """A line for every run that ends, and for everything that happens to one."""

    def __init__(self, name: str) -> None:
        self.picture = Picture(name)
        self.told = False

    def look(self, driver: Any) -> None:
        """Say what changed since the last look."""
        changed = self.picture.update(driver.tracks)
        whole = len(driver.tracks)
        if not self.told:
            self.told = True
            counts = ", ".join(f"{count} {state}" for state, count in self.picture.counts().items())
            self.say(f"{self.picture.name}: {whole} runs: {counts}")
            changed = []
        news, driver.news[:] = list(driver.news), []
        for line in news:
            self.say(line)
        done = sum(row.state in DONE for row in self.picture.rows.values())
        for row in changed:
            if row.state in ("completed", "diverged"):
                loss = "-" if row.validation is None else number(row.validation, 5)
                why = f": {clean(row.reason)}" if row.reason else ""
                left = f"ETA {duration(self.picture.remaining())}"
                self.say(f"{done:>{len(str(whole))}}/{whole}  {row.state} {row.id}  validation {loss}  {left}{why}")

    def say(self, line: str) -> None:
        """Print one line."""
        console.say(clean(line))

    def close(self) -> None:
        """Nothing is held back."""


class SweepPanel:
    """The live picture in a terminal; the last one stays."""

    def __init__(self, name: str, screen: Screen | None = None) -> None:
        self.picture = Picture(name)
        self.happened: list[str] = []
        self._screen = Screen() if screen is None else screen
        self._drawn = 0.0

    def look(self, driver: Any) -> None:
        """Draw, at most twice a second."""
        news, driver.news[:] = list(driver.news), []
        self.happened += news
        if time.monotonic() - self._drawn >= REFRESH_SECONDS or all(track.state in DONE for track in driver.tracks):
            self.picture.update(driver.tracks)
            self._screen.show(frame(self.picture, self.happened, *self._screen.size))
            self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        """Keep a line to be shown with the rest."""
        self.happened.append(line)

    def close(self) -> None:
        """Leave the last picture."""
        self._screen.close()


def frame(picture: Picture, happened: Sequence[str], width: int, height: int) -> list[Line]:
    """The picture in at most `height` rows of exactly `width` columns."""
    counts = picture.counts()
    whole = len(picture.rows)
    done = sum(counts.get(state, 0) for state in DONE)
    share = picture.done_steps() / max(1, sum(row.steps for row in picture.rows.values()))
    told = Line.of(
        *(part for state, count in counts.items() for part in ((f"{count} {state}", STYLES.get(state, "dim")), "  "))
    )
    times = f"  {done}/{whole} runs  {100 * share:5.1f}%  ETA {duration(picture.remaining())}"
    room = max(0, width - len(times))
    bar = Line.of(("━" * int(room * share), "bold green"), ("─" * (room - int(room * share)), "dim"), (times, "bold"))
    lines = [apart(Line.of((picture.name, "bold")), told, width), bar.fit(width)]
    news = [Line.of((clean(line), "dim")) for line in happened[-3:]]
    rows = _rows(picture, width, max(0, height - 3 - len(news)))
    return [line.fit(width) for line in [*lines, *rows, *news]][:height]


def _rows(picture: Picture, width: int, height: int) -> list[Line]:
    listed = sorted(
        (row for row in picture.rows.values() if row.state != "waiting"),
        key=lambda row: (ORDER.index(row.state), -row.changed),
    )
    name = max(12, min(max((len(row.id) for row in listed), default=12), width - 62))
    head = f"{'run':{name}}  {'state':9}  {'step':>11}  {'loss':>7}  {'valid.':>7}  {'alarms':>6}  {'ETA':>7}"
    lines = [Line.of((head, "dim"))] if height else []
    if not listed and picture.rows:
        return [Line.of(("starting workers: the first one loads torch, a few seconds", "dim"))][:height]
    for row in listed[: max(0, height - 1)]:
        lines.append(_row(row, name))
    return lines


def _row(row: Row, name: int) -> Line:
    loss = "-" if row.loss is None else number(row.loss, 4)
    validation = "-" if row.validation is None else number(row.validation, 4)
    left = duration(row.remaining) if row.state == "running" else ""
    cut = row.id if len(row.id) <= name else row.id[: name - 1] + "…"
    again = f"died {row.deaths}×  " if row.deaths else ""
    numbers = f"  {row.step:>5}/{row.steps:<5}  {loss:>7}  {validation:>7}  {row.alarms:>6}  {left:>7}  "
    return Line.of(
        f"{cut:{name}}  ", (f"{row.state:9}", STYLES.get(row.state, "dim")), numbers, (again + clean(row.reason), "dim")
    )


def choose(name: str, *, quiet: bool = False) -> Quiet | Lines | SweepPanel:
    """The panel where a person looks at a terminal that can show it, lines everywhere else."""
    if quiet:
        return Quiet()
    columns, rows = console.size()
    if console.interactive() and console.drawable() and columns >= SMALLEST[0] and rows >= SMALLEST[1]:
        return SweepPanel(name)
    return Lines(name)
