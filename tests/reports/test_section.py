"""A section is one file: found, listed, told what it asked for, and in the docs. The verdict's pair is an option."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altgrad.reports.effects import families
from altgrad.reports.report import ProjectReport, chapters
from altgrad.reports.section import sections
from altgrad.reports.sources import load_project, open_project
from altgrad.spec.families import family
from altgrad.store import Run, RunFiles, RunStore

ROOT = Path(__file__).resolve().parents[2]
NEW = '''
from typing import ClassVar

from altgrad.reports.content import Block, Headline
from altgrad.reports.project import Project, final
from altgrad.reports.section import Section


class Colour(Section):
    """How green the weights are."""

    kind: ClassVar[str] = "colour"
    title: ClassVar[str] = "Colour"
    question: ClassVar[str] = "Are they green?"
    place: ClassVar[int] = 15
    metrics: ClassVar[tuple[str, ...]] = ("green*",)

    def blocks(self, project: Project) -> list[Block]:
        return [Headline(f"They are {final(project.records[0], 'colour', 'greenness'):g} green.")]
'''
READ = """
import sys
import altgrad.reports.sections as package
package.__path__.append(sys.argv[1])
from pathlib import Path
from altgrad.reports.report import chapters
from altgrad.reports.sources import load_project
from altgrad.spec.families import family
from altgrad.store import RunStore
told = chapters(load_project(RunStore(Path(sys.argv[2])), "study"))
print([each.section.kind for each in told][:3], told[2].blocks[0].text)
print([each["summary"] for each in family("section") if each["kind"] == "colour"])
"""


def docs_table() -> str:
    """The table of sections in docs/REPORT.md."""
    rows = [
        f"| {each.title} | {each.question} | {', '.join(f'`{m}`' for m in sorted(each.metrics)) or '–'} |"
        for each in sections()
    ]
    return "\n".join(["| section | question | metrics other than losses and times |", "|---|---|---|", *rows])


def test_a_new_section_is_one_file(tmp_path: Path, make_run: Callable[..., Run], make_spec: Any) -> None:
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "colour.py").write_text(NEW)
    run = make_run(tmp_path / "runs", make_spec(), sited=False, points=10)
    RunFiles(run).metrics(100, {"colour/blocks.0.weight/greenness": 0.25, "colour/blocks.0.weight/redness": 1.0})
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "sections"), str(tmp_path / "runs")],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == "['verdict', 'comparison', 'colour'] They are 0.25 green.\n['How green the weights are.']\n"
    assert "torch" not in done.stderr


def test_what_no_section_draws_is_not_read(tmp_path: Path, make_run: Callable[..., Run], make_spec: Any) -> None:
    run = make_run(tmp_path, make_spec(), sited=False, points=10)
    RunFiles(run).metrics(
        100, {"colour/w/greenness": 0.25, "stall/w/stall_ratio": 0.5, "stiffness/w/binade_3_share": 1}
    )
    (record,) = load_project(RunStore(tmp_path), "study").records
    assert {key for key in record.series if key.count("/") > 1} == {"stall/w/stall_ratio", "stiffness/w/binade_3_share"}


def test_sections_are_a_family_and_the_docs_list_them() -> None:
    assert [each["kind"] for each in family("section")] == sorted(each.kind for each in sections())
    assert docs_table() in (ROOT / "docs" / "REPORT.md").read_text(), docs_table()


@pytest.fixture
def madam(tmp_path: Path, make_run: Callable[..., Run], make_spec: Any) -> Path:
    """Three seeds each of AdamW and Madam, e3m4."""
    for optimizer in ("adamw", "madam"):
        for seed in range(3):
            make_run(tmp_path, make_spec("e3m4", optimizer, seed=seed), sited=False, points=10)
    return tmp_path


def test_a_third_optimizer_is_judged(madam: Path) -> None:
    project = load_project(RunStore(madam), "study")
    told = ProjectReport(project, madam).headline
    assert families(project) == [] and "e3m4 stochastic, adamw" in told and "e3m4 stochastic, madam" in told
    found = open_project("study", madam, pair=("madam", "adamw"))
    (one,) = families(found)
    (other,) = families(replace(found, pair=("adamw", "madam")))
    assert one.intervals["e3m4"].mean == -other.intervals["e3m4"].mean != 0
    told = ProjectReport(found, madam).headline
    assert "Madam" in told and "Geometry" not in told
    told = str([block for chapter in chapters(found) for block in chapter.blocks])
    assert "L(Madam) − L(AdamW)" in told and "ManifoldAdamW" not in told


@pytest.mark.parametrize(
    ("pair", "message"),
    [(("adamw", "madma"), "has the optimizer 'madma'. Did you mean 'madam'"), (("adamw", "adamw"), "two different")],
)
def test_a_pair_that_is_not_there_is_said(madam: Path, pair: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_project("study", madam, pair=pair)


def test_a_report_shows_itself_in_a_notebook(study: Path, tmp_path: Path) -> None:
    found = ProjectReport(load_project(RunStore(study), "study"), tmp_path)
    page = found._repr_html_()
    assert "<table>" in page and "e4m3fn" in page and found.path.as_uri() in page
    assert found.data()["headline"] == found.headline and found.rows is not None
