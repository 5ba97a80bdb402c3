"""report.html: the report as a page (`altgrad.webpage`).

Figures are SVG, drawn at the width of a page and at that of a phone; the page shows the one that fits. `interactive`
puts plotly.js in, once, with the figures' numbers: points can then be read off and curves turned off, for 5 MB. Without
it the page has no script at all.

What the runs cannot answer is the last line, folded: whatever sections said in a `Limit`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from altgrad import webpage
from altgrad.reports import figures, plotly_figures
from altgrad.reports.content import Block, Figure, Headline, Limit, Table
from altgrad.reports.inline_svg import InlineFigures
from altgrad.reports.project import Project
from altgrad.reports.section import Section


@dataclass(frozen=True)
class Chapter:
    """A section with what it said."""

    section: Section
    blocks: tuple[Block, ...]

    @property
    def shown(self) -> list[Block]:
        """All but limits; a chapter without any is left out."""
        return [block for block in self.blocks if not isinstance(block, Limit)]


def open_questions(chapters: Sequence[Chapter]) -> list[str]:
    """What the data cannot support, from all chapters."""
    limits = [block.text for chapter in chapters for block in chapter.blocks if isinstance(block, Limit)]
    return list(dict.fromkeys(limits))


def html(project: Project, chapters: Sequence[Chapter], headline: str, made: str, *, interactive: bool) -> str:
    """The page. made: when and by which version, for its head."""
    drawings = InlineFigures()
    shown = [chapter for chapter in chapters if chapter.shown]
    parts = []
    for chapter in shown:
        inner = "".join(_block(block, None if interactive else drawings) for block in chapter.shown)
        parts.append(webpage.section(chapter.section.kind, chapter.section.title, chapter.section.question, inner))
    if questions := open_questions(chapters):
        parts.append(webpage.folded(f"What these runs cannot answer ({len(questions)})", questions))
    parts.append(
        "<footer><p>Numbers behind every figure: <code>data.parquet</code> and <code>data.csv</code> in this folder; "
        "figures for print in <code>figures/</code>, tables in <code>tables/</code>. "
        f"Read from {escape(project.source)}.</p></footer>\n"
    )
    scripts: list[str] = []
    style = drawings.style
    if interactive:
        drawn = [block for chapter in shown for block in chapter.shown if isinstance(block, Figure)]
        parts.append(f'<script type="application/json" id="figures">{_json(drawn)}</script>\n')
        scripts, style = [_asset("styles.js"), plotly_figures.plotly_script(), _asset("report.js")], ""
    return webpage.document(
        project.name, headline, "".join(parts), kicker=f"AltGrad report, {made}", head=_facts(project),
        links=[(chapter.section.kind, chapter.section.title) for chapter in shown], style=style, scripts=scripts,
    )  # fmt: skip


def page_counts(project: Project) -> list[str]:
    """What there is, for the head of the page."""
    counts = {
        "runs": len(project.records), "seeds": len({record.seed for record in project.results()}),
        "diverged": sum(record.diverged for record in project.records),
        "unfinished": sum(not record.ended for record in project.records),
        "with problems": sum(bool(record.problems) for record in project.records),
    }  # fmt: skip
    return [f"{n} {what.removesuffix('s') if n == 1 else what}" for what, n in counts.items() if n]


def _facts(project: Project) -> str:
    told = "".join(f"<li>{escape(count)}</li>" for count in page_counts(project))
    return f'<ul class="facts">{told}</ul>'


def _block(block: Block, drawings: InlineFigures | None) -> str:
    """The markup of a block; a figure's place where the script is to draw it."""
    if isinstance(block, Figure):
        plot = f'<div class="plot" data-figure="{block.key}"></div>'
        if drawings is not None:
            wide, narrow = (drawings.add(figures.svg(block, phone=phone), block.title) for phone in (False, True))
            plot = f'<div class="full">{wide}</div><div class="narrow">{narrow}</div>'
        return (
            f'<figure id="figure-{block.key}"><h3>{escape(block.title)}</h3>\n{plot}\n'
            f"<figcaption>{escape(block.caption)}</figcaption></figure>\n"
        )
    if isinstance(block, Table):
        return webpage.table(block.title, block.header, block.rows, numeric=block.numeric, note=block.note)
    return webpage.paragraph(block.text, "headline" if isinstance(block, Headline) else "")


def _json(drawn: Sequence[Figure]) -> str:
    """What the script draws, as JSON that cannot end its own script element."""
    themes = {name: theme(colours) for name, colours in (("light", figures.LIGHT), ("dark", figures.DARK))}
    data = {
        figure.key: plotly_figures.plotly_figure(figure)
        | {"panels": len(figure.panels), "columns": figure.columns, "height": figure.height}
        for figure in drawn
    }
    text = json.dumps(themes | {"drawn": data}, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def theme(colours: dict[str, str]) -> dict[str, Any]:
    """Every `@name` that figures use, in one theme."""
    light = {f"{name}-light": _faded(value) for name, value in colours.items()}
    scales = {
        "sequential": _steps(figures.SEQUENTIAL), "diverging": _steps(figures.DIVERGING),
        "clear": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {**colours, **light, **scales}


def _steps(name: str) -> list[list[Any]]:
    """A colour map of matplotlib's as plotly's: 17 steps."""
    return [[index / 16, colour] for index, colour in enumerate(figures.colour_steps(name, 17))]


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _asset(name: str) -> str:
    return files("altgrad.reports").joinpath("templates", name).read_text(encoding="utf-8")
