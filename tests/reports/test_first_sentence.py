"""A report opens with the answer: six projects as users have them, each with what its first sentence must say."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.reports.bits import operand_bits, stored_bits
from altgrad.reports.compare import compare_runs
from altgrad.reports.comparison_page import write_page
from altgrad.reports.content import Figure, Limit, Paragraph, Table, Trace
from altgrad.reports.page import Chapter, html, open_questions
from altgrad.reports.project import Project
from altgrad.reports.report import ProjectReport, chapters, first_sentence
from altgrad.reports.sources import load_project, open_project
from altgrad.store import RunStore
from tests.reports.chromium import Chromium
from tests.reports.made_projects import EFFECTS, PROJECTS, recipe, trained

PAGES = ("one run", "two arms, one seed", "recipes", "only diverged", "500 runs")
DAILY = ("one run", "recipes")
"""Pages that a browser draws every day; the geometry study's is drawn in test_report.py."""
APOLOGIES = re.compile(r"cannot|not known|was off|no .* to compare|limit", re.I)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, study: Path) -> Callable[[str], Project]:
    """A project by what it is, made once."""
    known: dict[str, Project] = {}

    def project(what: str) -> Project:
        if what not in known:
            root = study if what == "geometry study" else tmp_path_factory.mktemp("made")
            if root is not study:
                PROJECTS[what][0](root)
            known[what] = load_project(RunStore(root), "study")
        return known[what]

    return project


@pytest.fixture(scope="session")
def told(made: Callable[[str], Project]) -> Callable[[str], list[Chapter]]:
    """What a project's report says, worked out once."""
    known: dict[str, list[Chapter]] = {}

    def said(what: str) -> list[Chapter]:
        if what not in known:
            known[what] = chapters(made(what))
        return known[what]

    return said


@pytest.mark.parametrize("what", PROJECTS)
def test_the_first_sentence_is_the_answer(made: Callable[[str], Project], what: str) -> None:
    sentence = first_sentence(made(what))
    for key in PROJECTS[what][1]:
        assert re.search(key, sentence), sentence
    assert sentence.count(". ") == 0 and sentence.endswith(".")


@pytest.mark.parametrize("what", PROJECTS)
def test_no_apology_stands_before_the_fold(told: Callable[[str], list[Chapter]], what: str) -> None:
    shown = [chapter for chapter in told(what) if chapter.shown]
    assert {"verdict", "comparison"} & {chapter.section.kind for chapter in shown[:1]}
    above = [block.text for chapter in shown[:4] for block in chapter.shown if hasattr(block, "text")]
    assert not [text for text in above if APOLOGIES.search(text)]
    if what != "geometry study":
        words = str([chapter.blocks for chapter in told(what)])
        assert "Manifold" not in words and "eometry" not in words, "never asked of a project that has no such arms"


def test_what_cannot_be_answered_is_one_folded_line_at_the_end(
    made: Callable[[str], Project], told: Callable[[str], list[Chapter]]
) -> None:
    kept = [chapter for chapter in told("one run") if chapter.section.kind in ("cost", "failures")]
    questions, page = open_questions(kept), html(made("one run"), kept, "x", "now", interactive=False)
    assert questions and page.count("<details") == 1 and page.index("<details") > page.rindex("<section")
    assert all(isinstance(b, Limit) for chapter in kept for b in chapter.blocks if b not in chapter.shown)


def test_arms_casts_and_storage_have_a_column_each(told: Callable[[str], list[Chapter]]) -> None:
    tables = {b.key: b for chapter in told("recipes") for b in chapter.blocks if isinstance(b, Table)}
    header, rows = tables["comparison"].header, {row[0]: row for row in tables["comparison"].rows}
    assert list(rows) == ["bf16", *(name for name in EFFECTS if name != "bf16")], "the reference first"
    cells = dict(zip(header, rows["mxfp4"], strict=True))
    assert (cells["casts"], cells["storage"], cells["verdict"]) == ("weight, input, grad e2m1 mx", "float32", "worse")
    assert dict(zip(header, rows["bf16"], strict=True))["casts"] == "none"
    cost = {row[0]: row[1:5] for row in tables["cost"].rows}
    assert cost["mxfp4"] == ("4.25", "4.25", "4.25", "32") and cost["bf16"] == ("16", "16", "16", "32")


def test_bits_count_the_shares_of_block_scales() -> None:
    assert operand_bits(recipe("nvfp4", 0), "weight") == [4.5] and operand_bits(recipe("fp8", 0), "input") == [8.0]
    assert operand_bits(recipe("bf16", 0), "grad_output") == [16.0] and stored_bits(recipe("bf16", 0)) == [32.0]


def test_the_reference_is_the_one_named_else_the_twin_else_the_least_quantised(tmp_path: Path, make_run: Any) -> None:
    for name in ("fp8", "mxfp4", "nvfp4"):
        for seed in range(2):
            trained(tmp_path, name, seed, points=10, sited=False)
    project = open_project("study", tmp_path)
    found = project.comparison
    assert found is not None and found.reference.name == "fp8", "eight bits are more than four"
    named = open_project("study", tmp_path, reference="mxfp4")
    found = named.comparison
    assert found is not None and found.reference.name == "mxfp4" and "nvfp4 is better" in first_sentence(named)
    twin = next(record.id for record in project.records if record.id.startswith("nvfp4") and record.seed == 0)
    make_run(tmp_path, recipe("fp8-delayed", 0) | {"twin": twin}, name="fp8-delayed", points=10, sited=False)
    found = open_project("study", tmp_path).comparison
    assert found is not None and found.reference.name == "nvfp4"
    with pytest.raises(ValueError, match="no arm is named 'bf17'. "):
        first_sentence(open_project("study", tmp_path, reference="bf17"))


