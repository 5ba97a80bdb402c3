"""README and the site's pages are true: code runs as printed, specs and commands are valid, links lead somewhere.

Code and specs are those of README, SPEC.md and the folders start, howto and concepts; links and commands are those of
every page.
"""

import re
import shlex
import warnings
from pathlib import Path

import click
import pytest
import typer

from altgrad.cli.main import app
from altgrad.matrix import Matrix
from altgrad.training import RunSpec
from bench.drawings import DRAWINGS, FOLDER

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GUIDES = [
    ROOT / "README.md",
    DOCS / "SPEC.md",
    *sorted(p for f in ("start", "howto", "concepts") for p in (DOCS / f).glob("*.md")),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> dict[str, str]:
    """Fenced blocks of the guides, each text once, by the page it is on and its number there."""
    found: dict[str, str] = {}
    for page in GUIDES:
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            if text not in found.values():
                found[f"{name(page)}-{number}"] = text
    return found


PROGRAMS = [
    pytest.param(code, id=where, marks=pytest.mark.long if "transformers" in code else ())
    for where, code in blocks("python").items()
]


@pytest.mark.parametrize("code", PROGRAMS)
def test_library_examples_run(
    code: str, tmp_path: Path, small_quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "transformers" in code:
        for needed in ("transformers", "accelerate"):
            pytest.importorskip(needed, reason=f"{needed} is an optional extra; `pip install 'altgrad[hf]'` brings it")
        warnings.simplefilter("ignore")  # of transformers itself
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml").values(), ids=blocks("yaml"))
def test_specs_are_valid(text: str) -> None:
    (Matrix if "\narms:" in text else RunSpec).parse(text, "page")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        where = (page.parent / target).resolve() if target else page
        assert where.exists(), f"{name(page)} links to {link}"
        assert not anchor or anchor in anchors(where), f"{name(page)} links to {link}"


def commands() -> list[tuple[str, str]]:
    """Every command line of `altgrad` in a block of code of a page, without what a shell makes of it."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        for said in re.findall(r"^(?:    \$? ?|\$ )(altgrad [^\n]*)", text, re.M):
            if not re.search(r"\.\.\.| \[|^altgrad [\w-]+ [\w-]+ (?:says|is|are) ", said.partition("#")[0]):
                found.append((name(page), said))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "said"), commands())
def test_commands_have_the_arguments_and_options_that_pages_give_them(page: str, said: str) -> None:
    words = shlex.split(re.split(r"\s(?:\||>|2>|&&|;)\s?", said)[0], comments=True)[1:]
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="altgrad")
    while isinstance(command, click.Group):
        assert words and words[0] in command.commands, said
        command = command.commands[words.pop(0)]
    if not {"-h", "--help"} & set(words):
        command.make_context(command.name, [*words], parent=context)


def test_figures_of_the_readme_are_those_of_the_page_they_come_from() -> None:
    rows = re.findall(
        r"^\| `(\w+)` .*\| (\+[\d.]+ \[.*?\]) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    measured = (DOCS / "EVALUATE.md").read_text(encoding="utf-8")
    assert len(rows) == 8
    for recipe, gap in rows:
        assert re.search(rf"^\| {recipe} .*{re.escape(gap)}", measured, re.M), recipe


def test_the_readme_is_short() -> None:
    assert 80 <= len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_drawings_are_what_the_program_draws(drawing: str) -> None:
    assert (FOLDER / f"{drawing}.svg").read_text(encoding="utf-8") == DRAWINGS[drawing](), "python -m bench.drawings"


def test_the_quickstart_is_valid_and_what_the_issue_promises() -> None:
    spec = RunSpec.load(ROOT / "matrices" / "quickstart.yaml")
    (rule,) = spec.precision.rules
    chosen = [rule.weight, rule.input, rule.grad_output]
    assert [(str(c.format), c.scaling.kind) for c in chosen if c is not None] == [
        ("e4m3fn", "delayed"), ("e4m3fn", "delayed"), ("e5m2", "delayed"),
    ]  # fmt: skip
