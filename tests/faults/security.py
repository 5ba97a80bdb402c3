"""Files that were made to do harm, names that lead elsewhere, and secrets that must not reach a disk.

Each planted file would, if anything in it were run or unpacked, write a canary or take gigabytes. It is handed to every
command that could be asked to open it: all refuse it in one line, and the canary never sings.
"""

import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from safetensors.torch import save
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.data.documents import FileCorpus
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import load_tokens
from tests.faults.campaign import Figures, words_file
from tests.faults.corruption import cache_in
from tests.faults.inputs import scene

CANARY = "canary"
BOMB_BYTES = 4 << 30


class Canary:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sang")


Plant = Callable[[Path], list[list[str]]]
"""Puts the file into the scene's folder; the command lines that are asked to open it."""
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    """One more."""
    PLANTS[function.__name__.replace("_", " ")] = function
    return function


def opening(model: str) -> list[list[str]]:
    """Every command that opens a model."""
    return [
        ["quantize-model", model, "--format", "e4m3fn", "--out", "out"],
        ["train", "spec.yaml", "--set", f"init_from={model}"],
        ["diagnose", model], ["evaluate", model], ["export", model, "--out", "out"], ["watch", model], ["sync", model],
        ["runs", "show", model],
    ]  # fmt: skip


@plant
def pickles_by_every_name(folder: Path) -> list[list[str]]:
    names = ("m.pt", "m.pth", "m.bin", "m.ckpt", "m.pkl", "m.safetensors", "m")
    for number, name in enumerate(names):
        (torch.save if number % 2 else lambda what, path: path.write_bytes(pickle.dumps(what)))(
            Canary(folder / CANARY), folder / name
        )
    data = [["train", "spec.yaml", "--set", f"data.source={name}"] for name in names]
    return [line for name in names for line in opening(name)] + data


@plant
def a_distributed_checkpoint(folder: Path) -> list[list[str]]:
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_bytes(pickle.dumps(Canary(folder / CANARY)))
    torch.save(Canary(folder / CANARY), folder / "dcp" / "__0_0.distcp")
    return opening("dcp")


@plant
def a_hugging_face_folder_with_code(folder: Path) -> list[list[str]]:
    hf = folder / "hf"
    hf.mkdir()
    code = f"from pathlib import Path\nPath({str(folder / CANARY)!r}).write_text('sang')\nclass C: pass\n"
    (hf / "modeling_x.py").write_text(code)
    auto = {"AutoConfig": "modeling_x.C", "AutoModel": "modeling_x.C"}
    (hf / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": auto, "architectures": ["C"]}))
    torch.save(Canary(folder / CANARY), hf / "pytorch_model.bin")
    spec = (
        "{model: {kind: hf, folder: hf}, data: {kind: labels, source: eulaw}, optimizer: adamw, steps: 1, "
        "precision: none}"
    )
    (folder / "hf.yaml").write_text(spec)
    return [*opening("hf"), ["train", "hf.yaml"]]


@plant
def a_pickle_in_a_checkpoint(folder: Path) -> list[list[str]]:
    (newest,) = (folder / "runs" / "faults" / "run" / "checkpoints").iterdir()
    torch.save(Canary(folder / CANARY), newest / "optimizer.safetensors")
    return [["evaluate", "run"], ["diagnose", "run", "--replay"], ["quantize-model", "runs/faults/run", "--out", "out",
            "--format", "e4m3fn"], ["train", "spec.yaml", "--set", "init_from=runs/faults/run"]]  # fmt: skip


@plant
def safetensors_headers(folder: Path) -> list[list[str]]:
    weight = save({"blocks.0.up.weight": torch.ones(8, 8)})
    deep = b'{"a": ' * 200_000
    shape = {"w": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 64]}}
    same = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in ("a", "b")}
    bombs = {
        "length": struct.pack("<Q", 1 << 62) + b"{}", "gigabyte": struct.pack("<Q", 1 << 30) + b"{" * 64,
        "deep": struct.pack("<Q", len(deep)) + deep, "negative": struct.pack("<q", -8) + b"{}",
        "shape": _headed(shape), "overlap": _headed(same), "cut": weight[:-1], "long": weight + b"\0" * 64,
    }  # fmt: skip
    lines = []
    for name, data in bombs.items():
        (folder / f"{name}.safetensors").write_bytes(data)
        lines += opening(f"{name}.safetensors")[:3]
    return lines