def test_a_report_and_compare_say_the_same_of_the_same_runs(study: Path) -> None:
    ours, theirs = load_project(RunStore(study), "study").comparison, compare_runs(["study"], runs=study)
    assert ours is not None and list(ours.arms) == list(theirs.arms) and ours.sentence == theirs.sentence
    assert [arm.interval for arm in ours.verdict.judged] == [arm.interval for arm in theirs.verdict.judged]
    assert not ours.reused and ours.reference.seeds == {100, 101, 102, 103, 104}, "those that did not choose the rate"
    tuned = load_project(RunStore(study), "study", tuning=[100]).comparison
    assert tuned is not None and tuned.reference.seeds == {0, 1, 101, 102, 103, 104}


def test_one_seed_an_arm_has_a_band_and_no_verdict(tmp_path: Path, make_run: Any) -> None:
    for name, final in (("fp8", 2.7), ("bf16", 2.5)):
        run = make_run(tmp_path, recipe(name, 0) | {"steps": 700}, name=name, points=700, sited=False, final=final)
        noise = np.random.default_rng(len(name)).normal(0, 0.02, 701)
        rows = [row | {"train/loss": row["train/loss"] + noise[i]} for i, row in enumerate(run.metrics())]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project = load_project(RunStore(tmp_path), "study")
    found = project.comparison
    assert found is not None and first_sentence(project).startswith("Undecided: one seed an arm cannot decide")
    band = found.windows["fp8"]
    assert (band.metric, band.first, band.differs) == ("train/loss", 350, True), "all 701 points, not those drawn"
    blocks = [
        block for chapter in chapters(project) for block in chapter.blocks if chapter.section.kind == "comparison"
    ]
    assert any(
        "these two curves are apart, fp8 by +0.2" in block.text for block in blocks if isinstance(block, Paragraph)
    )
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert dict(zip(table.header, table.rows[1], strict=True))["verdict"] == "undecided, one seed, about 7 more seeds"
    archived = replace(project, records=[replace(record, run=None) for record in project.records])
    without = archived.comparison
    assert without is not None and without.windows == {}, "an archive has the extremes of a long curve alone"


def test_rates_are_arms_where_nothing_else_differs(tmp_path: Path, make_run: Any, make_spec: Any) -> None:
    for lr in (1e-3, 1e-2):
        for seed in range(3):
            make_run(tmp_path, make_spec("e5m2", "adamw", lr, seed), points=10, sited=False)
    found = load_project(RunStore(tmp_path), "study").comparison
    assert found is not None and list(found.arms) == ["lr 0.001", "lr 0.01"] and found.verdict is not None


def test_settings_that_a_name_leaves_out_make_arms_of_their_own(tmp_path: Path, make_run: Any, make_spec: Any) -> None:
    for betas in ([0.9, 0.95], [0.9, 0.999]):
        for seed in range(2):
            make_run(tmp_path, make_spec("e5m2", betas=betas, seed=seed), points=10, sited=False)
    found = load_project(RunStore(tmp_path), "study").comparison
    assert found is not None
    assert list(found.arms) == ["e5m2 stochastic, adamw (betas.1 0.95)", "e5m2 stochastic, adamw (betas.1 0.999)"]


def test_arms_of_one_format_have_colours_of_their_own_where_their_scalings_differ(
    told: Callable[[str], list[Chapter]],
) -> None:
    (figure,) = (
        block for chapter in told("recipes") if chapter.section.kind == "ranks"
        for block in chapter.blocks if isinstance(block, Figure)
    )  # fmt: skip
    tones = {mark.name: mark.tone for mark in figure.panels[0].marks if isinstance(mark, Trace)}
    assert len(set(tones.values())) == len(tones) == 4


def test_the_terminal_has_the_sentence_and_a_row_an_arm(made: Callable[[str], Project], tmp_path: Path) -> None:
    found = ProjectReport(made("recipes"), tmp_path)
    assert found.rows is not None and [row[0] for row in found.rows[1]] == ["fp8", "fp8-delayed", "mxfp4", "nvfp4"]
    facts = found.data()
    assert facts["reference"] == "bf16" and {arm["verdict"] for arm in facts["arms"]} == {"worse", "equivalent"}
    assert facts["comparisons"] == [] and facts["headline"] == found.headline


@pytest.mark.needs("chromium", "bash")
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in DAILY else pytest.mark.long) for what in PAGES]
)
def test_a_browser_draws_report_and_comparison_wide_and_on_a_phone(
    browser: Chromium, made: Callable[[str], Project], told: Callable[[str], list[Chapter]], tmp_path: Path, what: str
) -> None:
    project, pages = made(what), [tmp_path / "report.html"]
    pages[0].write_text(html(project, told(what), first_sentence(project), "now", interactive=False))
    if what != "one run":
        pages.append(tmp_path / "compare.html")
        write_page(compare_runs(["study"], runs=project.source), pages[1])
    for page in pages:
        browser.open(page)
        for width, dark in ((1200, False), (1200, True), (390, True)):
            state = browser.again(width=width, dark=dark)
            assert state["figures"] == state["drawn"] >= 1 and state["wide"] <= 0
            assert state["cut"] == state["outside"] == state["marked_up"] == [] and browser.complaints == []
