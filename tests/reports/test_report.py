"""The report as files: self-contained, escaped, complete, and drawn by a real browser without network."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.reports.archive import write_data
from altgrad.reports.content import FORMAT_TONES, Figure, Table
from altgrad.reports.figures import DARK, LIGHT
from altgrad.reports.markdown import escaped, latex, report_markdown
from altgrad.reports.page import html
from altgrad.reports.report import ProjectReport, chapters, draw_interval, write_report
from altgrad.reports.section import Section, sections
from altgrad.reports.sources import load_project
from altgrad.store import Run, RunStore
from tests.reports.chromium import Chromium

HOSTILE = "<script>window.alerted=true</script>"
NAMES = ["verdict", "comparison", "recipes", "cost", "failures", "geometry", "why", "learning_rate", "sweet_spot",
         "dynamics", "stability", "stiffness_field", "ranks", "runs"]  # fmt: skip


@pytest.fixture(scope="session")
def folder(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's report."""
    out = tmp_path_factory.mktemp("reports") / "study"
    write_report(load_project(RunStore(study), "study"), out)
    return out


def test_every_section_of_the_plan_is_there_once_and_in_order() -> None:
    assert [section.kind for section in sections()] == NAMES
    assert all(section.title and section.question for section in sections())
    assert set(Section.kinds()) == set(NAMES)


def test_the_page_is_self_contained_and_admits_only_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "mathdefault" not in page, "ticks of a logarithmic axis are numbers, not mathematics"
    assert len(page) < 1_000_000 and "<script" not in page and ' style="' not in page
    assert not re.search(r'(src|href)="(?!#|data:)', page) and "unsafe" not in page[:3000]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src &#x27;none&#x27;; script-src &#x27;none&#x27;")


def test_an_interactive_page_has_plotly_once_and_the_same_policy(study: Path) -> None:
    project = load_project(RunStore(study), "study")
    page = html(project, chapters(project)[:2], "one sentence", "now", interactive=True)
    assert page.count("plotly.js v") == 1 and 'class="full"' not in page and "unsafe" not in page[:3000]
    ours = page.replace(page[page.index("plotly.js v") : page.index("Plotly.react")], "")
    assert not re.search(r'(src|href)="(?!#|data:)', ours)
    assert "script-src &#x27;sha256-" in page


def test_all_files_are_written_and_figures_have_captions_units_and_vector_twins(folder: Path, study: Path) -> None:
    told = chapters(load_project(RunStore(study), "study"))
    figures = [block for chapter in told for block in chapter.blocks if isinstance(block, Figure)]
    page = (folder / "report.html").read_text()
    tables = [block for chapter in told for block in chapter.blocks if isinstance(block, Table)]
    assert len(figures) >= 12 and len({figure.key for figure in figures}) == len(figures)
    for figure in figures:
        assert len(figure.caption) > 40 and all(panel.x.label or panel.y.label for panel in figure.panels)
        assert (folder / "figures" / f"{figure.key}.png").read_bytes()[:4] == b"\x89PNG"
        assert (folder / "figures" / f"{figure.key}.pdf").read_bytes()[:5] == b"%PDF-"
        place = page[page.index(f'id="figure-{figure.key}"') :].split("</figure>")[0]
        assert place.count("<svg") == 2, "one for a wide window, one for a phone"
    assert {path.stem for path in (folder / "tables").iterdir()} == {table.key for table in tables}
    text = (folder / "report.md").read_text()
    assert all(f"figures/{figure.key}.png" in text for figure in figures)