def _headed(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


@plant
def yaml_tags_and_bombs(folder: Path) -> list[list[str]]:
    target = folder / CANARY
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "apply": f"!!python/object/apply:os.system ['touch {target}']",
        "name": f"project: !!python/object/new:os.system ['touch {target}']",
        "laughs": laughs, "deep": "[" * 100_000, "merge": "a: &a {b: 1}\n<<: *a",
    }  # fmt: skip
    lines = []
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        lines += [["train", f"{name}.yaml"], ["sweep", f"{name}.yaml", "--dry-run"], ["diagnose", f"{name}.yaml"],
                  ["quantize-model", "w.safetensors", "--policy", f"{name}.yaml"]]  # fmt: skip
    (folder / "deep.json").write_text("[" * 100_000)
    return [*lines, ["train", "deep.json"]]


@plant
def parquet_bombs(folder: Path) -> list[list[str]]:
    piece = "lorem ipsum " * 87_000  # a megabyte, said 2,048 times in a file of a few hundred KB
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2048, pyarrow.int32()), [piece])
    parquet.write_table(pyarrow.table({"text": repeated}), folder / "dictionary.parquet", compression="zstd")
    plain = pyarrow.table({"text": [piece] * 300})
    parquet.write_table(plain, folder / "plain.parquet", compression="zstd", use_dictionary=False)
    (folder / "hub").mkdir()
    shutil.copy(folder / "dictionary.parquet", folder / "hub" / "train.parquet")
    sources = ("dictionary.parquet", "plain.parquet", "{hub: ./hub}")
    return [["train", "spec.yaml", "--set", f"data.source={source}"] for source in sources]


@plant
def names_that_lead_elsewhere(folder: Path) -> list[list[str]]:
    names = ("../x", "/tmp/x", "a/b", "..", ".hidden", "x" * 500, "a\\b", "con\0", "~root", "a b", "$(id)", "-")
    index = {"weight_map": {"w": "../w.safetensors"}}
    (folder / "sharded").mkdir()
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = [
        ["train", "spec.yaml", "--set", f"{key}={json.dumps(name)}"]
        for name in names
        if name != "-"
        for key in ("project", "name")
    ]
    lines += [["report", "--project", name] for name in names]
    lines += [["runs", "rm", name, "--yes"] for name in names]
    return [*lines, *opening("sharded"), ["train", "spec.yaml", "--set", "data.tokenizer=package:json/../../etc"]]


