"""A sweep in the terminal: arms by seeds. In a pipe it is `SweepLines`, one line a change of state.

A row is an arm at one cell of the axes, with its values on them; under each seed stands the validation loss of the run
that is done, or how far it is; then the mean and the standard deviation over the seeds that completed. Below are the
runs that failed or are at work, and what happened last. Which arm is better is not said here: that is a test's to say.
"""

from __future__ import annotations

import math
import statistics
import textwrap
import time
from collections.abc import Sequence

from altgrad.cli import console
from altgrad.cli.console import Screen
from altgrad.cli.keys import Keys, ask_to_stop
from altgrad.cli.layout import apart
from altgrad.display import Line, Part, clean, shorten
from altgrad.numerals import alike, duration, number
from altgrad.sweeps.driver import DONE, Sweep
from altgrad.sweeps.progress import ORDER, RunProgress, SweepLines, SweepProgress, SweepView

REFRESH_SECONDS = 0.5  # drawn at most twice a second
STYLES = {"failed": "bold red", "diverged": "red", "running": "green", "pending": "yellow", "completed": "cyan"}
SHORT = {"failed": "failed", "diverged": "div.", "pending": "queued", "waiting": "·", "running": ""}
SMALLEST = (50, 8)
NAME, SEED = 28, 7
LEAST_REASON = 12
"""Columns below which no reason is told: the lines below the table have it."""
HINTS = "q detach  s stop  ? help"
HELP = (
    "q  close this panel; the sweep goes on and prints lines",
    "s  stop as Ctrl-C does: runs save themselves, the same command continues",
    "?  this page; any key closes it",
    "validation loss by seed; 45%: at work; ·: waits; div.: diverged, which is a result",
    "mean and sd: over the seeds that completed. `altgrad report` says what is significant",
)


class SweepPanel(SweepView):
    """The live picture in a terminal; the last one stays. The last keys pressed are taken when it is drawn."""

    def __init__(self, name: str, screen: Screen | None = None) -> None:
        self.progress = SweepProgress(name)
        self.happened: list[str] = []
        self._screen = Screen() if screen is None else screen
        self._typed: list[str] = []
        self._keys = Keys(self.press, self._screen.suspend)
        self._helping, self._stopping, self._drawn = False, False, 0.0
        self._instead: SweepLines | None = None

    def press(self, key: str) -> None:
        """A key was typed; from any thread."""
        self._typed.append(key)

    def look(self, driver: Sweep) -> None:
        typed, self._typed = self._typed, []
        for key in typed:
            self._pressed(key)
        if self._instead is not None:
            self._instead.look(driver)
            return
        self.happened += driver.news
        driver.news.clear()
        ended = all(track.state in DONE for track in driver.tracks)
        if typed or ended or time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self.progress.update(driver.tracks)
            hints = HINTS if self._keys.heard and not ended else ""
            told = HELP if self._helping else self.happened
            self._screen.show(frame(self.progress, told, *self._screen.size, hints, helping=self._helping))
            self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        if self._instead is None:
            self.happened.append(line)
        else:
            self._instead.say(line)

    def close(self) -> None:
        self._keys.close()
        self._screen.close()

    def _pressed(self, key: str) -> None:
        if key == "q" and self._instead is None:
            self.close()
            self._instead = SweepLines(self.progress.name, lambda line: console.say(clean(line)))
        elif key == "s" and not self._stopping:
            self._stopping = True
            self.say("stopping: runs save themselves first")
            ask_to_stop()
        self._helping = key == "?" and not self._helping


