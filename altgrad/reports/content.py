"""What a section says, as plain data: paragraphs, tables, figures, and what the data cannot support.

Texts are plain text; every writer (page, markdown, LaTeX, terminal) escapes them for its own language, so a run called
`<script>` is harmless everywhere. Figures are neutral descriptions that are drawn twice, by plotly for the screen and
by matplotlib for paper, from the same numbers.

Colours and dashes are named by what they mean (`tone`), so that a format has one colour in the whole report. The tones
are those of Okabe and Ito (Color Universal Design, 2008), told apart with any colour vision; where lines cross, dashes
and symbols say the same again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tone = Literal["text", "faint", "blue", "orange", "green", "pink", "sky", "red", "gold", "grey"]
FORMAT_TONES: tuple[Tone, ...] = ("blue", "orange", "green", "pink", "sky", "red", "gold")
Dash = Literal["solid", "dash", "dot", "dashdot"]
Symbol = Literal["circle", "square", "diamond", "cross", "triangle-up", "x"]


@dataclass(frozen=True)
class Axis:
    """A label with its unit.

    ticks: where they should stand. categories: where the axis counts things by name. limits: where they are not the
    data's.
    """

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    reverse: bool = False
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A line through points, with a band between `low` and `high` where given."""

    x: Array
    y: Array
    name: str
    tone: Tone = "blue"
    dash: Dash = "solid"
    low: Array | None = None
    high: Array | None = None
    markers: bool = False
    in_legend: bool = True


@dataclass(frozen=True)
class Dots:
    """Points, with intervals along x or y where given; `texts` name them one by one."""

    x: Array
    y: Array
    name: str
    tone: Tone = "blue"
    symbol: Symbol = "circle"
    low: Array | None = None
    high: Array | None = None
    along: Literal["x", "y"] = "y"
    texts: tuple[str, ...] = ()
    in_legend: bool = True


@dataclass(frozen=True)
class Heat:
    """z[row, column] over categories or numbers; `diverging` has its middle colour at 0. NaN is left empty."""

    x: Sequence[float] | Sequence[str]
    y: Sequence[float] | Sequence[str]
    z: Array
    unit: str
    diverging: bool = False
    limits: tuple[float, float] | None = None
    write: bool = False
    scale: bool = True


@dataclass(frozen=True)
class Band:
    """A shaded range on one axis, across the whole other one."""

    low: float
    high: float
    along: Literal["x", "y"]
    name: str


@dataclass(frozen=True)
class Guide:
    """A straight line at one value of an axis."""

    at: float
    along: Literal["x", "y"]
    tone: Tone = "faint"
    dash: Dash = "dot"


Mark: TypeAlias = Trace | Dots | Heat | Band | Guide


@dataclass(frozen=True)
class Axes:
    """One pair of axes."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """`key` names its files: lower-case letters, digits and `-`. `caption` says what to see. height: of a panel, px."""

    key: str
    title: str
    caption: str
    panels: tuple[Axes, ...]
    columns: int = 1
    height: int = 380

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return -(-len(self.panels) // self.columns)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Limit:
    """What the data cannot support, or can only with a reservation: said at the end, whatever section says it."""

    text: str


@dataclass(frozen=True)
class Headline:
    """The one sentence of a section."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells are texts. `numeric` columns (by index) are set flush right. key: as a figure's."""

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)
    note: str = ""


Block: TypeAlias = Paragraph | Limit | Headline | Table | Figure


def tones(names: Sequence[str]) -> dict[str, Tone]:
    """A tone for each name, in order; an eighth and later ones begin again."""
    return {name: FORMAT_TONES[index % len(FORMAT_TONES)] for index, name in enumerate(dict.fromkeys(names))}


def heat_limits(mark: Heat) -> tuple[float, float]:
    """The range of a heat map's colours; symmetric around 0 if it diverges."""
    if mark.limits is not None:
        return mark.limits
    finite = mark.z[np.isfinite(mark.z)]
    if not len(finite):
        return 0.0, 1.0
    if mark.diverging:
        reach = float(np.abs(finite).max()) or 1.0
        return -reach, reach
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1


def cell_texts(mark: Heat) -> list[list[str]]:
    """The numbers of its cells with as many decimals each, so that the largest has three figures; signed where the
    middle colour is 0, and nothing for NaN.
    """
    largest = float(np.abs(mark.z[np.isfinite(mark.z)]).max(initial=0.0))
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    sign = "+" if mark.diverging else ""
    return [[f"{v:{sign}.{digits}f}".replace("-", "−") if math.isfinite(v) else "" for v in row] for row in mark.z]