@contextmanager
def little_memory() -> Iterator[None]:
    """Address space for BOMB_BYTES more than is used now: a bomb that goes off ends in a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + BOMB_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


PLANTED = 187


def planted(seed: int, count: int, folder: Path) -> Figures:
    """Every planted file with every command that could open it, or of a few cases with every so many; none drawn."""
    figures, here = Figures(seed), Path.cwd()
    every = PLANTED // count
    folder = folder / "alone" / "here"
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        for number, (name, function) in enumerate(PLANTS.items()):
            scene(folder)
            lines = function(folder)
            lines = lines[number % every % len(lines) :: every]
            before = names(folder)
            for line in lines:
                with little_memory():
                    found = CliRunner().invoke(app, line, input="y\n" * 9)  # to a library that asks whether to run code
                case = f"{name}: {line}"
                error = found.exception
                if (folder / CANARY).exists():
                    figures.fail("THE CANARY SANG", case)
                elif error is not None and not isinstance(error, SystemExit):
                    figures.fail(f"traceback {type(error).__name__}: {error}", case)
                elif found.exit_code not in (2, 5):
                    figures.fail(f"exit {found.exit_code}: {found.output[:100]}", case)
                elif found.stderr.strip().count("\n") and "Usage" not in found.stderr:
                    figures.fail(f"many lines {found.stderr[:200]}", case)
                elif names(folder) != before:
                    figures.fail(f"left {sorted(names(folder) - before)[:3]}", case)
                else:
                    figures.add(f"refused (exit {found.exit_code})")
    finally:
        os.chdir(here)
    return figures


def names(folder: Path) -> set[str]:
    """Every file below, and beside the folder."""
    beside = {f"../{path.name}" for path in folder.parent.iterdir()}
    own = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in ("lock", ".index.json")}
    return own | beside


def token_cache_pickles(seed: int, count: int, folder: Path) -> Figures:
    """An array of objects in the token cache, under a manifest that was forged to match: built again, never loaded."""
    figures = Figures(seed)
    corpus = FileCorpus(words_file(folder / "words.txt", 400), "text")
    with cache_in(folder / "cache"):
        expected = load_tokens(corpus, BPE(bpe=270)).token_bytes.tolist()
        (cached,) = [path for path in (folder / "cache" / "tokens").iterdir() if path.is_dir()]
        for _ in range(count):
            np.save(cached / "token_bytes.npy", np.array([Canary(folder / CANARY)]), allow_pickle=True)
            about = json.loads((cached / "tokens.json").read_text())["about"]
            about["sha256"]["token_bytes.npy"] = hashlib.sha256((cached / "token_bytes.npy").read_bytes()).hexdigest()
            digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
            (cached / "tokens.json").write_text(json.dumps({"about": about, "sha256": digest}))
            found = load_tokens(corpus, BPE(bpe=270)).token_bytes.tolist()
            if found == expected and not (folder / CANARY).exists():
                figures.add("built again")
            else:
                figures.fail("THE CANARY SANG", cached)
    return figures


SECRETS = {
    name: f"{name.lower()}-7f3d{number:02}-correct-horse-battery-staple"
    for number, name in enumerate(
        ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY",
         "GITHUB_TOKEN", "DATABASE_URL", "SSH_PASSPHRASE", "MY_PASSWORD")
    )
}  # fmt: skip
TOUCHING: tuple[list[str], ...] = (
    ["train", "spec.yaml", "--set", "name=plain"],
    ["report", "--project", "faults", "--static"],
    ["quantize-model", "w.safetensors", "--format", "e4m3fn", "--out", "out"],
    ["evaluate", "run", "--split", "validation", "--json"],
    ["train", "nonsense.yaml", "--heartbeat", "beat.json"],
    ["diagnose", "run"],
    ["train", "spec.yaml", "--set", "track=[tensorboard]", "--set", "name=tracked"],
    ["train", "spec.yaml", "--set", "track=[{kind: wandb, mode: offline}]", "--set", "name=wandb"],
    ["sweep", "matrix.yaml", "--json"],
)
"""Commands that write. The sweep, last, starts other processes."""


def secrets(seed: int, count: int, folder: Path) -> Figures:
    """Commands that write, with secrets in the environment; then every byte below the folder is searched for them."""
    figures, here = Figures(seed), Path.cwd()
    scene(folder)
    os.chdir(folder)
    try:
        with cache_in(folder / "cache"):
            for line in TOUCHING[:count]:
                found = CliRunner().invoke(app, line, env=SECRETS | {"WANDB_MODE": "offline", "HOME": str(folder)})
                if isinstance(found.exception, Exception) and not isinstance(found.exception, SystemExit):
                    figures.fail(f"{type(found.exception).__name__}: {found.exception}", line)
                    continue
                leaked = list(_searched(folder))
                shown = [name for name, value in SECRETS.items() if value in found.output]
                figures.fail(f"leaked {leaked[:3]} {shown[:3]}", line) if leaked or shown else figures.add("kept")
        read = [path for path in folder.rglob("*") if path.is_file()]
        figures.measured = {"files_searched": len(read), "bytes_searched": sum(path.stat().st_size for path in read)}
    finally:
        os.chdir(here)
    return figures


def _searched(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for name, value in SECRETS.items():
            if value.encode() in data:
                yield f"{name} in {path.relative_to(folder)}"