def frame(
    progress: SweepProgress, told: Sequence[str], width: int, height: int, hints: str = "", *, helping: bool = False
) -> list[Line]:
    """The picture in at most `height` rows of exactly `width` columns. told: lines for its foot, the last ones first
    to stay; all of them if `helping`.
    """
    counts, whole = progress.counts(), len(progress.rows)
    done = sum(counts.get(state, 0) for state in DONE)
    share = progress.done_steps() / max(1, sum(row.steps for row in progress.rows.values()))
    states = [(f"{count} {state}  ", STYLES.get(state, "dim")) for state, count in counts.items()]
    if len(progress.name) + sum(len(text) for text, _ in states) > width:  # what is done is in the line below
        states = [part for part in states if part[0].split()[1] in ("failed", "running", "diverged")]
    times = f"  {done}/{whole} runs  {100 * share:5.1f}%  ETA {duration(progress.remaining())}"
    room = max(0, width - len(times))
    bar = Line.of(("━" * int(room * share), "bold green"), ("─" * (room - int(room * share)), "dim"), (times, "bold"))
    head = [apart(Line.of((progress.name, "bold")), Line.of(*states), width), bar.fit(width)]
    if helping:
        foot = [Line.of(part) for line in told for part in textwrap.wrap(clean(line), width, subsequent_indent="   ")]
    else:
        foot = [Line.of((clean(line), "dim")) for line in told[-3:]]
    foot += [Line.of((hints, "dim"))] if hints and height >= 12 else []
    rows = max(0, height - len(head) - len(foot))
    work = _work(progress, width)
    below = min(len(work), max(rows // 3, rows - len(_cells(progress)) - 2))
    below = below if below > 1 else 0  # a header alone says nothing
    cells = grid(progress, width, rows - below)
    gap = [Line.of("")] if below and len(cells) + below < rows else []
    body = [*cells, *gap, *work[:below]]
    body += [Line.of("")] * (rows - len(body) if hints else 0)
    return [line.fit(width) for line in [*head, *body, *foot]][:height]


def _cells(progress: SweepProgress) -> dict[tuple[str, tuple[tuple[str, str], ...]], list[RunProgress]]:
    """Runs by arm and cell, in the order of the matrix."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[RunProgress]] = {}
    for row in progress.rows.values():
        found.setdefault((row.arm, tuple(row.axes.items())), []).append(row)
    return found


def grid(progress: SweepProgress, width: int, height: int) -> list[Line]:
    """The table of arms and cells by seeds in at most `height` rows, its header among them."""
    cells = _cells(progress)
    if not cells or height < 2:
        return []
    axes = list(dict.fromkeys(name for _, values in cells for name, _ in values))
    seeds = sorted({row.seed for row in progress.rows.values()})
    names = [[arm, *(dict(values).get(axis, "") for axis in axes)] for arm, values in cells]
    columns = [
        min(NAME if index == 0 else 12, max(len(header), *(len(row[index]) for row in names)))
        for index, header in enumerate(["arm", *axes])
    ]
    rest = sum(columns[1:]) + 2 * len(columns) + 16
    columns[0] = min(columns[0], max(12, width - rest - len(seeds) * SEED))
    room = width - columns[0] - rest
    by_seed = len(seeds) * SEED <= room
    heads = [f"{header[:size]:{size}}  " for header, size in zip(["arm", *axes], columns, strict=True)]
    heads += [f"{f's{seed}':>{SEED - 1}} " for seed in seeds] if by_seed else [f"{'done':>{SEED - 1}} "]
    lines = [Line.of(("".join([*heads, f"{'mean':>7} {'sd':>7}"]), "dim"))]
    losses = [[_loss(row) for row in rows] for rows in cells.values()]
    known = [[loss for loss in each if loss is not None and math.isfinite(loss)] for each in losses]
    means = alike([statistics.fmean(each) if each else None for each in known])
    spreads = alike([statistics.stdev(each) if len(each) > 1 else None for each in known])
    texts = iter(alike([loss for each in losses for loss in each]))
    for name, rows, each, mean, spread in zip(names, cells.values(), losses, means, spreads, strict=True):
        parts: list[Part] = [f"{shorten(text, size):{size}}  " for text, size in zip(name, columns, strict=True)]
        shown = {row.seed: (row, next(texts)) for row in rows}
        if by_seed:
            parts += [_cell(*shown[seed]) if seed in shown else " " * SEED for seed in seeds]
        else:
            parts.append(f"{f'{sum(row.state in DONE for row in rows)}/{len(each)}':>{SEED - 1}} ")
        lines.append(Line.of(*parts, (f"{mean:>7} ", "bold"), f"{spread:>7}"))
    if len(lines) <= height:
        return lines
    # Those at work are what is watched; the rest keep their order.
    busy = [any(row.state in ("running", "failed") for row in rows) for rows in cells.values()]
    kept = sorted(sorted(range(len(busy)), key=lambda index: not busy[index])[: max(0, height - 2)])
    more = Line.of((f"… {len(busy) - len(kept)} more rows", "dim"))
    return [lines[0], *(lines[1 + index] for index in kept), more]


def _loss(row: RunProgress) -> float | None:
    return row.validation if row.state == "completed" else None


def _cell(row: RunProgress, loss: str) -> Part:
    text = loss.strip() if row.state == "completed" else SHORT.get(row.state, "")
    if row.state == "running":
        text = f"{100 * row.step // max(1, row.steps)}%"
    style = "" if row.state == "completed" else STYLES.get(row.state, "dim")
    return f"{text[: SEED - 1]:>{SEED - 1}} ", style


def _work(progress: SweepProgress, width: int) -> list[Line]:
    """Runs that failed or are at work, with a header; none of those that are done or wait."""
    listed = sorted(
        (row for row in progress.rows.values() if row.state in ("failed", "running", "pending", "diverged")),
        key=lambda row: (ORDER.index(row.state), -row.changed),
    )
    if not listed:
        waiting = progress.rows and not any(row.state in DONE for row in progress.rows.values())
        line = Line.of(("starting workers: the first one loads torch, a few seconds", "dim"))
        return [Line.of(""), line] if waiting else []
    wide = width >= 76
    name = max(12, min(max(len(row.id) for row in listed), width - (62 if wide else 43)))
    head = f"{'run':{name}}  {'state':9}  {'step':>11}  {'loss':>7}"
    head += f"  {'valid.':>7}  {'alarms':>6}  {'ETA':>7}" if wide else f"  {'ETA':>7}"
    return [Line.of((head, "dim")), *(_row(row, name, wide, width) for row in listed)]


def _row(row: RunProgress, name: int, wide: bool, width: int) -> Line:
    loss = "-" if row.loss is None else number(row.loss, 4)
    validation = "-" if row.validation is None else number(row.validation, 4)
    left = duration(row.remaining) if row.state == "running" else ""
    again = f"died {row.deaths}×  " if row.deaths else ""
    parts: list[Part] = [f"{shorten(row.id, name):{name}}  ", (f"{row.state:9}", STYLES.get(row.state, "dim"))]
    parts.append(f"  {row.step:>5}/{row.steps:<5}  {loss:>7}")
    if wide:
        parts += [f"  {validation:>7}", (f"  {row.alarms:>6}", "bold red" if row.alarms else "")]
    known = Line.of(*parts, f"  {left:>7}")
    why = again + clean(row.reason)
    room = width - known.width - 2
    return known.then(Line.of("  ", (why, "dim"))) if why and room >= min(len(why), LEAST_REASON) else known


def choose(name: str, *, quiet: bool = False) -> SweepView:
    """The panel where a person looks at a terminal that can show it, lines everywhere else."""
    if quiet:
        return SweepView()
    columns, rows = console.size()
    if console.interactive() and console.drawable() and columns >= SMALLEST[0] and rows >= SMALLEST[1]:
        return SweepPanel(name)
    return SweepLines(name, lambda line: console.say(clean(line)))
