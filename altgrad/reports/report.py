"""altgrad.report: a project's verdict, and the report as files.

    report.html  report.md  data.parquet  data.csv  runs.parquet  figures/<key>.{png,pdf}  tables/<key>.tex

Everything is written into a folder aside, which replaces the old report at the end, so a report is never half new.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from altgrad import __version__
from altgrad.numerals import counted, signed
from altgrad.reports import paper_figures
from altgrad.reports.archive import write_data
from altgrad.reports.arms import PAIR
from altgrad.reports.content import Block, Figure
from altgrad.reports.effects import FamilyOfFormats, families
from altgrad.reports.markdown import write_markdown
from altgrad.reports.page import Chapter, html
from altgrad.reports.project import Project
from altgrad.reports.section import Section, bounds, sections
from altgrad.reports.sections.verdict import limits_of, project_headline
from altgrad.reports.sources import open_project
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import MARGIN
from altgrad.store import utc_now

PAGE = "report.html"
EXTRA = ("jinja2", "plotly", "matplotlib")
WIDTH, ROWS = 33, 12
untold = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""No warnings of numpy's: runs diverge, and what is not finite is said where it is shown."""


@dataclass(frozen=True)
class ProjectReport:
    """A written report: its folder, and the verdict in a sentence, a table and data."""

    project: Project
    folder: Path

    @property
    def path(self) -> Path:
        """The page."""
        return self.folder / PAGE

    @cached_property
    def headline(self) -> str:
        """The one sentence."""
        return project_headline(self.project)

    @cached_property
    def counts(self) -> str:
        """What it is based on."""
        records = self.project.records
        told = [
            counted(len(records), "run"),
            counted(len(self.project.results()), "result"),
            f"{sum(r.diverged for r in records)} diverged",
            f"{sum(bool(r.problems) for r in records)} broken or odd",
        ]
        return f"{self.project.name}: {', '.join(told)}"

    @cached_property
    def doubts(self) -> list[str]:
        """What stands below the table: the formats that may be best, and what to doubt."""
        if not (found := families(self.project)):
            return []
        best = [f"benefits most (95 %): {listed(found[0].best, 'and')}"] if len(found[0].effects) > 1 else []
        return best + [f"limit: {limit.text}" for limit in limits_of(found[0])[:3]]

    @cached_property
    def rows(self) -> tuple[list[str], list[list[str]]] | None:
        """Header and cells of the table, a row a format with its interval drawn; None without any comparison."""
        if not (found := families(self.project)):
            return None
        family = found[0]
        reach = _reach(family)
        scale = f"-{reach:.3f}".ljust(WIDTH - 7) + f"+{reach:.3f}"
        header = ["format", "B, nats", "95 % interval", "n", scale, "verdict"]
        cells = [
            [name, signed(i.mean), bounds(i), str(i.n), draw_interval(i.low, i.mean, i.high, reach),
             family.verdicts[name]]
            for name, i in list(family.intervals.items())[:ROWS]
        ]  # fmt: skip
        return header, cells

    def data(self) -> dict[str, Any]:
        """The verdicts for programs."""
        return {
            "project": self.project.name,
            "headline": self.headline,
            "runs": len(self.project.records),
            "comparisons": [_family(family) for family in families(self.project)],
        }

    def _repr_html_(self) -> str:
        header, cells = self.rows or ([], [])
        kept = [index for index in range(len(header)) if index != 4]  # the interval as text art needs one typeface
        lines = ["".join(f"<td>{escape(row[i])}</td>" for i in kept) for row in cells]
        head = "".join(f"<th>{escape(header[i])}</th>" for i in kept)
        table = f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>" if header else ""
        link = f'<a href="{escape(self.path.resolve().as_uri())}">{escape(str(self.path))}</a>'
        return f"<p><b>{escape(self.headline)}</b><br>{escape(self.counts)}</p>{table}<p>{link}</p>"


