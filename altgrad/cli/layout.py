"""Lines of styled text, boxes around them, and how rows of a screen are shared out.

A frame is a plain list of `Line`s, each exactly as wide as it says, built by pure functions from numbers: nothing
here knows of a terminal, so a test can look at a frame as a person does. rich's Layout and Table were the road not
taken: they measure and wrap each cell on every refresh (15 ms a frame, on the training process' interpreter lock),
and leave "nothing is ever wider than the window" to be hoped for; here it is one function, `Line.fit`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Part = str | tuple[str, str]


@lru_cache(maxsize=4096)
def cells(character: str) -> int:
    """Columns that one printable character takes in a terminal: 2 for East Asian wide ones, else 1."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clean(text: str) -> str:
    """`text` as one line that cannot disturb a terminal.

    Control characters (an escape sequence in a run's name) become `?`, white space one blank, and marks of no width go,
    since terminals disagree on their width.
    """
    marks = ("Mn", "Me", "Cf")
    return "".join(
        character if character.isprintable() else "?"
        for character in " ".join(text.split())
        if unicodedata.category(character) not in marks
    )


def shorten(name: str, width: int) -> str:
    """A module's name in at most `width` columns: parts become initials from the left (`m.l.11.self_attn.q_proj`).

    Numbers stay, since they say which layer; where that is not enough the middle is cut out.
    """
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if sum(map(cells, ".".join(parts))) <= width:
            break
        parts[index] = part if part.isdigit() else part[:1]
    name = ".".join(parts)
    if sum(map(cells, name)) <= width:
        return name
    if width < 2:
        return "…"[:width]
    head = (width - 1) // 2
    return name[:head] + "…" + name[-(width - 1 - head) :]


@dataclass(frozen=True)
class Line:
    """One row: pieces of text with the name of a rich style each (empty: the terminal's own)."""

    spans: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, *parts: Part) -> Line:
        """A line of plain strings and (string, style) pairs."""
        return cls(tuple(part if isinstance(part, tuple) else (part, "") for part in parts))

    @property
    def text(self) -> str:
        """The characters alone."""
        return "".join(text for text, _ in self.spans)

    @property
    def width(self) -> int:
        """Columns in a terminal."""
        return sum(map(cells, self.text))

    def fit(self, width: int) -> Line:
        """This line in exactly `width` columns: filled with blanks, or cut, with an ellipsis to show it."""
        missing = width - self.width
        if missing >= 0:
            return Line(self.spans + ((" " * missing, ""),)) if missing else self
        kept: list[tuple[str, str]] = []
        room = width - 1
        for text, style in self.spans:
            piece = ""
            for character in text:
                room -= cells(character)
                if room < 0:
                    break
                piece += character
            kept.append((piece, style))
            if room < 0:
                break
        cut = Line((*kept, ("…" if width > 0 else "", "dim")))
        return cut if cut.width >= width else cut.fit(width)  # a wide character at the edge leaves one blank

    def then(self, other: Line) -> Line:
        """This line and, right behind it, another."""
        return Line(self.spans + other.spans)


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
