"""altgrad train, evaluate and export on labelled text, as a user runs them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import altgrad
from altgrad.cli.main import app

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SPEC = """
project: labels
name: small
model: {kind: hf, folder: bert, context: 16, dropout: 0.0}
data: {kind: labels, source: rows.jsonl, batch_size: 4}
precision: {rules: [{match: "*layer*", weight: e4m3fn}]}
optimizer: {kind: adamw, lr: 1e-3}
steps: 3
threads: 1
engine: eager
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are given: a spec, its data, and a small model of the library."""
    monkeypatch.chdir(tmp_path)
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=256, max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    rows = [
        {"text": f"row {i}", "labels": ["a"] if i % 2 else ["b"], "split": ("train", "validation", "test")[i % 3]}
        for i in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def call(*arguments: str) -> Any:
    """The program, in this process: six of its own would each load torch."""
    return CliRunner().invoke(app, list(arguments))


def test_a_classifier_is_trained_listed_judged_and_exported(place: Path) -> None:
    trained = call("train", "spec.yaml")
    assert trained.exit_code == 0, trained.stderr
    assert "f1 micro" in trained.stdout and "validation tuned f1 macro" in trained.stdout
    assert "bits" not in trained.stdout and "perplexity" not in trained.stdout
    (row,) = json.loads(call("runs", "list", "--json").stdout)
    assert row["score"]["name"] == "f1_micro"
    found = call("evaluate", "small")
    assert found.exit_code == 0, found.stderr
    assert "tuned f1 micro" in found.stdout and "label" in found.stdout and found.stdout.count("\n") > 15
    told = json.loads(call("evaluate", "small", "--json").stdout)
    assert {each["label"] for each in told["table"]} == {"a", "b"} and told["step"] == 3
    assert told["found"]["threshold"] == told["validation"]["threshold"]
    written = call("export", "small", "--out", "out")
    assert written.exit_code == 0, written.stderr
    assert (place / "out" / "config.json").is_file() and (place / "out" / "model.safetensors").is_file()
    again = call("export", "small", "--out", "out")
    assert again.exit_code == 2 and "out already exists" in again.stderr and again.stderr.count("\n") == 1
    served = call("export", "small", "--to", "compressed-tensors", "--out", "served", "--json")  # with its own casts
    assert served.exit_code == 0, served.stderr
    assert {row["layout"] for row in json.loads(served.stdout)["tensors"]} == {"FP8"}
    assert sorted(each.name for each in (place / "served").iterdir()) == sorted(
        each.name for each in (place / "out").iterdir()
    )
    values, plain = (altgrad.load_quantized(place / "served"), load_file(place / "out" / "model.safetensors"))
    assert values.keys() == plain.keys()


def test_a_run_goes_on_only_with_the_data_it_was_made_with(place: Path) -> None:
    assert call("train", "spec.yaml").exit_code == 0
    rows = place / "rows.jsonl"
    rows.write_text(rows.read_text().replace("row 3", "ROW 3"))
    refused = call("evaluate", "small")
    assert refused.exit_code == 2 and "rows.jsonl is not what run" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_bad_row_is_one_line_with_the_place_in_the_spec_and_in_the_file(place: Path) -> None:
    with (place / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"text": "x", "labels": ["c"], "split": "test"}) + "\n")
    refused = call("train", "spec.yaml")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert (
        "spec.yaml:5:" in refused.stderr and "rows.jsonl: row 31: column 'labels' holds the unknown" in refused.stderr
    )
    assert call("train", "spec.yaml", "--set", "data.bad_rows=skip").exit_code == 0


def test_without_network_labels_of_the_hub_say_at_once_how_to_use_a_copy(tmp_path: Path, run_cli: Cli) -> None:
    spec = SPEC.replace("source: rows.jsonl", "source: {hub: coastalcph/lex_glue, config: eurlex}")
    (tmp_path / "hub.yaml").write_text(spec)
    refused = run_cli("train", "hub.yaml", env={"HF_HOME": str(tmp_path / "none")})
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "source: {hub: ./lex_glue, config: eurlex}" in refused.stderr