def test_data_is_tidy_and_whole(folder: Path, study: Path) -> None:
    runs = len(load_project(RunStore(study), "study").records)
    with (folder / "data.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == runs and {"arm", "casts", "lr", "outcome", "validation/loss"} <= set(lines[0])
    table = pyarrow.parquet.read_table(folder / "data.parquet")
    assert {"run", "step", "metric", "value"} <= set(table.column_names)
    outcomes = [
        v for m, v in zip(table["metric"].to_pylist(), table["value"].to_pylist(), strict=True) if m == "outcome"
    ]
    assert sorted(outcomes) == pytest.approx(sorted(float(line["outcome"]) for line in lines))


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path: Path, study: Path) -> None:
    project = load_project(RunStore(study), "study")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no report"):
        write_report(project, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_hostile_text_stays_text_in_every_language(tmp_path: Path, make_run: Any, make_spec: Any) -> None:
    for optimizer in ("adamw", "manifold_adamw"):
        tree = make_spec("e5m2", optimizer, stiffness="own")
        tree["storage"][0]["format"] = HOSTILE
        make_run(tmp_path / "runs", tree, reason=HOSTILE, altgrad="=1+1" + HOSTILE)
    project = load_project(RunStore(tmp_path / "runs"), "study")
    told = chapters(project)
    assert "<script" not in html(project, told, HOSTILE, HOSTILE, interactive=False)
    assert HOSTILE not in html(project, told, HOSTILE, HOSTILE, interactive=True)
    assert HOSTILE not in report_markdown(HOSTILE, told, HOSTILE, HOSTILE)
    write_data(project, tmp_path)
    assert "'=1+1" in (tmp_path / "data.csv").read_text() and ",=1+1" not in (tmp_path / "data.csv").read_text()
    assert escaped("a|b\n# c `d` <e>") == "a\\|b \\# c \\`d\\` &lt;e&gt;"


def test_latex_tables_are_booktabs_and_escaped() -> None:
    table = Table("k", "50 % of a_b", ("x_y", "n"), (("−0.1 & \\more", "3"),), frozenset({1}), "≥ 5")
    text = latex(table)
    assert r"\toprule" in text and r"\begin{tabular}{lr}" in text and r"\label{tab:k}" in text
    assert r"$-$0.1 \& \textbackslash{}more & 3 \\" in text and r"50 \% of a\_b" in text and r"$\geq$ 5" in text


def test_tones_are_told_apart_in_both_themes() -> None:
    for theme in (LIGHT, DARK):
        assert len({theme[tone] for tone in FORMAT_TONES}) == len(FORMAT_TONES)


def test_the_terminal_shows_intervals_to_scale(study: Path) -> None:
    assert draw_interval(-0.02, 0.0, 0.02, 0.02) == "-" * 16 + "o" + "-" * 16
    line = draw_interval(0.01, 0.015, 0.02, 0.02)
    assert line[16] == "|" and line[28] == "o" and line.startswith(" ")
    found = ProjectReport(load_project(RunStore(study), "study"), study).rows
    assert found is not None and [row[0] for row in found[1]] == ["e3m4", "e4m3fn", "e5m2", "e7m0"]


def test_the_command_prints_the_verdict(tmp_path: Path, make_run: Any, make_spec: Any) -> None:
    for optimizer in ("adamw", "manifold_adamw"):
        for seed in range(3):
            make_run(tmp_path / "runs", make_spec("e3m4", optimizer, seed=seed), sited=False)
    done = CliRunner().invoke(app, ["report", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "r"), "--json"])
    facts = json.loads(done.stdout)
    assert done.exit_code == 0 and facts["comparisons"][0]["formats"][0]["n"] == 3
    assert facts["reference"] == "e3m4 stochastic, adamw" and facts["arms"][0]["n"] == 3
    assert Path(facts["report"]).is_file()


@pytest.mark.parametrize("wrong", [["--project", "no"], ["--from", "x"], ["--from", "wandb:a/b", "--project", "study"]])
def test_mistakes_are_one_line(study: Path, wrong: list[str]) -> None:
    done = CliRunner().invoke(app, ["report", "--runs", str(study), *wrong])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.needs("chromium", "bash")
def test_a_browser_draws_every_figure_without_network_or_complaint(browser: Chromium, folder: Path) -> None:
    first = browser.open(folder / "report.html")
    for width, dark in ((1200, False), (1200, True), (390, True), (390, False)):
        state = browser.again(width=width, dark=dark)
        assert state["figures"] == state["drawn"] == first["figures"] >= 12
        assert state["wide"] <= 0, "the page can be scrolled sideways"
        assert state["cut"] == [], "text that its place cuts off"
        assert state["marked_up"] == [], "text of a figure that is another program's markup"
        assert state["background"] == ("rgb(15, 20, 26)" if dark else "rgb(255, 255, 255)")
        ink = "rgb(230, 237, 243)" if dark else "rgb(27, 31, 36)"
        assert state["ink"] == ink, "figures are in the page's colours"
    assert browser.complaints == []


@pytest.mark.needs("chromium", "bash")
@pytest.mark.parametrize("width", [1200, pytest.param(390, marks=pytest.mark.long)])
def test_a_browser_draws_an_interactive_page(browser: Chromium, study: Path, tmp_path: Path, width: int) -> None:
    project = load_project(RunStore(study), "study")
    page = html(project, chapters(project)[:2], "one sentence", "now", interactive=True)
    (tmp_path / "interactive.html").write_text(page)
    state = browser.open(tmp_path / "interactive.html", width=width, script=True)
    assert state["figures"] == state["drawn"] >= 3 and state["wide"] <= 0 and browser.complaints == []


@pytest.mark.needs("chromium", "bash")
def test_a_browser_runs_nothing_that_a_run_brought_along(
    browser: Chromium, tmp_path: Path, make_run: Callable[..., Run], make_spec: Any
) -> None:
    tree = make_spec("e5m2")
    tree["storage"][0]["format"] = HOSTILE + "<img src=x onerror=alerted=true>"
    make_run(tmp_path / "runs", tree, reason=HOSTILE)
    project = load_project(RunStore(tmp_path / "runs"), "study")
    told = chapters(project)
    for interactive in (False, True):
        (tmp_path / "hostile.html").write_text(html(project, told, HOSTILE, HOSTILE, interactive=interactive))
        state = browser.open(tmp_path / "hostile.html", script=interactive)
        assert not state["alerted"] and state["figures"] == state["drawn"] and browser.complaints == []
