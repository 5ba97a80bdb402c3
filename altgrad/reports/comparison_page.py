"""`altgrad compare --html`: the answer, the difference over the steps, the arms and what differs in them, as one page.

Charts are written as SVG here and need no drawing library, so that a page can be made wherever runs can be compared;
a report's figures, with their ten kinds of marks, are matplotlib's. Lines take the colours of Okabe and Ito, legible on
white and on black, and their names stand at their ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad import __version__, webpage
from altgrad.numerals import tick_text
from altgrad.reports.arm_comparison import ArmComparison
from altgrad.reports.rows import columns_of, rows_of
from altgrad.statistics.verdict import Comparison
from altgrad.store import utc_now
from altgrad.store.files import write_atomic

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 260, 56, 116, 10, 38
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a6d3b", "#7f7f7f")
ROBUST = 2.0, 98.0
"""Percentiles of the values that the axis shows, so that the first steps and a spike do not flatten the rest."""
STYLE = "figure svg{max-width:700px}"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class ChartLine:
    """A curve by its name, with a band where it has one."""

    name: str
    colour: str
    x: Array
    y: Array
    low: Array
    high: Array


def write_page(found: ArmComparison, path: Path) -> None:
    """The page of a comparison, in place of what was there."""
    verdict, parts = found.verdict, []
    if differences := _differences(found):
        note = "The mean over pairs of one seed, with its 95 % interval at each step (from 3 pairs on)."
        label = f"{found.metric} less that of {verdict.reference}"
        drawn = chart(differences, label, margin=verdict.margin, zero=True)
        parts.append(webpage.section("difference", "Difference from the reference", note, drawn))
    parts.append(webpage.section("arms", "Arms", _rule(verdict), _arms(found)))
    if found.differences:
        rows = [(place, *words) for place, words in found.differences.items()]
        parts.append(webpage.section("settings", "What differs", "", webpage.table("", ("", *found.arms), rows)))
    colours = _colours(found)
    whole = {name: found.curve(name) for name in found.arms}
    curves = [ChartLine(n, colours[n], x, y, np.array([]), np.array([])) for n, (x, y) in whole.items() if len(x) > 1]
    if curves:
        parts.append(webpage.section("curves", "Curves", "Means over seeds.", chart(curves, found.metric)))
    notes = "".join(webpage.paragraph(note) for note in found.notes)
    if notes:
        parts.append(webpage.section("notes", "What was read", "", notes))
    made = f"AltGrad {__version__}, {utc_now()[:16].replace('T', ' ')} UTC"
    page = webpage.document("Comparison", verdict.sentence, "".join(parts), kicker=made, style=STYLE)
    write_atomic(path, page.encode(), durable=False)


def chart(lines: Sequence[ChartLine], label: str, *, margin: float = 0.0, zero: bool = False) -> str:
    """Lines over steps as markup. margin: a band around 0, if any. zero: whether 0 is on the axis."""
    values = np.concatenate([end for line in lines for end in (line.y, line.low, line.high)])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, ROBUST) if len(values) else (0.0, 1.0)
    if zero:
        low, high = min(low, -1.5 * margin), max(high, 1.5 * margin)
    pad = 0.06 * (high - low) or 0.5
    low, high = float(low - pad), float(high + pad)
    first = min(float(line.x[0]) for line in lines)
    last = max(max(float(line.x[-1]) for line in lines), first + 1)

    def across(x: Any) -> Any:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: Any) -> Any:
        return TOP + (high - np.clip(y, low, high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    marks = [_axes(low, high, first, last, across, down, label)]
    if margin:
        marks.append(_rectangle(across(first), down(margin), across(last), down(-margin)))
        marks.append(_straight(across(first), down(0.0), across(last), down(0.0), "1"))
    ends = _spread([float(down(line.y[np.isfinite(line.y)][-1])) for line in lines])
    for line, end in zip(lines, ends, strict=True):
        colour, sound = line.colour, np.isfinite(line.y)
        if len(line.low) and (line.high > line.low).any():
            outline = [*zip(line.x, line.high, strict=True), *zip(line.x[::-1], line.low[::-1], strict=True)]
            marks.append(f'<polygon points="{_points(outline, across, down)}" fill="{colour}" fill-opacity="0.16"/>')
        points = _points(zip(line.x[sound], line.y[sound], strict=True), across, down)
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        name = line.name if len(line.name) < 17 else line.name[:15] + "…"
        marks.append(_text(WIDTH - RIGHT + 8, end + 4, name, f'fill="{colour}"'))
    inner = "".join(marks)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inner}</svg></figure>\n'
    )


def _colours(found: ArmComparison) -> dict[str, str]:
    """One for each arm, in all charts."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(found.arms)}


def _differences(found: ArmComparison) -> list[ChartLine]:
    base, colours = found.reference.name, _colours(found)
    lines = []
    for name in found.arms:
        steps, mean, low, high = found.difference(name) if name != base else (np.array([]),) * 4
        if np.isfinite(mean).sum() > 1:
            lines.append(ChartLine(name, colours[name], steps, mean, low, high))
    return lines


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


def _axes(low: float, high: float, first: float, last: float, across: Any, down: Any, label: str) -> str:
    parts = []
    for tick in _ticks(low, high):
        parts.append(_straight(across(first), down(tick), across(last), down(tick), "0.15"))
        parts.append(_text(LEFT - 8, float(down(tick)) + 4, f"{tick:.10g}".replace("-", "−"), 'text-anchor="end"'))
    for tick in _ticks(first, last):
        parts.append(_text(float(across(tick)), HEIGHT - BOTTOM + 18, tick_text(tick), 'text-anchor="middle"'))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 4, f"step; up: {label}", 'text-anchor="middle"'))
    return "".join(parts)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers inside [low, high]."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * k, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _spread(heights: list[float], room: float = 14.0) -> list[float]:
    """The heights of labels, moved apart so that none covers another."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed, least = list(heights), -math.inf
    for index in order:
        placed[index] = least = max(heights[index], least + room)
    over = max(0.0, max(placed) - (HEIGHT - BOTTOM))
    return [height - over for height in placed]


def _points(pairs: Any, across: Any, down: Any) -> str:
    return " ".join(f"{float(across(x)):.1f},{float(down(y)):.1f}" for x, y in pairs if math.isfinite(y))


def _straight(x1: float, y1: float, x2: float, y2: float, opacity: str) -> str:
    place = f'x1="{x1:.1f}" y1="{float(y1):.1f}" x2="{x2:.1f}" y2="{float(y2):.1f}"'
    return f'<line {place} stroke="currentColor" stroke-opacity="{opacity}"/>'


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> str:
    place = f'x="{x1:.1f}" y="{float(y1):.1f}" width="{x2 - x1:.1f}" height="{float(y2 - y1):.1f}"'
    return f'<rect {place} fill="currentColor" fill-opacity="0.08"/>'


def _text(x: float, y: float, text: str, more: str) -> str:
    given = more if "fill" in more else f'{more} fill="currentColor"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" {given}>{escape(text)}</text>'
