"""Input that nobody meant: specs, matrices, command lines and data files with parts changed, repeated or torn out.

Each is taken, or refused in one line; nothing ends in a traceback, nothing takes longer than 10 s, and what is refused
leaves no file behind. Commands run in this process, so that thousands of them take minutes.
"""

import io
import itertools
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pyarrow
import torch
import typer
from pyarrow import parquet
from safetensors.torch import save
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.matrix import Matrix, runs_of
from altgrad.spec import Document, SpecError
from altgrad.training import RunSpec
from altgrad.training.weights import find_weights, read_tensor
from tests.faults.campaign import WORDS, Figures, spec_text, words_file
from tests.training import test_run_spec as run_specs

SECONDS, PATIENCE = 10, 60
"""Of the processor, and of the clock: a command that waits for a core is slow, and one that waits for nothing hangs."""
CODES = {0, 1, 2, 3, 4, 5}
MATRICES = Path(__file__).resolve().parents[2] / "matrices"


class HangError(Exception):
    """It took longer than SECONDS, or than PATIENCE."""


@contextmanager
def no_hang() -> Iterator[None]:
    """HangError, in the main thread, if the block takes too long."""

    def ring(number: int, frame: Any) -> None:
        raise HangError

    limits = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, PATIENCE))
    before = [signal.signal(number, ring) for _, number, _ in limits]
    for timer, _, seconds in limits:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(limits, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, by name: its size and when it was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock", ".index.json")
    }


def specs(seed: int, count: int, folder: Path) -> Figures:
    """Mutants of the quickstart's run spec; see tests/training/test_run_spec.py, whose mutations these are."""
    figures = Figures(seed)
    for number in range(count):
        try:
            with no_hang():
                run_specs.check(seed * 1_000_003 + number)
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", number)
        else:
            figures.add("read, or reported in one line")
    return figures


def matrices(seed: int, count: int, folder: Path) -> Figures:
    """Mutants of every matrix in `matrices/`, expanded into their runs where they are read."""
    figures, draw = Figures(seed), random.Random(seed)
    texts = {path.name: path.read_text() for path in MATRICES.glob("*.yaml") if "base:" in path.read_text()}
    names = sorted(texts)
    for number in range(count):
        name = draw.choice(names)
        text = _mutant(texts[name], draw)
        try:
            with no_hang():
                found = Matrix.check(Document.parse(text, "matrix"))
                if number % 10 == 0:
                    runs_of(found, MATRICES, RunSpec)
        except SpecError as error:
            line = str(error)
            if "\n" in line or not line.isprintable() or len(line) > 600:
                figures.fail("not one clean line", f"{number} {name} {line}")
            else:
                figures.add("reported in one line")
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", f"{number} {name}")
        else:
            figures.add("read")
    return figures


def _mutant(text: str, draw: random.Random) -> str:
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice([0, 0, 1, 3, 20]))
        copied = draw.randrange(len(text) + 1)
        piece = draw.choice([draw.choice(run_specs.PIECES), "", text[copied : copied + draw.choice([1, 10, 60])]])
        text = text[:start] + piece + text[end:]
    return text


VALUES = (
    "", "-", "--", "0", "-1", "1e999", "nan", "9" * 30, "x", "../x", "/", "/nonexistent/x", "é", "\x1b[31m", "a b", "*",
    "e4m3fn", "e4m3", "e99m99", "all", "spec.yaml", "matrix.yaml", "w.safetensors", "words.txt", "runs",
    "runs/faults/run",
    "run", "faults/run", "faults", "run.yaml", "cpu", "cuda:9", "auto", "--json", "--help", "optimizer.lr=1e-3",
    "steps=x", "=", "a=b=c", "test", "wandb:a/b", "0.3", "-inf", "0x7f", "normal", "x" * 5000, "\udce9", "0,1", "hf",
)  # fmt: skip


