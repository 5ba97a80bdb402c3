"""How lines and tables look, wherever they are shown: on a terminal, in a pipe or a notebook.

Lines are pieces of text with a style's name each, made by pure functions: nothing here knows of a terminal.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

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


def event_text(event: str, message: str) -> str:
    """An event of a run in one line: what it is, unless the message begins with that, and the message."""
    message = clean(message)
    return message if message.startswith(event) else f"{event}: {message}"


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


_NUMBER = re.compile(r"[-+−]?(\d[\d,]*\.?\d*(e[-+]?\d+)?( ?[kMGT]?B?| ?%| dB|[smhd]( \d+[smh])?)?|nan|inf|\d+/\d+)")
_NOTHING = ("-", "–", "")


def table_lines(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[Line]:
    """The rows of a table in aligned cells two blanks apart, columns of numbers to the right; the last cell wraps where
    `columns` are few.
    """
    cleaned = [[_cell(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(len(row[column]) for row in cleaned) for column in range(len(cleaned[0]))]
    right = [bool(header) and _is_numeric([row[column] for row in cleaned[1:]]) for column in range(len(widths))]
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    lines = [Line.of((title, "bold"))] if title else []
    for index, row in enumerate(cleaned):
        cells = [
            cell.rjust(size) if to else cell.ljust(size) for cell, size, to in zip(row, widths, right, strict=True)
        ]
        first, *middle = (cell + "  " for cell in cells[:-1])
        styles = ("bold", "bold") if header and index == 0 else ("cyan", "")
        last = row[-1] if not right[-1] else cells[-1]
        room = len(last) if columns is None else max(12, columns - before)
        pieces = [last] if len(last) <= room else textwrap.wrap(last, room)
        lines.append(Line.of((first, styles[0]), ("".join(middle) + (pieces or [""])[0], styles[1])))
        lines += [Line.of(" " * before + rest) for rest in pieces[1:]]
    return lines


def _cell(text: str) -> str:
    """A cell cleaned, but for its blanks: they set in, and draw an interval to scale."""
    return "".join(part if part[:1] == " " else clean(part) for part in re.split("( +)", text)).rstrip(" ")


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers, with the unit of each, and nothing else."""
    known = [cell for cell in cells if cell not in _NOTHING]
    return bool(known) and all(_NUMBER.fullmatch(cell) for cell in known)


_STYLES = {"bold": "font-weight: bold", "dim": "opacity: .65"}
_COLOURS = {"red": "#d1453b", "green": "#2e9e48", "yellow": "#b8860b", "cyan": "#1e88c7", "magenta": "#b455b4"}
"""Legible on white and on black, since a notebook does not say which it is."""


def html_lines(lines: Sequence[Line]) -> str:
    """These lines in a fixed-width font, to show in a notebook; whatever they say is text, never markup."""
    return "<pre>" + "\n".join("".join(_span(text, style) for text, style in line.spans) for line in lines) + "</pre>"


def _span(text: str, style: str) -> str:
    words = style.split()
    rules = [_STYLES[word] for word in words if word in _STYLES]
    rules += [f"color: {_COLOURS[word]}" for word in words if word in _COLOURS]
    return f'<span style="{"; ".join(rules)}">{escape(text)}</span>' if rules else escape(text)
