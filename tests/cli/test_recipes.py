"""`altgrad recipes` and `--recipe`: what is drawn, where each cast comes from, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from altgrad.cli import console
from altgrad.cli.main import app
from altgrad.recipes import catalogue

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.layers=2", "model.width=32", "model.heads=2", "model.context=16", "data.batch_size=2", "steps=2",
         "evaluate_limit=1", "threads=1"]  # fmt: skip


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def train(*arguments: str) -> Result:
    sets = [word for each in SMALL for word in ("--set", each)]
    return cli("train", str(ROOT / "matrices" / "quickstart.yaml"), *sets, *arguments)


def test_list_has_every_recipe_with_its_title() -> None:
    lines = cli("recipes", "list").stdout.splitlines()
    assert lines[0].split() == ["name", "paper", "proof", "title"]
    assert [line.split()[0] for line in lines[1:]] == list(catalogue.names())
    assert "te_nvfp4" in catalogue.names() and len(catalogue.names()) >= 30
    rows = json.loads(cli("recipes", "list", "--json").stdout)
    assert all(row["title"] == catalogue.facts(row["name"])["title"] for row in rows)


@pytest.mark.parametrize("command", [["recipes", "list"], ["formats", "list"]])
def test_a_list_loads_neither_torch_nor_pydantic(command: list[str]) -> None:
    """Whose import takes longer than all else that it does."""
    code = (
        f"import sys; from altgrad.cli.main import app; app({command}, standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.strip() == ""


def test_show_draws_the_six_slots_of_each_rule_and_says_what_is_not_done() -> None:
    shown = cli("recipes", "show", "NVFP4BlockScaling").stdout
    assert "rule 0: body.last(15%)" in shown and "rule 1: body, operands per_product" in shown and "not cast" in shown
    slots = {line.split()[0]: line for line in shown.splitlines() if "." in line.split(" ")[0]}
    assert list(slots)[:3] == ["forward.input", "forward.weight", "grad_input.grad_output"]
    assert "stochastic" in slots["grad_weight.grad_output"] and "hadamard/16" in slots["grad_weight.grad_output"]
    assert "square" in slots["forward.weight"] and "hadamard" not in slots["forward.weight"]
    for part in ("stays high", "arXiv 2509.25149", "claim", "not done here", "compute  bfloat16"):
        assert part in shown
    facts = json.loads(cli("recipes", "show", "te_nvfp4", "--json").stdout)
    assert facts["rules"][1]["slots"]["forward.weight"]["format"] == "e2m1" and facts["run"]["compute"] == "bfloat16"
    assert max(map(len, shown.splitlines())) <= 120


def test_diff_names_the_slots_that_differ() -> None:
    rows = json.loads(cli("recipes", "diff", "te_block", "te_current", "--json").stdout)
    assert {row["what"] for row in rows} >= {"forward.input", "grad_weight.grad_output", "operands"}
    assert all(row["te_block"] != row["te_current"] for row in rows)
    assert "say the same" in cli("recipes", "diff", "te_current", "Float8CurrentScaling").stdout
    table = cli("recipes", "diff", "te_current", "te_nvfp4").stdout.splitlines()
    assert table[0].split() == ["place", "what", "te_current", "te_nvfp4"]


def test_in_a_narrow_terminal_no_cell_is_squeezed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no room beside other columns stands below; in a pipe a row stays a line."""
    in_pipe = cli("recipes", "diff", "te_nvfp4", "torchao_nvfp4").stdout.splitlines()
    in_pipe_list = cli("recipes", "list").stdout
    monkeypatch.setattr(console, "interactive", lambda: True)
    monkeypatch.setattr(console, "width", lambda: 80)
    differing = cli("recipes", "diff", "te_nvfp4", "torchao_nvfp4").stdout.splitlines()
    shown = cli("recipes", "show", "te_nvfp4").stdout.splitlines()
    listed = cli("recipes", "list").stdout.splitlines()
    assert all(len(line) <= 80 for lines in (differing, shown, listed) for line in lines)
    assert "body: forward.weight, grad_input.weight" in differing[3] and "te_nvfp4       e2m1" in differing[1]
    assert sum("e2m1 nvfp4 te" in line for line in differing) < sum("e2m1 nvfp4 te" in line for line in in_pipe)
    assert "grad_weight turns both  hadamard/16 fixed dtype bfloat16" in shown
    assert len(listed) <= 1.5 * len(catalogue.names()) and listed[0].split() == ["name", "proof", "title"]
    assert "pytorch/ao  " in in_pipe_list


