"""Figures as pictures: the neutral descriptions drawn by matplotlib, as PNG, as vector PDF, and as SVG for a page.

A figure is drawn at the width it is looked at: that of a text column pair for paper, of a page, and of a phone, where
panels stand below one another. Type is set at 8 to 9 points; a PDF's fonts are embedded as outlines that editors keep
as text (TrueType, no Type 3). Drawing goes through matplotlib's object interface and its Agg, PDF and SVG backends: no
display, no global state.
"""

import io
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.display import shorten
from altgrad.numerals import rate_text, tick_texts
from altgrad.reports.content import Axes, Axis, Band, Dots, Figure, Heat, Mark, Trace, cell_texts, heat_limits

LIGHT = {
    "text": "#1b1f24", "faint": "#8b949e", "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73",
    "pink": "#CC79A7", "sky": "#56B4E9", "red": "#D55E00", "gold": "#B8A400", "grey": "#6e7781",
    "grid": "#e6e9ed", "band": "#eef1f4", "page": "#ffffff",
}  # fmt: skip
DARK = LIGHT | {
    "text": "#e6edf3", "faint": "#7d8590", "blue": "#4FA8E0", "orange": "#F0B429", "green": "#2CC295",
    "gold": "#F0E442", "red": "#F0803C", "sky": "#A9DEFF", "grey": "#9aa4af", "grid": "#262c36", "band": "#1d232c",
    "page": "#0f141a",
}  # fmt: skip
_DASH = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_SYMBOL = {"circle": "o", "square": "s", "diamond": "D", "cross": "P", "triangle-up": "^", "x": "X"}
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
PAPER, PAGE, PHONE = 6.8, 8.2, 3.9
"""Widths in inches."""
_PIXELS, _LETTER, _LINE = 130.0, 0.073, 0.15
"""Of a panel's height per inch; the width of a letter and the height of a line in inches, for what is wrapped."""


def save_figure(figure: Figure, folder: Path) -> tuple[Path, Path]:
    """Write `<key>.png` (130 dpi) and `<key>.pdf`; returns both."""
    picture = _draw(figure, PAPER)
    png, pdf = folder / f"{figure.key}.png", folder / f"{figure.key}.pdf"
    with _style(LIGHT):
        picture.savefig(png, dpi=130, facecolor=LIGHT["page"], metadata={"Software": None})
        picture.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf


def svg(figure: Figure, *, phone: bool = False) -> str:
    """The figure as SVG in LIGHT's colours, without a background."""
    if phone:
        figure = replace(figure, columns=1)
    picture, buffer = _draw(figure, PHONE if phone else PAGE), io.StringIO()
    with _style(LIGHT):
        picture.savefig(buffer, format="svg", transparent=True, dpi=100, metadata={"Date": None})
    return buffer.getvalue()


def _style(colours: dict[str, str]) -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "altgrad", "font.size": 8.5,
            "font.family": "DejaVu Sans", "axes.edgecolor": colours["faint"], "axes.labelcolor": colours["text"],
            "text.color": colours["text"], "xtick.color": colours["faint"], "ytick.color": colours["faint"],
            "xtick.labelcolor": colours["text"], "ytick.labelcolor": colours["text"], "axes.facecolor": "none",
            "legend.frameon": False, "legend.fontsize": 8, "axes.titlesize": 8.5, "axes.spines.top": False,
            "axes.spines.right": False, "text.parse_math": False, "axes.unicode_minus": True,
            "figure.autolayout": False, "figure.constrained_layout.use": False,
        }
    )  # fmt: skip


