"""Section: one question that a report answers, in one file of `altgrad/reports/sections/`.

A section is a kind of the family, found like monitors and optimizers: a new file is a new section, and nothing else is
told about it. `place` orders them. It reads the project and returns blocks; where the project lacks what it needs, it
says what is lacking and what would bring it, in a `Limit`.
"""

import math
from abc import abstractmethod
from typing import ClassVar

from altgrad.reports.content import Block
from altgrad.reports.intervals import Interval
from altgrad.reports.project import Project
from altgrad.spec import Kind


class Section(Kind, family="section", package="altgrad.reports.sections"):
    """The family's root. `title` heads the section, `question` stands under it."""

    title: ClassVar[str] = ""
    question: ClassVar[str] = ""
    place: ClassVar[int] = 0

    @abstractmethod
    def blocks(self, project: Project) -> list[Block]:
        """What the section says of this project; never empty."""


def sections() -> list[Section]:
    """One of each kind, in their order."""
    return sorted((Section.of(kind) for kind in Section.kinds()), key=lambda each: each.place)


def signed(value: float, digits: int = 4) -> str:
    """`+0.0123`, a real minus sign; `-` for what is no number, `inf` for the infinite."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """Significant figures; `–` for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}".replace("-", "−")


def rate(value: float) -> str:
    """A learning rate as `3e-3`; `–` for NaN."""
    if math.isnan(value):
        return "–"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}" if value else "0"


def bounds(found: Interval, digits: int = 4, *, sign: bool = True) -> str:
    """`[+0.001, +0.009]`; says so where one value gives none."""
    if found.n < 2:
        return "no interval (n = 1)" if found.n else "no pairs"
    if not sign:
        return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def counted(n: int, thing: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
