"""report.html: one file that needs nothing else, now or in ten years.

Text is escaped by jinja2; styles, the script, plotly.js (once) and the figures' numbers are inside. A strict content
security policy admits exactly these: default 'none', scripts and styles by the sha256 of what stands here, pictures
from `data:` and `blob:` (plotly's own "save as picture"). So even a hole in the escaping could not run anything, and
nothing is ever fetched. The empty style is admitted too: plotly adds an empty element and fills it through the CSSOM.

`static` leaves plotly out: figures are then SVG, light and dark, and the page has no script at all.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from altgrad.reports import paper_figures, plotly_figures
from altgrad.reports.content import Block, Figure, Table
from altgrad.reports.project import Project
from altgrad.reports.section import Section

_EMPTY = ""


@dataclass(frozen=True)
class Chapter:
    """A section with what it said."""

    section: Section
    blocks: tuple[Block, ...]


def html(project: Project, chapters: Sequence[Chapter], headline: str, made: str, *, static: bool) -> str:
    """The page. made: when and by which version, for its head."""
    from jinja2 import Environment
    from markupsafe import Markup

    style = _asset("report.css")
    scripts = [] if static else [_asset("styles.js"), plotly_figures.plotly_script(), _asset("report.js")]
    figures = [block for chapter in chapters for block in chapter.blocks if isinstance(block, Figure)]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("report.html.j2"))
    return str(
        template.render(
            project=project, headline=headline, made=made, facts=page_counts(project), policy=policy(style, scripts),
            style=Markup(style), scripts=[Markup(script) for script in scripts],  # ours, not a run's
            figures=Markup("") if static else Markup(_json(figures)),
            chapters=[
                {
                    "kind": chapter.section.kind, "title": chapter.section.title, "question": chapter.section.question,
                    "blocks": [_block(block, static) for block in chapter.blocks],
                }
                for chapter in chapters
            ],
        )
    )  # fmt: skip


def policy(style: str, scripts: Sequence[str]) -> str:
    """The content security policy that admits these and nothing else."""
    styles = " ".join(_sha(text) for text in (style, _EMPTY))
    run = " ".join(_sha(script) for script in scripts) or "'none'"
    rest = "img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {run}; style-src {styles}; {rest}"


def page_counts(project: Project) -> list[tuple[str, str]]:
    """(what, how many) for the head of the page."""
    results = project.results()
    arms = {record.arm for record in results}
    return [
        ("runs", str(len(project.records))), ("results", str(len(results))),
        ("diverged", str(sum(record.diverged for record in project.records))), ("arms", str(len(arms))),
        ("seeds", str(len({record.seed for record in results}))),
        ("broken or odd", str(sum(bool(record.problems) for record in project.records))),
    ]  # fmt: skip


def _block(block: Block, static: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": type(block).__name__}
    if isinstance(block, Figure):
        found |= {"key": block.key, "title": block.title, "caption": block.caption}
        if static:
            found |= {name: _picture(paper_figures.svg(block, dark=name == "dark")) for name in ("light", "dark")}
        return found
    return found | (asdict(block) if not isinstance(block, Table) else block.__dict__)


def _picture(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _json(figures: Sequence[Figure]) -> str:
    """What the script draws, as JSON that cannot end its own script element."""
    themes = {name: theme(colours) for name, colours in (("light", paper_figures.LIGHT), ("dark", paper_figures.DARK))}
    drawn = {
        figure.key: plotly_figures.plotly_figure(figure)
        | {"panels": len(figure.panels), "columns": figure.columns, "height": figure.height}
        for figure in figures
    }
    text = json.dumps(themes | {"drawn": drawn}, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def theme(colours: dict[str, str]) -> dict[str, Any]:
    """Every `@name` that figures use, in one theme."""
    light = {f"{name}-light": _faded(value) for name, value in colours.items()}
    scales = {
        "sequential": _steps(paper_figures.SEQUENTIAL), "diverging": _steps(paper_figures.DIVERGING),
        "clear": "rgba(0,0,0,0)",
    }  # fmt: skip
    return {**colours, **light, **scales}


def _steps(name: str) -> list[list[Any]]:
    """A colour map of matplotlib's as plotly's: 17 steps."""
    return [[index / 16, colour] for index, colour in enumerate(paper_figures.colour_steps(name, 17))]


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _asset(name: str) -> str:
    return files("altgrad.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
