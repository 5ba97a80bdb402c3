"""Claims about `altgrad export --to` as a user types it: what it says, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import altgrad
from altgrad.cli.main import app
from altgrad.quantize.tensor_file import TensorFile


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `model` of two matrices and a head."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    torch.manual_seed(0)
    tensors = {f"layers.{n}.up.weight": torch.randn(128, 128) for n in range(2)} | {
        "lm_head.weight": torch.randn(9, 128)
    }
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", *arguments])


SMALL = ("--max-shard-size", "0.001")


def test_a_model_is_written_and_what_was_compared_is_said(place: Path) -> None:
    found = call("model", "--to", "compressed-tensors", "--preset", "NVFP4", "--out", "out", *SMALL)
    assert found.exit_code == 0, found.stderr
    assert "read again: 33,920 numbers, 0 differ" in found.stdout
    assert "2 tensors quantised; kept as they are: lm_head" in found.stdout
    facts = json.loads(call("model", "--to", "hf-fp8", "--out", "fp8", "--json").stdout)
    assert facts["differing"] == 0 and facts["to"] == "hf-fp8" and len(facts["tensors"]) == 2
    assert altgrad.load_quantized("fp8").keys() == altgrad.load_quantized("out").keys()


def test_a_run_in_phases_is_exported_with_the_casts_of_its_last_step(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [{"until": 1, "rules": [{"match": "*", "weight": "e4m3fn"}]}, {"recipe": "mx", "set": {"input": "none"}}]
    spec = {
        "name": "phased", "steps": 2, "evaluate_limit": 1, "threads": 1, "engine": "eager",
        "data": {"kind": "text", "batch_size": 1},
        "model": {"kind": "llama", "layers": 1, "width": 32, "heads": 2, "context": 8},
        "optimizer": {"kind": "adamw", "lr": 1e-3}, "precision": {"phases": phases},
    }  # fmt: skip
    (place / "spec.yaml").write_text(json.dumps(spec))
    trained = CliRunner().invoke(app, ["train", "spec.yaml"])
    assert trained.exit_code == 0, trained.stderr
    found = call("phased", "--to", "compressed-tensors", "--out", "out", "--json")
    assert found.exit_code == 0, found.stderr
    assert {row["layout"] for row in json.loads(found.stdout)["tensors"]} == {"MXFP8"}


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "in use": (["model", "--to", "hf-fp8", "--out", "model"], 2, "model already exists; choose another path"),
    "nothing said": (["model", "--to", "compressed-tensors", "--out", "out"], 2, "nothing says how to quantise"),
    "no target": (["model", "--preset", "FP8", "--out", "out"], 2, "--preset is about quantised weights; add --to"),
    "no model": (["nope", "--to", "hf-fp8", "--out", "out"], 2, "nope"),
    "no config": (["empty", "--to", "hf-fp8", "--out", "out"], 2, "empty has no config.json"),
    "a file above": (["model", "--to", "hf-fp8", "--out", "model/config.json/out"], 3, "config.json"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_with_their_exit_code(place: Path, case: str) -> None:
    arguments, code, said = MISTAKES[case]
    (place / "empty").mkdir()
    found = call(*arguments)
    assert (found.exit_code, found.stderr.count("\n")) == (code, 1) and said in found.stderr, found.stderr
    assert sorted(each.name for each in place.iterdir()) == ["empty", "model"]


def test_a_full_disk_is_the_machines_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorFile, "write", full)
    found = call("model", "--to", "hf-fp8", "--out", "out")
    assert found.exit_code == 3 and "No space left on device" in found.stderr
    assert [each.name for each in place.iterdir()] == ["model"]
