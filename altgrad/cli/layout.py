"""Boxes around lines of styled text, and how rows of a screen are shared out.

A frame is a plain list of `Line`s, each exactly as wide as it says, built by pure functions from numbers: nothing
here knows of a terminal, so a test can look at a frame as a person does. rich's Layout and Table were the road not
taken: they measure and wrap each cell on every refresh (15 ms a frame, on the training process' interpreter lock),
and leave "nothing is ever wider than the window" to be hoped for; here it is one function, `Line.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from altgrad.display import Line, Part


def apart(left: Line, right: Line, width: int) -> Line:
    """`left` at the left edge and `right` at the right one; the left is cut where both do not fit."""
    if right.width + 2 > width:
        return left.fit(width)
    return left.fit(width - right.width - 2).then(Line.of("  ")).then(right)


def border(ends: tuple[str, str], left: Line, right: Line, width: int) -> Line:
    """A horizontal edge `╭─ left ───── right ─╮`; the notes are left out where they do not fit."""
    first, last = ends
    spare = width - 4
    parts: list[Part] = []
    used = 0
    if left.text and left.width + 2 <= spare:
        parts += [" ", *left.spans, " "]
        used += left.width + 2
    tail: list[Part] = []
    if right.text and used + right.width + 2 <= spare:
        tail = [" ", *right.spans, " "]
        used += right.width + 2
    middle = ("─" * max(0, spare - used), "dim")
    return Line.of((first + "─", "dim"), *parts, middle, *tail, ("─" + last, "dim")).fit(width)


def block(
    title: Line, note: Line, lines: Sequence[Line], width: int, height: int, foot: Line | None = None
) -> list[Line]:
    """`lines` under a title in exactly `height` rows of `width` columns.

    With `foot` a box stands around them (its bottom edge carries `foot`, which may be empty); without, only a rule
    above, for windows where a row is worth more than a frame. `height` includes the edges.
    """
    nothing = Line.of("")
    if foot is None:
        body = [line.fit(width) for line in lines[: height - 1]]
        return [border(("─", "─"), title, note, width), *body, *[nothing.fit(width)] * (height - 1 - len(body))]
    inside = height - 2
    rows = [*lines[:inside], *[nothing] * (inside - len(lines))]
    edge = Line.of(("│", "dim"))
    body = [edge.then(Line.of(" ")).then(row.fit(width - 4)).then(Line.of(" ")).then(edge) for row in rows]
    return [border(("╭", "╮"), title, note, width), *body, border(("╰", "╯"), foot, nothing, width)]


def beside(left: Sequence[Line], right: Sequence[Line]) -> list[Line]:
    """Two blocks of equal height, one blank column between them."""
    assert len(left) == len(right)
    return [one.then(Line.of(" ")).then(other) for one, other in zip(left, right, strict=True)]


@dataclass(frozen=True)
class Want:
    """Rows a section asks for, edges included: none at all, or `least` to `most`; `weight` says how eagerly it
    grows.
    """

    least: int
    most: int
    weight: int = 1


def share(rows: int, wants: Sequence[Want]) -> list[int]:
    """Rows for each section, summing to at most `rows`.

    Earlier sections matter more: each in turn gets its least if that is still to be had, else nothing. What remains
    goes row by row to whichever section is furthest behind its weight.
    """
    given = [0] * len(wants)
    for index, want in enumerate(wants):
        if want.least <= rows:
            given[index] = want.least
            rows -= want.least
    while rows > 0:
        growing = [i for i, want in enumerate(wants) if 0 < given[i] < want.most]
        if not growing:
            break
        eager = min(growing, key=lambda i: (given[i] - wants[i].least + 1) / wants[i].weight)
        given[eager] += 1
        rows -= 1
    return given


EMPTY = Line(())


@dataclass(frozen=True)
class Rows:
    """A part of the picture: its title, a note at the other end of the edge, what it wants, and its rows for a size."""

    title: Line
    note: Line
    want: Want
    rows: Callable[[int, int], list[Line]]
    foot: Line = EMPTY

    def draw(self, width: int, height: int, boxed: bool) -> list[Line]:
        """The part in exactly `height` rows of `width` columns, in a box or below a rule."""
        inside = (width - 4, height - 2) if boxed else (width, height - 1)
        return block(self.title, self.note, self.rows(*inside), width, height, self.foot if boxed else None)