def test_a_dry_run_names_the_line_of_the_recipe_that_decided_each_cast() -> None:
    result = train("--recipe", "te_nvfp4", "--dry-run")
    assert result.exit_code == 0, result.output
    text = catalogue.recipe_document("te_nvfp4").values
    for number, place in enumerate(("body.last(15%)", "body")):
        assert f"rule {number} at {text['precision', number]} ({place})" in result.stdout
    assert "not cast" in result.stdout and "e2m1 stochastic nvfp4/16" in result.stdout


def test_what_is_kept_from_a_recipe_is_said(tmp_path: Path) -> None:
    result = train("--recipe", "te_nvfp4", "--set", "compute=float32", "--runs", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "recipe te_nvfp4: compute as the spec says, not as the recipe does" in result.stderr
    (stored,) = tmp_path.rglob("spec.yaml")
    assert "expanded: te_nvfp4" in stored.read_text() and "place: body.last(15%)" in stored.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "show", "te_nvfp"], "'te_nvfp' is not a recipe. Did you mean 'te_nvfp4' or 'te_nvfp4_4over6'?"),
        (["recipes", "show", "nvfp4"], "'nvfp4' may be te_nvfp4 or torchao_nvfp4; name one of them."),
        (["recipes", "diff", "mx", "gone.yaml"], "gone.yaml: cannot be read: No such file or directory."),
        (["quantize-model", "x", "--recipe", "mx", "--policy", "p.yaml"], "--recipe and --policy both say the casts"),
        (["diagnose", "x", "--recipe", "mx,nvfp4"], "--recipe nvfp4: 'nvfp4' may be te_nvfp4 or torchao_nvfp4;"),
        (["diagnose", "x", "--recipe", ","], "--recipe names no recipe; write some, such as te_nvfp4,mx."),
    ],
)
def test_a_name_that_is_none_is_one_line(arguments: list[str], message: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and message in result.stderr


def test_a_place_that_the_model_lacks_is_one_line_that_names_its_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: t\nsource: {authors: me}\nunproved: a test's\nprecision:\n- {place: experts, weight: e4m3fn}\n"
    )
    result = train("--recipe", str(path), "--dry-run")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"{path}:5:11: place experts holds no Linear of this model, whose places are body 8" in result.stderr


def test_a_mistake_in_recipe_is_placed_at_the_option_that_was_typed() -> None:
    for typed, message in (
        ("te_nvfp", "'te_nvfp' is not a recipe. Did you mean 'te_nvfp4' or 'te_nvfp4_4over6'?"),
        ("", "'' is not a recipe. The book has"), ("{name: mx, elment: e3m2}", "'elment' is not a parameter of the"),
        ("{name: mx, element: e3m", "not valid YAML:"),
    ):  # fmt: skip
        result = train("--recipe", typed, "--dry-run")
        assert result.exit_code == 2 and result.stderr.startswith(f"--recipe {typed}".rstrip() + f": {message}")
        assert result.stderr.count("\n") == 1
    other = train("--recipe", "mx", "--set", "optimizer.lr=x", "--dry-run")
    assert other.stderr.startswith("--set optimizer.lr=x: ")


def test_names_are_completed_with_titles() -> None:
    asked = {"_ALTGRAD_COMPLETE": "complete_bash", "COMP_WORDS": "altgrad recipes show te_nv", "COMP_CWORD": "3"}
    assert CliRunner().invoke(app, [], env=asked, prog_name="altgrad").stdout.split() == ["te_nvfp4", "te_nvfp4_4over6"]
