"""write_report: sections in, files out.

    report.html  report.md  data.parquet  data.csv  runs.parquet  figures/<key>.{png,pdf}  tables/<key>.tex

Everything is written into a folder aside, which replaces the old report at the end, so a report is never half new.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from altgrad import __version__
from altgrad.reports import export, markdown, paper_figures
from altgrad.reports.content import Block, Figure
from altgrad.reports.page import Chapter, html
from altgrad.reports.project import Project
from altgrad.reports.section import Section, sections
from altgrad.reports.sections.verdict import headline
from altgrad.store import utc_now

MADE = "report.html"
untold = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""No warnings of numpy's: runs diverge, and what is not finite is said where it is shown."""


@untold
def chapters(project: Project) -> list[Chapter]:
    """What every section says, in order."""
    return [Chapter(section, tuple(_blocks(section, project))) for section in sections()]


@untold
def write_report(
    project: Project, folder: Path, *, static: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[Chapter]:
    """Make the report in `folder`. ValueError if the folder holds anything but an earlier report."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MADE).exists():
        raise ValueError(f"{folder} is not empty and holds no report; name another folder with --out.")
    told = chapters(project)
    made = f"{utc_now()[:16].replace('T', ' ')} UTC, AltGrad {__version__}"
    sentence = headline(project)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "figures").mkdir(parents=True)
    try:
        (aside / MADE).write_text(html(project, told, sentence, made, static=static), encoding="utf-8")
        progress("page")
        markdown.write(aside, project.name, told, sentence, made)
        for chapter in told:
            for block in chapter.blocks:
                if isinstance(block, Figure):
                    paper_figures.save(block, aside / "figures")
                    progress(f"figure {block.key}")
        export.write(project, aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return told


def _blocks(section: Section, project: Project) -> list[Block]:
    found = section.blocks(project)
    assert found, f"section {section.kind} says nothing"
    return found
