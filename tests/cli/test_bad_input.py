"""Claims about bad input, wherever it enters: one clear line, exit code 2, nothing half-written, no pickle opened.

`altgrad quantize-model` and `altgrad train --dry-run` meet the same mistakes.
"""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from typer.testing import CliRunner, Result

from altgrad.cli.main import app

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    save_file({"blocks.0.up.weight": torch.ones(8, 8)}, tmp_path / "w.safetensors")

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return call


def refused(invoke: Invoke, folder: Path, args: list[object], message: str) -> None:
    """It is refused in one line that has the message, and every file stays what it was."""
    before = {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
    found = invoke(*args)
    assert found.exit_code == 2, found.output
    assert message in found.stderr and found.stderr.count("\n") == 1 and found.stdout == ""
    assert not isinstance(found.exception, Exception) or isinstance(found.exception, SystemExit)
    after = {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
    assert after == before


def scaled(**scaling: Any) -> dict[str, Any]:
    return {"format": "e4m3fn", "scaling": scaling}


CASTS: list[tuple[Any, str]] = [
    ("e4m3fm", "Did you mean 'e4m3fn'?"),
    ("fp9", "'fp9'"),
    ("e8m8", "e8m8 has 17 bits; AltGrad emulates 2 to 16."),
    ("e15m16", "e15m16 has 32 bits; AltGrad emulates 2 to 16."),
    ("e4m3", "say e4m3fn (max 448: OCP, H100, TE, torch) or e4m3ieee (max 240)."),
    ("e10m5", "casts run in float32"),
    (scaled(kind="block", size=0), "size is 0; it takes a whole number from 1 to 65536."),
    (scaled(kind="mx", size=70000), "size is 70000; it takes a whole number from 1 to"),
    (scaled(kind="block", size=2.5), "size is 2.5; it takes a whole number"),
    (scaled(kind="block", shape="cube"), "shape is 'cube'; it takes one of row"),
    (scaled(kind="blok"), "'blok' is not a scaling. Did you mean 'block'?"),
]


@pytest.mark.parametrize(("cast", "message"), CASTS, ids=lambda part: str(part)[:40])
def test_a_wrong_cast_in_a_policy_is_one_line_with_its_place(
    invoke: Invoke, tmp_path: Path, cast: Any, message: str
) -> None:
    (tmp_path / "p.yaml").write_text(f"rules:\n- match: '*'\n  weight: {json.dumps(cast)}\n")
    refused(invoke, tmp_path, ["quantize-model", "w.safetensors", "--policy", "p.yaml", "--out", "out"], message)
    assert invoke("quantize-model", "w.safetensors", "--policy", "p.yaml").stderr.startswith("p.yaml:3:")


@pytest.mark.parametrize(("cast", "message"), [pair for pair in CASTS if isinstance(pair[0], str)])
def test_a_wrong_format_option_is_one_line(invoke: Invoke, tmp_path: Path, cast: str, message: str) -> None:
    refused(invoke, tmp_path, ["quantize-model", "w.safetensors", "--format", cast, "--out", "out"], message)


SPEC = """\
project: demo
model: {{kind: gpt, layers: 1, width: 16, heads: 2, context: 16}}
data: {{kind: text, batch_size: 2}}
optimizer: {{kind: adamw, lr: 1e-3}}
steps: 1
{more}
"""


@pytest.mark.parametrize(("cast", "message"), CASTS, ids=lambda part: str(part)[:40])
def test_a_wrong_cast_in_a_run_is_one_line_with_its_place(
    invoke: Invoke, tmp_path: Path, cast: Any, message: str
) -> None:
    rules = f"precision:\n  rules:\n  - match: blocks.*\n    weight: {json.dumps(cast)}"
    (tmp_path / "run.yaml").write_text(SPEC.format(more=rules))
    refused(invoke, tmp_path, ["train", "run.yaml", "--dry-run"], message)
    assert invoke("train", "run.yaml", "--dry-run").stderr.startswith("run.yaml:9:")


class Canary:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "loaded")


def header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(64)


def damaged() -> dict[str, bytes]:
    whole = save({"blocks.0.up.weight": torch.ones(8, 8)})
    beyond = {"blocks.0.up.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 9999]}}
    odd = {"blocks.0.up.weight": {"dtype": "F99", "shape": [8, 8], "data_offsets": [0, 64]}}
    return {
        "empty": b"", "noise": b"\xff" * 99, "truncated": whole[:-1], "no header": whole[:20], "longer": whole + b"\0",
        "not json": header(b"{nonsense"), "a list": header(b"[1, 2]"), "huge header": header(b"{}", 1 << 62),
        "beyond its end": header(json.dumps(beyond).encode()), "unknown dtype": header(json.dumps(odd).encode()),
    }  # fmt: skip


@pytest.mark.parametrize("what", damaged())
@pytest.mark.parametrize("command", ["quantize-model", "train"])
def test_a_damaged_model_is_one_line(invoke: Invoke, tmp_path: Path, command: str, what: str) -> None:
    (tmp_path / "bad.safetensors").write_bytes(damaged()[what])
    refused(invoke, tmp_path, using(command, tmp_path, "bad.safetensors"), "bad.safetensors cannot be read: ")


def using(command: str, folder: Path, model: str) -> list[object]:
    """The command that would use this model."""
    if command == "quantize-model":
        return ["quantize-model", model, "--format", "e3m4", "--out", "out"]
    (folder / "run.yaml").write_text(SPEC.format(more=f"init_from: {model}"))
    return ["train", "run.yaml", "--dry-run"]


@pytest.mark.parametrize("command", ["quantize-model", "train"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "is a pickle, which can run code; convert it to safetensors first."),
        ("model.pt", "is a pickle"), ("model.pth", "is a pickle"), ("model.ckpt", "is a pickle"),
        ("model.pkl", "is a pickle"), ("model.safetensors", "cannot be read: "), ("model", "cannot be read: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("writer", [lambda canary, path: path.write_bytes(pickle.dumps(canary)), torch.save])
def test_a_pickle_is_refused_unopened_whatever_its_name(
    invoke: Invoke, tmp_path: Path, command: str, name: str, message: str, writer: Callable[..., object]
) -> None:
    writer(Canary(tmp_path / "canary"), tmp_path / name)
    refused(invoke, tmp_path, using(command, tmp_path, name), message)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", ["quantize-model", "train"])
def test_a_folder_of_pickles_is_refused_unopened(invoke: Invoke, tmp_path: Path, command: str) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    torch.save({"a": Canary(tmp_path / "canary")}, tmp_path / "hf" / "pytorch_model.bin")
    refused(invoke, tmp_path, using(command, tmp_path, "hf"), "hf holds only pickles (pytorch_model.bin)")
    assert not (tmp_path / "canary").exists()


BAD_INDEXES = ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "\xff", '"text"', "[" * 100_000]


@pytest.mark.parametrize("index", BAD_INDEXES, ids=lambda text: text[:20])
def test_a_damaged_index_is_one_line(invoke: Invoke, tmp_path: Path, index: str) -> None:
    message = "hf/model.safetensors.index.json maps no weights to files; fetch it again."
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    refused(invoke, tmp_path, using("quantize-model", tmp_path, "hf"), message)


@pytest.mark.parametrize("spoilt", ["damaged", "nan"])
def test_a_bad_second_shard_leaves_nothing_of_the_first(invoke: Invoke, tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "hf").mkdir()
    save_file({"blocks.0.up.weight": torch.ones(8, 8)}, tmp_path / "hf" / "a.safetensors")
    last = {"blocks.1.up.weight": torch.full((8, 8), torch.nan)}
    (tmp_path / "hf" / "b.safetensors").write_bytes(save(last)[: -1 if spoilt == "damaged" else None])
    index = {"weight_map": {"blocks.0.up.weight": "a.safetensors", "blocks.1.up.weight": "b.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    message = "cannot be read" if spoilt == "damaged" else "blocks.1.up.weight has inf or NaN, and a quantised model"
    refused(invoke, tmp_path, ["quantize-model", "hf", "--format", "e2m1", "--out", "out"], message)
