"""Claims about `altgrad policy` as a user types it: what it prints and writes, and its exit codes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from altgrad.cli.main import app

RULES = """\
rules:
- place: router
- place: body
  weight: {format: e4m3fn, scaling: {kind: mx, mode: rceil}}
  input: {format: e4m3fn, scaling: {kind: mx, mode: rceil}}
  grad_output: {format: e4m3fn, scaling: {kind: mx, mode: rceil}}
  operands: per_product
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(RULES)
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["policy", *arguments])


def test_the_text_is_printed_or_written_and_json_has_each_decision(place: Path) -> None:
    printed = call("p.yaml", "--to", "megatron")
    assert printed.exit_code == 0, printed.stderr
    assert printed.stdout.startswith("# The casts of p.yaml as megatron has them: 1 of 2 rules are cast.")
    assert yaml.safe_load(printed.stdout)["configs"].keys() == {"bf16", "mxfp8"}
    written = call("p.yaml", "--to", "megatron", "--out", "new/p.yaml")
    assert written.exit_code == 0 and (place / "new" / "p.yaml").read_text() == printed.stdout
    assert "rule 1, place body" in written.stdout and "written to new/p.yaml" in written.stdout
    assert (
        "Unverified: not all of it was run; it was written from https://github.com/NVIDIA/Megatron-LM" in written.stdout
    )
    facts = json.loads(call("p.yaml", "--to", "te", "--json").stdout)
    assert [(row["rule"], row["takes"]) for row in facts["rules"]] == [(0, None), (1, "mxfp8")]
    assert facts["verified"] is False and facts["page"].startswith("https://github.com/NVIDIA/TransformerEngine")
    assert facts["objects"] == {
        "mxfp8": "recipe.MXFP8BlockScaling(fp8_format=recipe.Format.E4M3, enable_2d_quantization=False)"
    }
    assert facts["rules"][1]["slots"]["grad_weight.input"] == "e4m3fn mx/32"
    assert "MXFP8BlockScaling" in facts["text"] and facts["out"] is None


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "no target": (["te_mxfp8"], 2, "Missing option '--to'"),
    "unknown target": (["te_mxfp8", "--to", "jax"], 2, "--to is 'jax'; it takes one of torchao, te, megatron."),
    "no recipe": (["te_mxfp9", "--to", "te"], 2, "'te_mxfp9' is not a recipe."),
    "no file": (["q.yaml", "--to", "te"], 2, "q.yaml"),
    "no model": (["te_mxfp8", "--to", "te", "--model", "nope"], 2, "folder nope has no config.json"),
    "cannot be run": (["p.yaml", "--to", "torchao", "--model", "p.yaml"], 2, "folder p.yaml has no config.json"),
    "refused": (["deepseek_v3", "--to", "te"], 2, "recipes/deepseek_v3.yaml:"),
    "casts nothing": (["eco", "--to", "te"], 2, "eco casts nothing"),
    "in use": (["p.yaml", "--to", "te", "--out", "p.yaml"], 2, "p.yaml already exists; choose another path"),
    "a file above": (["p.yaml", "--to", "te", "--out", "p.yaml/out"], 3, "p.yaml"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_with_their_exit_code(place: Path, case: str) -> None:
    arguments, code, said = MISTAKES[case]
    found = call(*arguments)
    assert (found.exit_code, found.stderr.count("\n")) == (code, 1) and said in found.stderr, found.stderr
    assert found.stdout == "" and os.listdir(place) == ["p.yaml"]


def test_a_full_disk_is_the_machines_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = call("p.yaml", "--to", "te", "--out", "out.py")
    assert found.exit_code == 3 and found.stderr == "out.py: No space left on device.\n"
    assert os.listdir(place) == ["p.yaml"]
