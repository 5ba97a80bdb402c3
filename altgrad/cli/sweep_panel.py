"""A sweep in the terminal: one row a run. In a pipe it is `SweepLines`, one line a change of state.

Rows stand in the order of what matters: failed, running, then the latest finished; those that wait are a count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from altgrad.cli import console
from altgrad.cli.console import Screen
from altgrad.cli.layout import apart
from altgrad.display import Line, clean
from altgrad.numerals import duration, number
from altgrad.sweeps.driver import DONE, Sweep
from altgrad.sweeps.progress import ORDER, RunProgress, SweepLines, SweepProgress, SweepView

REFRESH_SECONDS = 0.5  # drawn at most twice a second
STYLES = {"failed": "bold red", "diverged": "red", "running": "green", "pending": "yellow", "completed": "cyan"}
SMALLEST = (50, 8)


class SweepPanel(SweepView):
    """The live picture in a terminal; the last one stays."""

    def __init__(self, name: str, screen: Screen | None = None) -> None:
        self.progress = SweepProgress(name)
        self.happened: list[str] = []
        self._screen = Screen() if screen is None else screen
        self._drawn = 0.0

    def look(self, driver: Sweep) -> None:
        self.happened += driver.news
        driver.news.clear()
        if time.monotonic() - self._drawn >= REFRESH_SECONDS or all(track.state in DONE for track in driver.tracks):
            self.progress.update(driver.tracks)
            self._screen.show(frame(self.progress, self.happened, *self._screen.size))
            self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        self.happened.append(line)

    def close(self) -> None:
        self._screen.close()


def frame(progress: SweepProgress, happened: Sequence[str], width: int, height: int) -> list[Line]:
    """The picture in at most `height` rows of exactly `width` columns."""
    counts = progress.counts()
    whole = len(progress.rows)
    done = sum(counts.get(state, 0) for state in DONE)
    share = progress.done_steps() / max(1, sum(row.steps for row in progress.rows.values()))
    told = Line.of(
        *(part for state, count in counts.items() for part in ((f"{count} {state}", STYLES.get(state, "dim")), "  "))
    )
    times = f"  {done}/{whole} runs  {100 * share:5.1f}%  ETA {duration(progress.remaining())}"
    room = max(0, width - len(times))
    bar = Line.of(("━" * int(room * share), "bold green"), ("─" * (room - int(room * share)), "dim"), (times, "bold"))
    lines = [apart(Line.of((progress.name, "bold")), told, width), bar.fit(width)]
    news = [Line.of((clean(line), "dim")) for line in happened[-3:]]
    rows = _rows(progress, width, max(0, height - 3 - len(news)))
    return [line.fit(width) for line in [*lines, *rows, *news]][:height]


def _rows(progress: SweepProgress, width: int, height: int) -> list[Line]:
    listed = sorted(
        (row for row in progress.rows.values() if row.state != "waiting"),
        key=lambda row: (ORDER.index(row.state), -row.changed),
    )
    name = max(12, min(max((len(row.id) for row in listed), default=12), width - 62))
    head = f"{'run':{name}}  {'state':9}  {'step':>11}  {'loss':>7}  {'valid.':>7}  {'alarms':>6}  {'ETA':>7}"
    lines = [Line.of((head, "dim"))] if height else []
    if not listed and progress.rows:
        return [Line.of(("starting workers: the first one loads torch, a few seconds", "dim"))][:height]
    for row in listed[: max(0, height - 1)]:
        lines.append(_row(row, name))
    return lines


def _row(row: RunProgress, name: int) -> Line:
    loss = "-" if row.loss is None else number(row.loss, 4)
    validation = "-" if row.validation is None else number(row.validation, 4)
    left = duration(row.remaining) if row.state == "running" else ""
    cut = row.id if len(row.id) <= name else row.id[: name - 1] + "…"
    again = f"died {row.deaths}×  " if row.deaths else ""
    numbers = f"  {row.step:>5}/{row.steps:<5}  {loss:>7}  {validation:>7}  {row.alarms:>6}  {left:>7}  "
    return Line.of(
        f"{cut:{name}}  ", (f"{row.state:9}", STYLES.get(row.state, "dim")), numbers, (again + clean(row.reason), "dim")
    )


def choose(name: str, *, quiet: bool = False) -> SweepView:
    """The panel where a person looks at a terminal that can show it, lines everywhere else."""
    if quiet:
        return SweepView()
    columns, rows = console.size()
    if console.interactive() and console.drawable() and columns >= SMALLEST[0] and rows >= SMALLEST[1]:
        return SweepPanel(name)
    return SweepLines(name, lambda line: console.say(clean(line)))
