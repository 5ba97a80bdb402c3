"""`altgrad compare --html`: the answer, the difference over the steps, the arms and what differs in them, as one page.

Charts are written as SVG here and need no drawing library, so that a page can be made wherever runs can be compared;
a report's figures, with their ten kinds of marks, are matplotlib's. A chart is drawn twice, for a window and for a
phone, in letters of one size; lines take the colours of a report's figures, light and dark. Their names stand at their
ends where there is room, else in a legend above.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad import __version__, webpage
from altgrad.display import shorten
from altgrad.numerals import counted, tick_text
from altgrad.reports.arm_comparison import ArmComparison
from altgrad.reports.content import FORMAT_TONES
from altgrad.reports.figures import DARK, LIGHT
from altgrad.reports.rows import columns_of, rows_of
from altgrad.statistics.verdict import Comparison
from altgrad.store import utc_now
from altgrad.store.files import write_atomic

WIDE, PHONE = 820, 358
HEIGHT, LETTER, LINE = 280, 7.6, 18
"""In pixels; the width of a letter, the height of a line."""
AT_THE_END, LINES = 18, 8
"""Letters of the longest name that fits beside a line's end; lines of a chart."""
ROBUST = 2.0, 98.0
"""Percentiles of the values that the axis shows, so that the first steps and a spike do not flatten the rest."""
TONES: tuple[str, ...] = ("text", *FORMAT_TONES)
"""The reference's, then those of the arms in order."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ChartLine:
    """A curve by its name, with a band where it has one. tone: the name of its colour."""

    name: str
    tone: str
    x: Array
    y: Array
    low: Array
    high: Array


def write_page(found: ArmComparison, path: Path) -> None:
    """The page of a comparison, in place of what was there."""
    verdict, tones = found.verdict, _tones(found)
    parts = []
    if differences := _differences(found, tones):
        label = f"{found.metric} minus that of {verdict.reference}"
        drawn = chart(differences, label, margin=verdict.margin, zero=True)
        parts.append(
            webpage.section("difference", f"Difference from {verdict.reference}", _of_difference(found, tones), drawn)
        )
    parts.append(webpage.section("arms", "Arms", _rule(verdict), _arms(found)))
    if found.differences:
        table = webpage.table("", *found.settings)
        parts.append(webpage.section("settings", "What differs", "", table))
    whole = {name: found.curve(name) for name in tones}
    curves = [ChartLine(n, tones[n], x, y, np.array([]), np.array([])) for n, (x, y) in whole.items() if len(x) > 1]
    if curves:
        note = "Means over seeds." if any(len(arm.runs) > 1 for arm in found.arms.values()) else ""
        parts.append(webpage.section("curves", "Curves", note, chart(curves, found.metric)))
    notes = "".join(webpage.paragraph(note) for note in found.notes)
    if notes:
        parts.append(webpage.section("notes", "What was read", "", notes))
    made = f"AltGrad {__version__}, {utc_now()[:16].replace('T', ' ')} UTC"
    page = webpage.document("Comparison", verdict.sentence, "".join(parts), kicker=made, style=_style())
    write_atomic(path, page.encode(), durable=False)


def chart(lines: Sequence[ChartLine], label: str, *, margin: float = 0.0, zero: bool = False) -> str:
    """Lines over steps as markup. margin: a band around 0, if any. zero: whether 0 is on the axis."""
    drawn = "".join(
        f'<div class="{kind}">{_Drawing(lines, label, width, margin, zero).markup()}</div>'
        for kind, width in (("full", WIDE), ("narrow", PHONE))
    )
    return f"<figure>{drawn}</figure>\n"


class _Drawing:
    """A chart at one width."""

    def __init__(self, lines: Sequence[ChartLine], label: str, width: int, margin: float, zero: bool) -> None:
        self._lines, self._label, self._margin, self._width = lines, label, margin, width
        longest = max(len(line.name) for line in lines)
        self._named_at_end = longest <= AT_THE_END and len(lines) <= LINES and width == WIDE
        values = np.concatenate([end for line in lines for end in (line.y, line.low, line.high)])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, ROBUST) if len(values) else (0.0, 1.0)
        if zero:
            low, high = min(low, -1.5 * margin), max(high, 1.5 * margin)
        pad = 0.06 * (high - low) or 0.5
        self._low, self._high = float(low - pad), float(high + pad)
        self._first = min(float(line.x[0]) for line in lines)
        self._last = max(max(float(line.x[-1]) for line in lines), self._first + 1)
        self._ticks = _tick_labels(_ticks(self._low, self._high))
        self._left = 12 + LETTER * max(map(len, self._ticks.values()), default=1)
        self._right = 16 + LETTER * longest * self._named_at_end
        self._legend = [] if self._named_at_end else self._placed_names()
        self._top = 28.0 + (LINE * (1 + self._legend[-1][1]) + 6 if self._legend else 0)
        self._height = self._top + HEIGHT - 28

    def markup(self) -> str:
        """The SVG."""
        inner = "".join([*self._axes(), *map(self._curve, self._lines), *self._names()])
        box = f"0 0 {self._width} {self._height:.0f}"
        return f'<svg viewBox="{box}" role="img" aria-label="{escape(self._label)}">{inner}</svg>'

    def _across(self, x: float) -> float:
        share = (x - self._first) / (self._last - self._first)
        return self._left + share * (self._width - self._left - self._right)

    def _down(self, y: float) -> float:
        share = (self._high - min(max(y, self._low), self._high)) / (self._high - self._low)
        return self._top + share * (self._height - self._top - 40)

    def _axes(self) -> list[str]:
        left, right = self._across(self._first), self._across(self._last)
        parts = []
        if self._margin:
            top, bottom = self._down(self._margin), self._down(-self._margin)
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" class="b"/>'
            )
        for tick, text in self._ticks.items():
            height = self._down(tick)
            kind = "z" if self._margin and tick == 0 else "g"
            parts.append(f'<path d="M{left:.1f} {height:.1f}H{right:.1f}" class="{kind}"/>')
            parts.append(_text(left - 8, height + 4, text, "end"))
        most = max(2, int((right - left) / 70))
        for tick in _ticks(self._first, self._last, most):
            parts.append(_text(self._across(tick), self._height - 22, tick_text(tick), "middle"))
        parts.append(_text((left + right) / 2, self._height - 4, "step", "middle"))
        return [*parts, _text(0, 14, shorten(self._label, int(self._width / LETTER)), "start")]

    def _curve(self, line: ChartLine) -> str:
        parts, sound = "", np.isfinite(line.y)
        if len(line.low) and (line.high > line.low).any():
            outline = [*zip(line.x, line.high, strict=True), *zip(line.x[::-1], line.low[::-1], strict=True)]
            parts = f'<path d="M{self._points(outline)}Z" class="f {line.tone}"/>'
        points = self._points(zip(line.x[sound], line.y[sound], strict=True))
        return f'{parts}<path d="M{points}" class="l {line.tone}"/>'

    def _points(self, pairs: Any) -> str:
        return " ".join(
            f"{self._across(float(x)):.1f},{self._down(float(y)):.1f}" for x, y in pairs if math.isfinite(y)
        )

    def _names(self) -> list[str]:
        if not self._named_at_end:
            return [
                f'<path d="M{x:.1f} {42 + LINE * row}h18" class="l {line.tone}"/>'
                + _text(x + 24, 46 + LINE * row, shorten(line.name, int((self._width - 24) / LETTER)), "start")
                for line, (x, row) in zip(self._lines, self._legend, strict=True)
            ]
        ends = _spread([self._down(float(line.y[np.isfinite(line.y)][-1])) for line in self._lines], self._height - 44)
        right = self._across(self._last) + 8
        return [
            f'<text x="{right:.1f}" y="{end + 4:.1f}" class="t {line.tone}">{escape(line.name)}</text>'
            for line, end in zip(self._lines, ends, strict=True)
        ]

    def _placed_names(self) -> list[tuple[float, int]]:
        """Where each name of the legend begins: across, and its row."""
        places, x, row = [], 0.0, 0
        for line in self._lines:
            room = 42 + LETTER * len(line.name)
            if x and x + room > self._width:
                x, row = 0.0, row + 1
            places.append((x, row))
            x += room
        return places


def _tones(found: ArmComparison) -> dict[str, str]:
    """The arms that are drawn, in their order, and their tones: the reference, and of many those closest to it."""
    judged = {arm.arm: abs(arm.interval.mean) for arm in found.verdict.judged}
    close = sorted(judged, key=lambda name: judged[name] if math.isfinite(judged[name]) else math.inf)
    kept = [name for name in found.arms if name in close[: LINES - 1]]
    return {found.verdict.reference: TONES[0]} | dict(zip(kept, TONES[1:], strict=False))


def _differences(found: ArmComparison, tones: Mapping[str, str]) -> list[ChartLine]:
    lines = []
    for name, tone in tones.items():
        steps, mean, low, high = found.difference(name) if name != found.verdict.reference else (np.array([]),) * 4
        if np.isfinite(mean).sum() > 1:
            lines.append(ChartLine(name, tone, steps, mean, low, high))
    return lines


def _of_difference(found: ArmComparison, tones: Mapping[str, str]) -> str:
    """What the chart of differences shows."""
    most = max((arm.interval.n for arm in found.verdict.judged), default=0)
    band = {0: "", 1: "One pair of runs an arm.", 2: "The mean over both seeds."}.get(
        most, "The mean over seed pairs; shaded, its 95 % interval at each step (from 3 pairs on)."
    )
    some = f" {len(tones) - 1} of {counted(len(found.arms) - 1, 'arm')}, the closest." * (len(tones) < len(found.arms))
    return f"{band}{some} Grey is the margin, ±{found.verdict.margin:g}.".strip()


def _arms(found: ArmComparison) -> str:
    wanted = ("arm", "mean", "difference", "95 % interval", "n", "diverged", "verdict")
    header, rows = columns_of(rows_of(found), *wanted)
    numeric = {header.index(name) for name in wanted[1:5] if name in header}
    bands = "".join(map(webpage.paragraph, found.said_of_curves))
    return webpage.table("", header, rows, numeric=numeric) + bands


def _rule(verdict: Comparison) -> str:
    better = verdict.better
    return (
        f"Intervals are simultaneous over the arms. One within ±{verdict.margin:g} is equivalent, one beyond it "
        f"better or worse; {better} values are better."
    )


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers inside [low, high]."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * k, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick_labels(ticks: Sequence[float]) -> dict[float, str]:
    """Each with as many decimals as the one that needs most."""
    decimals = max((len(f"{tick:.10g}".partition(".")[2]) for tick in ticks), default=0)
    plain = all("e" not in f"{tick:.10g}" for tick in ticks)
    return {t: (f"{t:.{decimals}f}" if plain else tick_text(t)).replace("-", "−") for t in ticks}


def _spread(heights: list[float], most: float, room: float = 16.0) -> list[float]:
    """The heights of labels, moved apart so that none covers another, none below `most`."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed, least = list(heights), -math.inf
    for index in order:
        placed[index] = least = max(heights[index], least + room)
    least = most + room
    for index in reversed(order):
        placed[index] = least = min(placed[index], least - room)
    return placed


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="t">{escape(text)}</text>'


def _style() -> str:
    """The colours of lines and names, light and dark."""
    light, dark = (";".join(f"--{tone}:{theme[tone]}" for tone in FORMAT_TONES) for theme in (LIGHT, DARK))
    named = "".join(f".{tone}{{--tone:var(--{tone})}}" for tone in TONES)
    return (
        f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{named}.l{{fill:none;stroke:var(--tone);"
        "stroke-width:1.8}.f{fill:var(--tone);fill-opacity:.16}.t{font-size:13px;fill:var(--tone,var(--text))}"
        ".g{stroke:var(--line)}.z{stroke:var(--soft)}.b{fill:var(--line);fill-opacity:.55}"
    )