def report(
    project: str | None = None,
    *,
    runs: str | Path = "runs",
    sources: Sequence[str | Path] = (),
    out: str | Path | None = None,
    static: bool = False,
    tuning_seeds: Collection[int] = (),
    pair: tuple[str, str] = PAIR,
    progress: Callable[[str], None] = lambda _: None,
) -> ProjectReport:
    """Write a project's report in `out` (reports/<project> if left out) and give its verdict.

    runs: the store that holds the project. sources: archives (runs.parquet) of earlier reports, or one
    `wandb:ENTITY/PROJECT`, instead. static: no script in the page, figures as SVG. tuning_seeds: seeds that chose
    learning rates; found from the runs if left out. pair: the optimizers whose losses are compared, first less second.
    progress: called with each part written.

    ValueError for a project or optimizers that are not there, ImportError without the extra `report`.
    """
    if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"altgrad report needs {', '.join(missing)}; install them with: pip install 'altgrad[report]'."
        )
    found = open_project(project, runs, sources, tuning=tuning_seeds, pair=pair)
    folder = Path(out) if out is not None else Path("reports") / found.name
    write_report(found, folder, static=static, progress=progress)
    return ProjectReport(found, folder)


@untold
def chapters(project: Project) -> list[Chapter]:
    """What every section says, in order."""
    return [Chapter(section, tuple(_blocks(section, project))) for section in sections()]


@untold
def write_report(
    project: Project, folder: Path, *, static: bool = False, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Make the report in `folder`. ValueError if the folder holds anything but an earlier report."""
    if folder.exists() and any(folder.iterdir()) and not (folder / PAGE).exists():
        raise ValueError(f"{folder} is not empty and holds no report; name another folder with --out.")
    told = chapters(project)
    made = f"{utc_now()[:16].replace('T', ' ')} UTC, AltGrad {__version__}"
    sentence = project_headline(project)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "figures").mkdir(parents=True)
    try:
        (aside / PAGE).write_text(html(project, told, sentence, made, static=static), encoding="utf-8")
        progress("page")
        write_markdown(aside, project.name, told, sentence, made)
        for chapter in told:
            for block in chapter.blocks:
                if isinstance(block, Figure):
                    paper_figures.save_figure(block, aside / "figures")
                    progress(f"figure {block.key}")
        write_data(project, aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _blocks(section: Section, project: Project) -> list[Block]:
    found = section.blocks(project)
    assert found, f"section {section.kind} says nothing"
    return found


def draw_interval(low: float, mean: float, high: float, reach: float) -> str:
    """An interval on a line from -reach to reach: `.` the margin's ends, `|` zero, `o` the mean."""
    line = [" "] * WIDTH

    def place(value: float) -> int:
        return min(max(round((value / reach + 1) / 2 * (WIDTH - 1)), 0), WIDTH - 1)

    if math.isfinite(low) and math.isfinite(high):
        for column in range(place(low), place(high) + 1):
            line[column] = "-"
    for value, sign in ((-MARGIN, "."), (MARGIN, "."), (0.0, "|")):
        if line[place(value)] == " " or sign == "|":
            line[place(value)] = sign
    if math.isfinite(mean):
        line[place(mean)] = "o"
    return "".join(line)


def _family(family: FamilyOfFormats) -> dict[str, Any]:
    return {
        "storage": family.storage, "casts": family.casts, "declared": family.is_primary, "seeds_reused": family.reused,
        "best": family.best,
        "formats": [
            {
                "format": effect.format, "benefit": i.mean, "low": i.low, "high": i.high, "n": i.n, "sd": i.sd,
                "verdict": family.verdicts[effect.format], "pairs_needed": family.pairs_needed(effect.format),
                "lr": {"standard": effect.first.choice.rate, "manifold": effect.second.choice.rate},
            }
            for effect in family.effects for i in (family.intervals[effect.format],)
        ],
    }  # fmt: skip


def _reach(family: FamilyOfFormats) -> float:
    ends = [abs(v) for i in family.intervals.values() for v in (i.low, i.high, i.mean) if math.isfinite(v)]
    return max([2 * MARGIN, *(1.05 * v for v in ends)])