def commands(seed: int, count: int, folder: Path) -> Figures:
    """Command lines drawn from every command's own options and a bag of values, in a folder that has a run."""
    figures, draw = Figures(seed), random.Random(seed)
    runner, shapes = CliRunner(), list(_commands(typer.main.get_command(app), ()))
    scene(folder)
    before_folder = Path.cwd()
    os.chdir(folder)
    try:
        before = files(folder)
        for number in range(count):
            arguments = _line(draw, shapes)
            began = time.monotonic()
            what = _invoked(runner, arguments)
            longest = max(figures.measured.get("longest_seconds", 0.0), time.monotonic() - began)
            figures.measured["longest_seconds"] = round(longest, 2)
            after = files(folder)
            # A heartbeat says how the command ended, however it did.
            beats = {value for word, value in itertools.pairwise(arguments) if word == "--heartbeat"}
            for name in beats:
                before.pop(name, None)
                after.pop(name, None)
            if after != before and what != "completed (exit 0)":
                left = sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name))
                what = f"WRONG files left behind: {left[:3]}"
            if what.startswith("WRONG"):
                figures.fail(what, f"{number} {arguments}"[:300])
            else:
                figures.add(what)
            before = after
            if beats or not (folder / "runs" / "faults").is_dir() or len(before) > 400:
                before = scene(folder)
    finally:
        os.chdir(before_folder)
    return figures


