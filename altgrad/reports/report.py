"""altgrad.report: a project's verdict, and the report as files.

    report.html  report.md  data.parquet  data.csv  runs.parquet  figures/<key>.{png,pdf}  tables/<key>.tex

Everything is written into a folder aside, which replaces the old report at the end, so a report is never half new.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from altgrad import __version__
from altgrad.progress import heard_by
from altgrad.progress import progress as say_progress
from altgrad.reports.answer import answer
from altgrad.reports.archive import write_data
from altgrad.reports.arm_comparison import ComparedArm
from altgrad.reports.arms import PAIR
from altgrad.reports.content import Figure
from altgrad.reports.effects import FamilyOfFormats, families
from altgrad.reports.figures import save_figure
from altgrad.reports.markdown import write_markdown
from altgrad.reports.page import Chapter, html, open_questions, page_counts
from altgrad.reports.project import Project
from altgrad.reports.rows import difference_cells, verdict_text
from altgrad.reports.section import sections
from altgrad.reports.sections.verdict import sentence
from altgrad.reports.sources import open_project
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import MARGIN, Interval
from altgrad.statistics.verdict import ArmVerdict
from altgrad.store import utc_now

PAGE = "report.html"
EXTRA = ("matplotlib", "plotly")
"""Needed always, and for an interactive page."""
WIDTH, ROWS = 33, 12
untold = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""No warnings of numpy's: runs diverge, and what is not finite is said where it is shown."""


@dataclass(frozen=True)
class ProjectReport:
    """A report: its folder, and the verdict in a sentence, a table and data."""

    project: Project
    folder: Path

    @property
    def path(self) -> Path:
        """The page."""
        return self.folder / PAGE

    @cached_property
    def chapters(self) -> list[Chapter]:
        """What every section says."""
        return chapters(self.project)

    @cached_property
    def headline(self) -> str:
        """The answer, in its first sentence."""
        return first_sentence(self.project)

    @cached_property
    def counts(self) -> str:
        """What it is based on."""
        return f"{self.project.name}: {', '.join(page_counts(self.project))}"

    @cached_property
    def notes(self) -> list[str]:
        """What stands below the table: the formats that may benefit most, and how much is left open."""
        lines = []
        if (found := families(self.project)) and len(found[0].effects) > 1:
            lines.append(f"benefits most (95 %): {listed(found[0].best, 'and')}")
        if questions := open_questions(self.chapters):
            lines.append(f"what these runs cannot answer ({len(questions)}): at the end of the report")
        return lines

    @cached_property
    def rows(self) -> tuple[list[str], list[list[str]]] | None:
        """Header and cells of the table, a row a format or an arm, intervals drawn; None without a comparison."""
        if found := families(self.project):
            family = found[0]
            intervals, words = family.intervals, {name: str(word) for name, word in family.verdicts.items()}
            header = ["format", "B, nats"]
        else:
            compared = self.project.comparison
            judged = compared.judged if compared else []
            if compared is None or not judged:
                return None
            intervals = {arm.name: verdict.interval for arm, verdict in judged}
            words = {arm.name: verdict_text(verdict) for arm, verdict in judged}
            header = ["arm", f"less {compared.reference.name}, nats"]
        reach = _reach(intervals.values())
        scale = f"-{reach:.3f}".ljust(WIDTH - 7) + f"+{reach:.3f}"
        cells = [
            [name, told["difference"], told["95 % interval"], told["n"], drawn, words[name]]
            for name, i in list(intervals.items())[:ROWS]
            for told, drawn in [(difference_cells(i), draw_interval(i.low, i.mean, i.high, reach))]
        ]
        return [*header, "95 % interval", "n", scale, "verdict"], cells

    def data(self) -> dict[str, Any]:
        """The verdicts for programs."""
        compared = self.project.comparison
        return {
            "project": self.project.name,
            "headline": self.headline,
            "runs": len(self.project.records),
            "comparisons": [_family(family) for family in families(self.project)],
            "reference": compared.reference.name if compared else None,
            "arms": [_arm(*pair) for pair in compared.judged] if compared else [],
            "open": open_questions(self.chapters),
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
    interactive: bool = False,
    tuning_seeds: Collection[int] = (),
    pair: tuple[str, str] = PAIR,
    reference: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ProjectReport:
    """Write a project's report in `out` (reports/<project> if left out) and give its verdict.

    runs: the store that holds the project. sources: archives (runs.parquet) of earlier reports, or one
    `wandb:ENTITY/PROJECT`, instead. interactive: figures by plotly.js, which the page then holds once (5 MB), to read
    points off; else SVG without any script. tuning_seeds: seeds that chose learning rates; found from the runs if left
    out. pair: the optimizers whose losses are compared format by format, first less second. reference: the arm, or a
    run of it, that all are compared with; else the twin, or the least quantised one. progress: called with each phase.

    ValueError for a project, an arm or optimizers that are not there, ImportError without the extra `report`.
    """
    if missing := [name for name in EXTRA[: 1 + interactive] if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"altgrad report needs {', '.join(missing)}; install them with: pip install 'altgrad[report]'."
        )
    with heard_by(lambda phase, done, total: progress(phase)) if progress is not None else nullcontext():
        found = open_project(project, runs, sources, tuning=tuning_seeds, pair=pair, reference=reference)
        folder = Path(out) if out is not None else Path("reports") / found.name
        return write_report(found, folder, interactive=interactive)


@untold
def chapters(project: Project) -> list[Chapter]:
    """What every section says, in order."""
    told, found = [], sections()
    for number, section in enumerate(found):
        say_progress("comparing runs", number, len(found))
        told.append(Chapter(section, tuple(section.blocks(project))))
    return told


@untold
def first_sentence(project: Project) -> str:
    """The answer in its first sentence: to the question of a study of optimizers, else how arms differ."""
    if found := families(project):
        return sentence(found[0])
    return answer(project, project.comparison)


@untold
def write_report(project: Project, folder: Path, *, interactive: bool = False) -> ProjectReport:
    """Make the report in `folder`. ValueError if the folder holds anything but an earlier report."""
    if folder.exists() and any(folder.iterdir()) and not (folder / PAGE).exists():
        raise ValueError(f"{folder} is not empty and holds no report; name another folder with --out.")
    found = ProjectReport(project, folder)
    told, lead = found.chapters, found.headline
    made = f"{utc_now()[:16].replace('T', ' ')} UTC, AltGrad {__version__}"
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "figures").mkdir(parents=True)
    try:
        say_progress("writing the page")
        (aside / PAGE).write_text(html(project, told, lead, made, interactive=interactive), encoding="utf-8")
        write_markdown(aside, project.name, told, lead, made)
        figures = [block for chapter in told for block in chapter.blocks if isinstance(block, Figure)]
        for number, figure in enumerate(figures):
            say_progress("drawing figures", number, len(figures))
            save_figure(figure, aside / "figures")
        say_progress("writing data")
        write_data(project, aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
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


def _arm(arm: ComparedArm, found: ArmVerdict) -> dict[str, Any]:
    i = found.interval
    return {
        "arm": arm.name, "difference": i.mean, "low": i.low, "high": i.high, "n": i.n, "sd": i.sd,
        "verdict": found.verdict, "more_seeds": found.more_seeds, "lr": arm.rate, "diverged": len(arm.diverged),
        "mean": found.mean,
    }  # fmt: skip


def _reach(intervals: Collection[Interval]) -> float:
    ends = [abs(v) for i in intervals for v in (i.low, i.high, i.mean) if math.isfinite(v)]
    return max([2 * MARGIN, *(1.05 * v for v in ends)])
