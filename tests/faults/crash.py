"""Processes that are killed at random moments, and asked to stop at any: no run is lost, and curves are the same bits.

Kills fall wherever the run is: reading, building the token cache, training, evaluating, inside a checkpoint's write or
its retention, between two appends. A run is then continued by the same command, killed again, and at last let through.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save

from altgrad.store import Run
from tests.faults.campaign import Figures, spec_text, words_file
from tests.faults.corruption import cache_in, curve
from tests.faults.processes import Process, start

LABELS = """\
project: faults
name: labels
model: {kind: encoder, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: labels, source: eulaw, batch_size: 4, tokenizer: bytes}
precision: {rules: [{match: blocks.*, weight: e3m4, input: e4m3fn, grad_output: {format: e5m2, rounding: stochastic}}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 12
threads: 1
engine: eager
evaluate_every: 6
checkpoint_every: 2
"""
COMPILED = """\
project: faults
name: compiled
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, source: words.txt, batch_size: 2}
precision: {rules: [{match: "blocks.*.mlp.*", weight: e4m3fn}]}
optimizer: {kind: sgd, lr: 3e-3}
steps: 6
threads: 1
engine: compiled
compile: model
evaluate_every: 3
checkpoint_every: 2
monitors: []
"""
"""Little, so that most of it is the compiler's time."""
LATEST = {"train, compiling": 8.0, "evaluate": 0.5, "diagnose": 0.3}
"""When a command is stopped at the latest, in seconds, where it is not 1.5."""
ARMS = {
    "kahan e5m2 adamw, BPE built anew": spec_text("words.txt", tokenizer="{bpe: 270}", steps=24),
    "stochastic e5m2 manifold_adamw": spec_text(
        "words.txt", storage="stochastic", optimizer="manifold_adamw", steps=24
    ),
    "nearest e5m2 madam": spec_text("words.txt", storage="nearest", optimizer="madam", steps=24),
    "eco e5m2 sgd": spec_text("words.txt", storage="eco", optimizer="sgd", steps=24),
    "grid_optim, keep 1": spec_text("words.txt", storage="stochastic", optimizer="grid_optim", steps=24) + "keep: 1\n",
    "labels, encoder, e3m4": LABELS,
}
"""Format, storage, optimizer and task of the runs that are killed, in turn."""


def kills(seed: int, count: int, folder: Path) -> Figures:
    """SIGKILL so many times; a case is a kill, and a run that comes to another curve in the end is a failure."""
    figures, draw = Figures(seed), random.Random(seed)
    words_file(folder / "words.txt", 80)
    whole: dict[str, list[str]] = {}
    arms, number, lost = list(ARMS), 0, 0
    with cache_in(folder / "cache"):
        while figures.count < count:
            arm = arms[number % len(arms)]
            (folder / "spec.yaml").write_text(ARMS[arm])
            if arm not in whole:
                whole[arm] = curve(_through(folder, f"whole-{number}"))
                shutil.rmtree(folder / "cache", ignore_errors=True)
            store = folder / f"runs-{number}"
            for _ in range(draw.choice([2, 4, 6])):
                if draw.random() < 0.3:
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                figures.add(_killed(folder, store, draw.uniform(0, 1.2)))
            run = _through(folder, store.name)
            if curve(run) != whole[arm] or run.status != "completed":
                figures.fail("another curve", f"{number} {arm}")
                lost += 1
            shutil.rmtree(store)
            number += 1
    figures.measured = {"runs": number, "arms": len(whole), "runs_lost": lost}
    return figures


def _train(folder: Path, store: Path, spec: str = "spec.yaml") -> Process:
    return start(folder, ["train", spec, "--json", "--runs", str(store)])


def _killed(folder: Path, store: Path, after: float) -> str:
    process = _train(folder, store)
    time.sleep(after)
    process.send(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return "had ended before its kill"
    runs = list(store.glob("faults/*"))
    if not runs:
        return "killed before there was a run"
    steps = Run(runs[0]).checkpoints.steps()
    return "killed before a checkpoint" if not steps else "killed with a checkpoint"


def _through(folder: Path, store: str, spec: str = "spec.yaml") -> Run:
    process = _train(folder, folder / store, spec)
    code = process.wait()
    assert code == 0, (code, process.errors.read_text())
    (path,) = (path for path in (folder / store / "faults").iterdir() if not path.name.startswith("."))
    return Run(path)


def stops(seed: int, count: int, folder: Path) -> Figures:
    """SIGTERM to every command that has a loop: out with 75, nothing half done left, and the command goes on again."""
    figures, draw = Figures(seed), random.Random(seed)
    words_file(folder / "words.txt", 300)
    words_file(folder / "long.txt", 40_000)
    (folder / "spec.yaml").write_text(spec_text("words.txt", steps=8).replace("evaluate_every: 4", "evaluate_every: 2"))
    (folder / "compiled.yaml").write_text(COMPILED)
    (folder / "bpe.yaml").write_text(spec_text("long.txt", tokenizer="{bpe: 3000}", steps=1))
    tensors = {f"blocks.{n}.up.weight": torch.randn(1024, 1024) for n in range(4)}
    (folder / "w.safetensors").write_bytes(save(tensors))
    slowest, slowest_compiling = 0.0, 0.0
    with cache_in(folder / "cache"), compiled_in(folder / "compiled"):
        whole = {spec: curve(_through(folder, f"whole-{spec}", spec)) for spec in ("spec.yaml", "compiled.yaml")}
        run = next((folder / "whole-spec.yaml" / "faults").iterdir())
        lines = {
            "train": ["train", "spec.yaml", "--json", "--runs", "runs"],
            "train, compiling": ["train", "compiled.yaml", "--json", "--runs", "runs"],
            "cache build": ["train", "bpe.yaml", "--json", "--runs", "bpe"],
            "quantize-model": ["quantize-model", "w.safetensors", "--format", "all", "--out", "out"],
            "evaluate": ["evaluate", str(run), "--split", "validation"],
            "report": ["report", "--runs", "whole-spec.yaml", "--out", "report", "--static"],
            "diagnose": ["diagnose", str(run), "--replay", "--json"],
        }  # fmt: skip
        for number in range(count):
            what = list(lines)[number % len(lines)]
            for left in ("runs", "bpe", "out", "report", "cache", "compiled"):
                shutil.rmtree(folder / left, ignore_errors=True)
            process = start(folder, lines[what])
            while not process.listens(signal.SIGTERM) and not process.ended():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, LATEST.get(what, 1.5)))
            asked = time.monotonic()
            process.send(signal.SIGTERM)
            code = process.wait()
            taken = time.monotonic() - asked
            errors = process.errors.read_text()
            left_aside = [str(path) for path in folder.rglob("*") if _is_aside(path)]
            if code == 0:
                figures.add(f"{what}: had ended")
                continue
            if what == "train, compiling":
                slowest_compiling = max(slowest_compiling, taken)
            else:
                slowest = max(slowest, taken)
            if code != 75 or "Traceback" in errors or left_aside:
                figures.fail(f"{what}: exit {code}, left {left_aside[:2]} {errors[-200:]}", number)
            elif what.startswith("train") and curve(_through(folder, "runs", lines[what][1])) != whole[lines[what][1]]:
                figures.fail(f"{what}: another curve", number)
            else:
                figures.add(f"{what}: 75")
    figures.measured = {"slowest_seconds": round(slowest, 2), "slowest_seconds_compiling": round(slowest_compiling, 2)}
    return figures


@contextmanager
def compiled_in(folder: Path) -> Iterator[None]:
    """Where the block's processes keep what Inductor compiled."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _is_aside(path: Path) -> bool:
    name = path.name
    return name.endswith((".aside", ".building", ".new")) or name.startswith(
        (".writing-", ".new-", ".out.", ".report.")
    )
