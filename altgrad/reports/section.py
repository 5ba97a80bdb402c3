"""Section: one question that a report answers, in one file of `altgrad/reports/sections/`.

A section is a kind of the family, found like monitors and optimizers: a new file is a new section, and nothing else is
told about it. `place` orders them, `metrics` says which of a run's quantities it draws, so that reading keeps them. It
reads the project and returns blocks, none where it has nothing to say; what would be worth knowing and cannot be known
from these runs it says in a `Limit`, which every output lists at its end.
"""

from abc import abstractmethod
from typing import ClassVar

from altgrad.numerals import signed
from altgrad.reports.content import Block
from altgrad.reports.project import Project
from altgrad.spec import Kind
from altgrad.statistics.intervals import Interval


class Section(Kind, family="section", package="altgrad.reports.sections"):
    """The family's root. `title` heads the section, `question` stands under it."""

    title: ClassVar[str] = ""
    question: ClassVar[str] = ""
    place: ClassVar[int] = 0
    metrics: ClassVar[tuple[str, ...]] = ()
    """Quantities, the last part of a metric's key, `*` for any text in it; `train/`, `validation/` and `time/` are
    always there."""

    @abstractmethod
    def blocks(self, project: Project) -> list[Block]:
        """What the section says of this project; empty where it has nothing to say."""


def sections() -> list[Section]:
    """One of each kind, in their order."""
    return sorted((Section.of(kind) for kind in Section.kinds()), key=lambda each: each.place)


def drawn_metrics() -> frozenset[str]:
    """What the sections draw, together."""
    return frozenset(quantity for section in sections() for quantity in section.metrics)


def bounds(found: Interval, digits: int = 4, *, sign: bool = True) -> str:
    """`[+0.001, +0.009]`; says so where one value gives none."""
    if found.n < 2:
        return "no interval (n = 1)" if found.n else "no pairs"
    if not sign:
        return f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"[{signed(found.low, digits)}, {signed(found.high, digits)}]"
