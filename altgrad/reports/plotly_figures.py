"""Figures for the screen: neutral descriptions as plotly.js data, and the library itself as text.

Only the bundle that the plotly package carries is used; figures are built as plain dictionaries, since its Python
classes validate every number and take seconds for a page. Colours are written as `@tone`; the page puts in those of
the light or of the dark theme, and draws again when that changes.
"""

import math
import textwrap
from typing import Any

import numpy as np

from altgrad.numerals import tick_texts
from altgrad.reports.content import Axes, Axis, Band, Dots, Figure, Heat, Mark, Trace, cell_texts, heat_limits

_DASH = {"solid": "solid", "dash": "dash", "dot": "dot", "dashdot": "dashdot"}
_ROW_GAP, _TOP, _TITLES, _BOTTOM = 106, 34, 24, 62


def plotly_script() -> str:
    """plotly.js, minified."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def plotly_figure(figure: Figure) -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` for Plotly.react, NaN as null."""
    data: list[dict[str, Any]] = []
    inside = figure.rows * (figure.height + _ROW_GAP) - _ROW_GAP
    titles = _TITLES if any(panel.title for panel in figure.panels) else 0
    layout: dict[str, Any] = {
        "height": inside + _TOP + titles + _BOTTOM,
        "margin": {"l": 70, "r": 24, "t": _TOP + titles, "b": _BOTTOM, "pad": 2},
        "paper_bgcolor": "@clear", "plot_bgcolor": "@clear",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@text"},
        "legend": {"orientation": "h", "y": 1 + titles / inside, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "hovermode": "closest", "hoverlabel": {"font": {"family": "ui-monospace, monospace", "size": 12}},
        "annotations": [], "shapes": [],
    }  # fmt: skip
    named: set[str] = set()
    for index, panel in enumerate(figure.panels):
        _place(figure, index, panel, layout)
        for mark in panel.marks:
            _add(mark, panel, str(index + 1) if index else "", data, layout, named)
    if not named:
        layout["showlegend"] = False
    return {"data": [_plain(trace) for trace in data], "layout": layout}


def _place(figure: Figure, index: int, panel: Axes, layout: dict[str, Any]) -> None:
    """The two axes of a panel on the page, and its title above it."""
    row, column = divmod(index, figure.columns)
    wide = 1 / figure.columns
    gap = 0.24 * wide if figure.columns > 1 else 0.0
    total = figure.rows * figure.height + (figure.rows - 1) * _ROW_GAP
    left, right = column * wide + gap * (column > 0), (column + 1) * wide - gap / 4 * (column < figure.columns - 1)
    top = 1 - row * (figure.height + _ROW_GAP) / total
    bottom = max(top - figure.height / total, 0.0)
    number = str(index + 1) if index else ""
    layout[f"xaxis{number}"] = _axis(panel.x) | {"domain": [left, right], "anchor": f"y{number}"}
    layout[f"yaxis{number}"] = _axis(panel.y) | {"domain": [bottom, top], "anchor": f"x{number}"}
    if panel.title:
        layout["annotations"].append(
            {
                "panel": index, "text": "<br>".join(map(_text, textwrap.wrap(panel.title, 46))),
                "x": left, "y": top, "xref": "paper", "yref": "paper",
                "showarrow": False,
                "xanchor": "left", "yanchor": "bottom", "yshift": 4,
                "font": {"size": 13, "color": "@text"},
            }
        )  # fmt: skip


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {
        "title": {"text": _text(axis.label), "standoff": 8, "font": {"size": 13}},
        "gridcolor": "@grid", "zeroline": False,
        "linecolor": "@faint", "ticks": "outside", "tickcolor": "@faint", "ticklen": 4, "automargin": True,
    }  # fmt: skip
    if axis.categories:
        # A linear axis with names for ticks: plotly's own category axes refuse positions between categories.
        found["tickvals"], found["ticktext"] = list(range(len(axis.categories))), [_text(c) for c in axis.categories]
        found |= {"range": [-0.6, len(axis.categories) - 0.4], "showgrid": False}
    elif axis.log:
        found |= {"type": "log", "exponentformat": "e"}  # powers would be set a quarter larger than other ticks
        if axis.limits:
            found["range"] = [math.log10(axis.limits[0]), math.log10(axis.limits[1])]
    elif axis.limits:
        found["range"] = list(axis.limits)
    if axis.ticks:
        found |= {"tickvals": list(axis.ticks), "ticktext": tick_texts(axis.ticks)}
    if axis.reverse:
        found["range"] = found["range"][::-1] if "range" in found else None
        if found["range"] is None:
            found |= {"autorange": "reversed"}
            del found["range"]
    return found


def _add(mark: Mark, panel: Axes, number: str, data: list[Any], layout: dict[str, Any], named: set[str]) -> None:
    axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
    if isinstance(mark, Trace):
        _curve(mark, axes, data, _shown(mark, named))
    elif isinstance(mark, Dots):
        _dots(mark, panel, axes, data, _shown(mark, named))
    elif isinstance(mark, Heat):
        _heat(mark, axes, data)
    elif isinstance(mark, Band):
        spans = {"x0": mark.low, "x1": mark.high, "y0": 0, "y1": 1, "xref": f"x{number}", "yref": f"y{number} domain"}
        if mark.along == "y":
            spans = {
                "y0": mark.low,
                "y1": mark.high,
                "x0": 0,
                "x1": 1,
                "yref": f"y{number}",
                "xref": f"x{number} domain",
            }
        layout["shapes"].append({"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": "@band", **spans})
    else:
        ends = {"x0": mark.at, "x1": mark.at, "y0": 0, "y1": 1, "xref": f"x{number}", "yref": f"y{number} domain"}
        if mark.along == "y":
            ends = {"y0": mark.at, "y1": mark.at, "x0": 0, "x1": 1, "yref": f"y{number}", "xref": f"x{number} domain"}
        layout["shapes"].append(
            {"type": "line", "line": {"width": 1, "dash": mark.dash, "color": f"@{mark.tone}"}, **ends}
        )


def _shown(mark: Trace | Dots, named: set[str]) -> dict[str, Any]:
    """Legend settings: a name is shown once, and turned on and off together wherever it is drawn."""
    first = mark.in_legend and mark.name not in named
    if mark.in_legend:
        named.add(mark.name)
    return {"name": _text(mark.name), "legendgroup": mark.name, "showlegend": first}


def _curve(mark: Trace, axes: dict[str, str], data: list[Any], legend: dict[str, Any]) -> None:
    if mark.low is not None and mark.high is not None:
        edge: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines",
            "x": mark.x,
            "line": {"width": 0},
            "hoverinfo": "skip",
            **axes,
        }
        edge |= {"legendgroup": legend["legendgroup"], "showlegend": False}
        data.append(edge | {"y": mark.low})
        data.append(edge | {"y": mark.high, "fill": "tonexty", "fillcolor": f"@{mark.tone}-light"})
    data.append(
        {
            "type": "scatter", "mode": "lines+markers" if mark.markers else "lines", "x": mark.x, "y": mark.y,
            "line": {"color": f"@{mark.tone}", "dash": _DASH[mark.dash], "width": 2}, "marker": {"size": 7},
            **axes, **legend,
        }
    )  # fmt: skip


