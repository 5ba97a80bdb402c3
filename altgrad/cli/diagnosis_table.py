"""Headings and tables of the pages of `altgrad diagnose`."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from altgrad.cli.layout import Line, clean, shorten

T = TypeVar("T")


def title(text: str, note: str = "") -> Line:
    """A section's heading."""
    return Line.of((text, "bold cyan"), (f"  {note}" if note else "", "dim"))


def kinds(rows: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """The rows by their kind, in the order met."""
    found: dict[str, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Line]:
    """Aligned columns two blanks apart, the first shortened to what is left of the width."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in [header, *cells]) for n in range(len(header))]
    widths[0] = max(8, min(widths[0], width - 2 - sum(size + 2 for size in widths[1:])))
    lines = [_row(header, widths, "bold", "bold")]
    for row in cells:
        name, times, count = row[0].partition(" x")
        short = shorten(name, widths[0] - len(times + count)) + times + count
        lines.append(_row([short, *row[1:]], widths, "cyan", ""))
    return lines


def _row(cells: Sequence[str], widths: Sequence[int], first: str, others: str) -> Line:
    parts: list[str | tuple[str, str]] = ["  ", (cells[0].ljust(widths[0]), first)]
    for cell, size in zip(cells[1:], widths[1:], strict=True):
        style = "bold green" if "*" in cell else others
        parts += ["  ", (cell.ljust(size), style)]
    return Line.of(*parts)