def scene(folder: Path) -> dict[str, tuple[int, int]]:
    """Files for commands to find: a spec, a text, a tensor, a matrix, a run of one step; none else is left."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt", steps=1))
    (folder / "matrix.yaml").write_text("base: spec.yaml\naxes: {optimizer.lr: [1e-3, 3e-3]}\nseeds: [0]\n")
    (folder / "w.safetensors").write_bytes(save({"blocks.0.up.weight": torch.ones(8, 8)}))
    here = Path.cwd()
    os.chdir(folder)
    try:
        made = CliRunner().invoke(app, ["train", "spec.yaml", "--json"])
        assert made.exit_code == 0, made.output
    finally:
        os.chdir(here)
    (run,) = (folder / "runs" / "faults").iterdir()
    run.rename(run.with_name("run"))
    return files(folder)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _commands(inner, (*path, name))
    else:
        yield path, command


def _line(draw: random.Random, shapes: list[tuple[tuple[str, ...], Any]]) -> list[str]:
    path, command = draw.choice(shapes)
    words = list(path)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words += [draw.choice(VALUES) for _ in range(draw.choice([0, 1, 1, 1, 2]))]
        elif draw.random() < 0.3:
            words.append(draw.choice(parameter.opts))
            if not getattr(parameter, "is_flag", False) or draw.random() < 0.1:
                words.append(draw.choice(VALUES))
    words += [draw.choice(VALUES) for _ in range(draw.choice([0, 0, 0, 0, 1]))]
    if draw.random() < 0.1:
        draw.shuffle(words)
    if path == ("sweep",):
        words.append("--dry-run")  # a sweep that starts is other processes, and tests/sweeps has those
    return words


def _invoked(runner: CliRunner, arguments: list[str]) -> str:
    try:
        with no_hang():
            found = runner.invoke(app, arguments)
    except HangError:
        return "WRONG hangs"
    error = found.exception
    if isinstance(error, HangError):
        return "WRONG hangs"
    if error is not None and not isinstance(error, SystemExit | click.exceptions.Exit):
        return f"WRONG traceback {type(error).__name__}: {error}"
    if found.exit_code not in CODES or "Traceback" in found.output:
        return f"WRONG exit {found.exit_code}"
    if found.exit_code == 0:
        return "completed (exit 0)"
    usage = "Usage:" in found.stderr or "Usage:" in found.stdout
    lines = found.stderr.strip().splitlines()
    each_its_own = all(re.match(r"[\w./-]+:\d+:\d+: ", line) for line in lines)  # several mistakes of a file
    if not usage and len(lines) > 1 and not each_its_own and found.exit_code in (2, 5):
        return f"WRONG many lines: {found.stderr[:120]}"
    return f"refused (exit {found.exit_code})"


def data_files(seed: int, count: int, folder: Path) -> Figures:
    """Safetensors, parquet and jsonl files with bytes changed, lost, repeated or added, read as data and as weights."""
    figures, draw = Figures(seed), random.Random(seed)
    originals = {"safetensors": _safetensors(), "parquet": _parquet(), "jsonl": _jsonl()}
    for number in range(count):
        kind = ("safetensors", "parquet", "jsonl")[number % 3]
        path = folder / f"file.{kind}"
        path.write_bytes(_changed(originals[kind], draw, kind))
        before = files(folder)
        try:
            with no_hang():
                _read(path, kind)
        except ValueError as error:
            one = "\n" not in str(error) and "file" in str(error)
            figures.add("reported in one line") if one else figures.fail(
                "not one line with the file", f"{number} {error}"
            )
        except BaseException as error:  # pyo3's panics are no Exceptions; whatever it is, it is the finding
            if isinstance(error, KeyboardInterrupt):
                raise
            figures.fail(f"{type(error).__name__}: {error}", f"{number} {kind}")
        else:
            figures.add("read")
        if files(folder) != before:
            figures.fail("files left behind", number)
    return figures


def _read(path: Path, kind: str) -> None:
    if kind == "safetensors":
        for tensor in find_weights(path).tensors:
            tensor.load()
        read_tensor(path, "blocks.0.up.weight")
        return
    spec = RunSpec.parse(spec_text(path))
    spec.data.build(0, 16).batch(0)
    RunSpec.parse(
        "{model: {kind: encoder, layers: 1, width: 16, heads: 2, context: 16}, optimizer: adamw, steps: 1, "
        f"data: {{kind: labels, source: '{path}', bad_rows: skip}}}}"
    ).data.build(0, 16).batch(0)


def _rows() -> list[dict[str, Any]]:
    draw, words = random.Random(0), WORDS.split()
    return [
        {"text": " ".join(draw.choice(words) for _ in range(9)),
         "labels": draw.sample(["a", "b", "c"], draw.choice([0, 1, 2])),
         "split": ("train", "train", "train", "validation", "test")[row % 5]}
        for row in range(40)
    ]  # fmt: skip


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in _rows()).encode()


def _parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(_rows()), file, row_group_size=16)
    return file.getvalue()


def _safetensors() -> bytes:
    return save({"blocks.0.up.weight": torch.randn(8, 8), "blocks.0.down.weight": torch.randn(4, 8).bfloat16()})


ODD = (
    b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"[" * 2000, b"\\ud800", b"9" * 5000, b"null", b"NaN", b"1e999",
    b"\xef\xbb\xbf",
    b'"split": 5, ', b'"text": null, ', b'"labels": "a", ', b'"labels": [1, "a"], ', b'"labels": [true], ', b"-1",
)  # fmt: skip


def _changed(data: bytes, draw: random.Random, kind: str) -> bytes:
    # In a file whose header is small, half of the changes are there: in what describes the rest.
    header = {"safetensors": 8 + int.from_bytes(data[:8], "little"), "parquet": len(data), "jsonl": len(data)}[kind]
    for _ in range(draw.choice([1, 1, 2, 4])):
        reach = header if draw.random() < 0.5 else len(data)
        start = draw.randrange(max(1, min(reach, len(data))))
        if kind == "parquet" and draw.random() < 0.5:
            start = max(0, len(data) - draw.randrange(1, 900))  # the footer stands at the end
        match draw.randrange(5):
            case 0:
                data = data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :] if data else b""
            case 1:
                data = data[:start]
            case 2:
                data = data[:start] + draw.choice(ODD) + data[start:]
            case 3:
                end = min(len(data), start + draw.choice([1, 5, 60]))
                data = data[:start] + data[end:]
            case _:
                copied = draw.randrange(len(data) + 1)
                data = data[:start] + data[copied : copied + draw.choice([1, 8, 60])] + data[start:]
        if not data:
            return data
    return data