def _dots(mark: Dots, panel: Axes, axes: dict[str, str], data: list[Any], legend: dict[str, Any]) -> None:
    axis = panel.x if mark.along == "x" else panel.y
    centre = mark.x if mark.along == "x" else mark.y
    found: dict[str, Any] = {
        "type": "scatter", "mode": "markers+text" if mark.texts else "markers",
        "x": mark.x, "y": mark.y,
        "marker": {"color": f"@{mark.tone}", "symbol": mark.symbol, "size": 10},
        **axes, **legend,
    }  # fmt: skip
    if mark.texts:
        found |= {"text": [_text(text) for text in mark.texts], "textposition": "top center"}
    if mark.low is not None and mark.high is not None and not axis.categories:
        found[f"error_{mark.along}"] = {
            "type": "data", "symmetric": False, "array": mark.high - centre, "arrayminus": centre - mark.low,
            "color": f"@{mark.tone}", "thickness": 2, "width": 5,
        }  # fmt: skip
    data.append(found)


def _heat(mark: Heat, axes: dict[str, str], data: list[Any]) -> None:
    (low, high), texts = heat_limits(mark), cell_texts(mark)
    found: dict[str, Any] = {
        "type": "heatmap", "x": _positions(mark.x), "y": _positions(mark.y), "z": mark.z, "zmin": low, "zmax": high,
        "colorscale": "@diverging" if mark.diverging else "@sequential", "xgap": 1, "ygap": 1, "hoverongaps": False,
        "showscale": mark.scale, "showlegend": False, "hoverinfo": "text", **axes,
        "colorbar": {
            "title": {"text": _text(mark.unit), "side": "right", "font": {"size": 13}},
            "thickness": 12, "outlinewidth": 0,
        },
        "hovertext": [
            [_text(f"{y}, {x}: {text} {mark.unit}") for x, text in zip(mark.x, row, strict=True)]
            for y, row in zip(mark.y, texts, strict=True)
        ],
    }  # fmt: skip
    if mark.write:
        found |= {"text": texts, "texttemplate": "%{text}"}
    data.append(found)


def _positions(values: Any) -> list[Any]:
    """Numbers as they are; names by their place."""
    return list(range(len(values))) if len(values) and isinstance(values[0], str) else list(values)


def _text(text: Any) -> str:
    """Plotly reads a little HTML in its texts: none of ours is meant as such."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(value: Any) -> Any:
    """Arrays as lists, floats to 6 figures, NaN and infinities as None."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
