"""A line chart in braille: curves over steps, with round ticks on both axes.

A character is 2 x 4 dots, so 60 columns show 120 intervals of steps. In each the line reaches from the lowest to the
highest value, whatever falls into it, and on to the next; `×` at the upper edge marks an interval with NaN or Inf. A
curve may have another behind it, dimmed, in the same axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from altgrad.cli.curves import Extent, KeptCurve, extremes, logarithmic
from altgrad.display import Line
from altgrad.numerals import number, tick_text

LABEL = 8
ROWS_FOR_STEPS = 4
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of U+2800 and what follows, by row and column of the dot."""
Columns = Sequence[Extent | None]
Bits = list[list[int]]


def line_chart(curve: KeptCurve, behind: KeptCurve | None, style: str, width: int, height: int) -> list[Line]:
    """The curve in `height` rows of at most `width` columns; the steps are those of the curve."""
    room = width - LABEL
    if not curve.points or height < 1 or room < 2:
        return []
    first, last = curve.points[0].first, curve.points[-1].last
    rows = height - 1 if height >= ROWS_FOR_STEPS else height
    own = curve.columns(2 * room)
    other = [] if behind is None else behind.columns(2 * room, first, last)
    found = extremes([*own, *other])
    low, high = found or (0.0, 1.0)
    bent = math.log if logarithmic(low, high) else float
    bottom, span = bent(low), bent(high) - bent(low)

    def dot(value: float) -> int:
        """The row of dots of a value, from the top."""
        share = (bent(min(max(value, low), high)) - bottom) / span if 0 < span < math.inf else 0.5
        return round((1 - share) * (4 * rows - 1))

    bits, dim = _drawn(own, dot, rows, room), _drawn(other, dot, rows, room)
    flaws = {index // 2 for index, column in enumerate(own) if column is not None and column.broken}
    labels = [""] * rows if found is None else _labels(low, high, rows, dot)
    lines = [
        Line.of((f"{labels[row]:>{LABEL - 2}} {'┤' if labels[row] else '│'}", "dim")).then(
            _row(bits[row], dim[row], flaws if row == 0 else set(), style)
        )
        for row in range(rows)
    ]
    return [*lines, _steps(first, last, room)] if rows < height else lines


def _drawn(columns: Columns, dot: Callable[[float], int], rows: int, room: int) -> Bits:
    """The bits of every character: each interval from its highest to its lowest value, joined to the one before."""
    bits = [[0] * room for _ in range(rows)]
    before: tuple[int, int] | None = None
    for index, column in enumerate(columns):
        if column is None or column.low > column.high:
            before = None
            continue
        top, bottom = dot(column.high), dot(column.low)
        reach = (top, bottom) if before is None else (min(top, before[1]), max(bottom, before[0]))
        for y in range(reach[0], reach[1] + 1):
            bits[y // 4][index // 2] |= DOTS[y % 4][index % 2]
        before = top, bottom
    return bits


def _row(bits: Sequence[int], dim: Sequence[int], flaws: set[int], style: str) -> Line:
    """One row of characters; equal styles are joined, since each costs time to draw."""
    spans: list[tuple[str, str]] = []
    for index, (own, other) in enumerate(zip(bits, dim, strict=True)):
        if index in flaws:
            piece = ("×", "bold red")
        else:
            piece = (chr(0x2800 + own), style) if own else (chr(0x2800 + other), "dim") if other else (" ", "")
        if spans and spans[-1][1] == piece[1]:
            spans[-1] = (spans[-1][0] + piece[0], piece[1])
        else:
            spans.append(piece)
    return Line(tuple(spans))


def _labels(low: float, high: float, rows: int, dot: Callable[[float], int]) -> list[str]:
    """What to write at each row: round values, none on the row of another; of few rows the extremes."""
    labels = [""] * rows
    if rows < 3 or low == high:
        labels[dot(low) // 4] = _short(low)
        labels[dot(high) // 4] = _short(high)
        return labels
    log = logarithmic(low, high)
    for value, text in (log_ticks if log else linear_ticks)(low, high, max(2, 2 * rows // 3)):
        if not labels[dot(value) // 4]:
            labels[dot(value) // 4] = text
    if sum(map(bool, labels)) < 2:
        labels[0], labels[-1] = labels[0] or _short(high), labels[-1] or _short(low)
    return [label[: LABEL - 2] for label in labels]


def _short(value: float) -> str:
    text = number(value)
    return text if len(text) <= LABEL - 2 else tick_text(value)[: LABEL - 2]


def linear_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """At most so many multiples of 1, 2 or 5 times a power of ten, written with equal decimals."""
    raw = (high - low) / max(1, most)
    if not 0 < raw < math.inf:
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    if not (math.isfinite(step) and step > 0 and abs(low) / step < 1e15 and abs(high) / step < 1e15):
        return []
    values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    plain = decimals <= 4 and max(abs(low), abs(high)) < 1e4
    return [(value, f"{value:.{decimals}f}" if plain else number(value)) for value in values]


def log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten; powers alone, and then only some of them, where that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**decade for decade in decades for factor in factors if -300 < decade < 300]
        kept = [value for value in values if low <= value <= high]
        if len(kept) <= most:
            break
    return [(value, tick_text(value)) for value in kept[:: -(-len(kept) // most) or 1]]


def _steps(first: int, last: int, room: int) -> Line:
    """The axis of steps: round numbers under their columns."""
    cells = [" "] * room
    for value, _ in linear_ticks(first, last, max(1, room // 12)) or [(first, "")]:
        text = str(round(value))
        at = round((value - first) / max(1, last - first) * (room - 1)) - len(text) // 2
        at = min(max(0, at), room - len(text))
        if value == round(value) and all(cell == " " for cell in cells[max(0, at - 1) : at + len(text) + 1]):
            cells[at : at + len(text)] = text
    return Line.of((f"{'step':>{LABEL - 2}}  {''.join(cells)}", "dim"))