def _draw(figure: Figure, width: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    with _style(LIGHT):
        letters = int(width / figure.columns / _LETTER)
        titled = max((len(_title(panel, letters)) for panel in figure.panels), default=0)
        named = [_categories(panel.y, letters) for panel in figure.panels]
        lines = max(len(names) * (1 + max((name.count("\n") for name in names), default=0)) for names in named)
        panel_height = max(figure.height / _PIXELS, _LINE * lines)
        tall = figure.rows * (panel_height + 0.4 + _LINE * max(titled, 1))
        picture = Canvas(figsize=(width, tall), layout="constrained")
        legend: dict[str, Any] = {}
        places = [picture.add_subplot(figure.rows, figure.columns, index + 1) for index in range(len(figure.panels))]
        scales = sum(isinstance(mark, Heat) and mark.scale for panel in figure.panels for mark in panel.marks)
        for axes, panel in zip(places, figure.panels, strict=True):
            _panel(axes, panel, letters, legend, picture, scales < len(places))
        if legend:
            names = ["\n".join(textwrap.wrap(name, int(width / _LETTER) - 8)) for name in legend]
            columns = max(1, min(len(names), int(width / _LETTER / (max(map(len, names)) + 7))))
            shown = picture.legend(legend.values(), names, loc="outside upper left", ncols=columns)
            picture.set_figheight(tall + 0.16 * -(-len(names) // columns) + 0.1)
            shown.set_in_layout(True)
        # The layout is worked out once, and not again for each file; drawing all of it to that end would cost a third.
        engine = picture.get_layout_engine()
        assert engine is not None
        engine.execute(picture)
        picture.set_layout_engine(None)  # with "none" every file would be drawn twice, the first time for its layout
        return picture


def _panel(axes: Any, panel: Axes, letters: int, legend: dict[str, Any], picture: Any, shared: bool) -> None:
    for mark in panel.marks:
        handle = _mark(axes, mark, LIGHT, picture, shared)
        if isinstance(mark, Trace | Dots) and mark.in_legend and handle is not None:
            legend.setdefault(mark.name, handle)
    if not any(isinstance(mark, Heat) for mark in panel.marks):
        axes.grid(True, color=LIGHT["grid"], linewidth=0.6)
        axes.set_axisbelow(True)
    if panel.title:
        axes.set_title("\n".join(_title(panel, letters)), loc="left", color=LIGHT["text"])
    _axis(axes, panel.x, "x", letters)
    _axis(axes, panel.y, "y", letters)


def _categories(axis: Axis, letters: int) -> list[str]:
    """The names along an axis, in lines that leave more than half of the width to the picture; modules' shortened."""
    most = max(letters * 2 // 5, 14)
    return ["\n".join(textwrap.wrap(name, most)) if " " in name else shorten(name, most) for name in axis.categories]


def _title(panel: Axes, letters: int) -> list[str]:
    """The lines of a panel's title, which begins where the picture does, right of the names."""
    names = "\n".join(_categories(panel.y, letters)).split("\n")
    return textwrap.wrap(panel.title, max(letters - 8 - max(map(len, names)), 16))


def _axis(axes: Any, axis: Axis, which: str, letters: int) -> None:
    getattr(axes, f"set_{which}label")("\n".join(textwrap.wrap(axis.label, max(letters - 14, 24))))
    if axis.log:
        getattr(axes, f"set_{which}scale")("log")
    if axis.categories:
        turned = {"rotation": 30, "ha": "right"} if which == "x" and max(map(len, axis.categories)) > 8 else {}
        names = _categories(axis, letters)
        getattr(axes, f"set_{which}ticks")(range(len(names)), names, **turned)
        getattr(axes, f"set_{which}lim")(-0.6, len(names) - 0.4)
    elif axis.limits:
        getattr(axes, f"set_{which}lim")(*axis.limits)
    if axis.ticks:
        getattr(axes, f"set_{which}ticks")(axis.ticks, tick_texts(axis.ticks))
        getattr(axes, f"set_{which}ticks")([], minor=True)
    elif axis.log:
        _powers(getattr(axes, f"{which}axis"))
    if axis.reverse:
        getattr(axes, f"invert_{which}axis")()


def _powers(axis: Any) -> None:
    """At most five ticks at powers of ten, as `1e-3`; matplotlib writes its own as mathematics, which is off here."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: rate_text(value)))
    axis.set_minor_formatter(NullFormatter())


def _mark(axes: Any, mark: Mark, colours: dict[str, str], picture: Any, shared: bool) -> Any:
    if isinstance(mark, Trace):
        colour = colours[mark.tone]
        if mark.low is not None and mark.high is not None:
            axes.fill_between(mark.x, mark.low, mark.high, color=colour, alpha=0.16, linewidth=0)
        symbol = "o" if mark.markers else None
        (line,) = axes.plot(
            mark.x, mark.y, color=colour, linestyle=_DASH[mark.dash], linewidth=1.4, marker=symbol, markersize=3.5
        )
        return line
    if isinstance(mark, Dots):
        return _dots(axes, mark, colours)
    if isinstance(mark, Heat):
        return _heat(axes, mark, picture, shared)
    span = axes.axvspan if mark.along == "x" else axes.axhspan
    if isinstance(mark, Band):
        return span(mark.low, mark.high, color=colours["band"], linewidth=0, zorder=0)
    line_at = axes.axvline if mark.along == "x" else axes.axhline
    return line_at(mark.at, color=colours[mark.tone], linestyle=_DASH[mark.dash], linewidth=0.9, zorder=1)


def _dots(axes: Any, mark: Dots, colours: dict[str, str]) -> Any:
    errors: dict[str, Any] = {}
    if mark.low is not None and mark.high is not None:
        centre = mark.x if mark.along == "x" else mark.y
        errors[f"{mark.along}err"] = np.maximum(np.stack([centre - mark.low, mark.high - centre]), 0)
        errors[f"{mark.along}err"][~np.isfinite(errors[f"{mark.along}err"])] = 0
    handle = axes.errorbar(
        mark.x, mark.y, fmt=_SYMBOL[mark.symbol], color=colours[mark.tone], markersize=5.5, capsize=3, linewidth=1.5,
        **errors,
    )  # fmt: skip
    tops = mark.y if mark.high is None or mark.along == "x" else np.where(np.isfinite(mark.high), mark.high, mark.y)
    for x, y, text in zip(mark.x, tops, mark.texts, strict=False):  # slanted, so that names of neighbours can be read
        axes.annotate(
            text, (x, y), xytext=(1, 3), textcoords="offset points", fontsize=7.5, rotation=50, ha="left", va="bottom",
            rotation_mode="anchor",
        )  # fmt: skip
    return handle


def _heat(axes: Any, mark: Heat, picture: Any, shared: bool) -> None:
    low, high = heat_limits(mark)
    named = bool(len(mark.x)) and isinstance(mark.x[0], str)
    x: Any = range(len(mark.x)) if named else mark.x
    y: Any = range(len(mark.y)) if len(mark.y) and isinstance(mark.y[0], str) else mark.y
    cells = np.ma.masked_invalid(mark.z)
    shown = axes.pcolormesh(
        x, y, cells, cmap=DIVERGING if mark.diverging else SEQUENTIAL, vmin=low, vmax=high, shading="nearest",
        rasterized=not mark.write,
    )  # fmt: skip
    if mark.scale:
        # One scale may serve all panels; drawn beside the first alone, it would make that one narrower.
        bar = picture.colorbar(shown, ax=picture.axes if shared else axes, pad=0.02, shrink=0.5 if shared else 1.0)
        bar.outline.set_visible(False)
        bar.set_label(mark.unit)
    if mark.write:
        for row, values, texts in zip(y, mark.z, cell_texts(mark), strict=True):
            for column, value, text in zip(x, values, texts, strict=True):
                bright = shown.cmap(shown.norm(value))[:3] if np.isfinite(value) else (1, 1, 1)
                ink = "#111111" if np.dot(bright, (0.3, 0.6, 0.1)) > 0.5 else "#ffffff"
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)


def colour_steps(name: str, count: int) -> list[str]:
    """A colour map of matplotlib's as so many `#rrggbb`."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[name](index / (count - 1))) for index in range(count)]
