"""`altgrad export` under faults: whatever ends it, its folder is whole or not there, and what was there is as it was.

In turn a run in full precision, and a folder of transformers in the layouts of others. A folder is whole if its files
are, byte for byte, those of an export that nobody disturbed. SIGKILL may leave a folder aside, under another name.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from altgrad.store import Run
from tests.faults.campaign import Figures, spec_text, words_file
from tests.faults.disk import altgrad, mounted, told, train
from tests.faults.processes import start

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}
REFUSALS = 12
"""Cases of `refused`."""


def _prepared(folder: Path) -> dict[str, list[str]]:
    """What is exported, by name: the command without its --out."""
    words_file(folder / "words.txt")
    spec = spec_text("words.txt").replace("kind: gpt", "kind: llama")
    (folder / "spec.yaml").write_text(spec)
    ended = train(folder, folder / "runs", "steps=2")
    assert ended.returncode == 0, ended.stderr
    (run,) = (folder / "runs" / "faults").iterdir()
    assert Run(run).status == "completed"
    torch.manual_seed(0)
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(512, 512) for n in range(6)}
    (folder / "model").mkdir()
    save_file(tensors, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    to = ["--to", "compressed-tensors", "--preset"]
    return {
        "a run": ["export", run.name],
        "to NVFP4": ["export", "model", *to, "NVFP4", "--max-shard-size", "0.001"],
        "to hf-fp8": ["export", "model", "--to", "hf-fp8"],
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupted(seed: int, count: int, folder: Path) -> Figures:
    """SIGKILL, SIGTERM and SIGINT at a drawn moment of an export, which is then made again."""
    figures, draw = Figures(seed), random.Random(seed)
    lines, whole, takes = _prepared(folder), {}, {}
    for what, line in lines.items():
        began = time.monotonic()
        assert altgrad(folder, *line, "--out", "whole").returncode == 0
        takes[what] = time.monotonic() - began
        whole[what] = _bytes(folder / "whole")
        shutil.rmtree(folder / "whole")
    cases = [(what, number) for number in CODES for what in lines]
    for case in range(count):
        what, number = cases[case % len(cases)]
        process = start(folder, [*lines[what], "--out", "out"])
        while not process.listens(signal.SIGTERM) and not process.ended():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.7 * takes[what]))  # it listens late
        process.send(number)
        code, errors = process.wait(), process.errors.read_text()
        aside, out = [path for path in folder.iterdir() if path.name.endswith(".aside")], folder / "out"
        name = signal.Signals(number).name
        if code not in (0, CODES[number]) or "Traceback" in errors:
            figures.fail(f"{what}, {name}: exit {code}: {errors[-300:]}", case)
        elif out.exists() and _bytes(out) != whole[what]:
            figures.fail(f"{what}, {name}: half-written: {sorted(_bytes(out))}", case)
        elif aside and number != signal.SIGKILL:
            figures.fail(f"{what}, {name}: left {aside[0].name}", case)
        elif not out.exists() and (
            altgrad(folder, *lines[what], "--out", "out").returncode or _bytes(out) != whole[what]
        ):
            figures.fail(f"{what}, {name}: not made again", case)
        else:
            figures.add("had ended" if code == 0 else f"{name}: nothing, and whole when made again")
        for path in (out, *aside):
            shutil.rmtree(path, ignore_errors=True)
    return figures


def refused(seed: int, count: int, folder: Path) -> Figures:
    """A folder in use, a file in its place, one that may not be written to, and paths that lead through a file."""
    figures = Figures(seed)
    lines = _prepared(folder)
    shut, used, file = folder / "shut", folder / "used", folder / "file"
    for each in (shut, used):
        each.mkdir()
    for each in (used / "config.json", file):
        each.write_text("mine")
    shut.chmod(0o555)
    cases = [(what, out, code, word) for what in lines for out, code, word in (
        ("used", 2, "already exists"), ("file", 2, "already exists"), ("shut/out", 3, "Permission denied"),
        ("file/out", 3, "file: File exists"),
    )]  # fmt: skip
    before = _bytes(folder)
    for what, out, code, word in cases[:: max(1, REFUSALS // count)]:
        found = altgrad(folder, *lines[what], "--out", out, obeys=True)
        wrong = told(found, code) or (None if word in found.stderr else f"said {found.stderr[-200:]}")
        after = {name: data for name, data in _bytes(folder).items() if not name.startswith(".std")}
        changed = after != {name: data for name, data in before.items() if not name.startswith(".std")}
        if wrong or changed or any(path.name.endswith(".aside") for path in folder.rglob("*")):
            figures.fail(wrong or "files were changed", f"{what} to {out}")
        else:
            figures.add(f"one line, exit {code}")
    shut.chmod(0o755)
    return figures


def full(seed: int, count: int, folder: Path) -> Figures:
    """A tmpfs that is full after a drawn number of bytes: one line, exit 3 and nothing there; whole with room again."""
    figures, draw = Figures(seed), random.Random(seed)
    lines, whole = _prepared(folder), {}
    for what, line in lines.items():
        assert altgrad(folder, *line, "--out", f"whole-{len(whole)}").returncode == 0
        whole[what] = _bytes(folder / f"whole-{len(whole)}")
    with mounted(folder / "disk", "-o", "size=16m") as disk:
        for number in range(count):
            what = list(lines)[number % len(lines)]
            needed = sum(map(len, whole[what].values()))
            space = draw.randrange(8192, max(needed, 16384))
            (disk / "ballast").write_bytes(bytes(_free(disk) - space // 4096 * 4096))
            found = altgrad(folder, *lines[what], "--out", str(disk / "out"))
            left = [path.name for path in disk.iterdir() if path.name != "ballast"]
            (disk / "ballast").unlink()
            if wrong := told(found) or (f"left {left}" if left else None):
                figures.fail(wrong, f"{number} {what} with {space} of {needed} bytes")
            elif (
                altgrad(folder, *lines[what], "--out", str(disk / "out")).returncode
                or _bytes(disk / "out") != whole[what]
            ):
                figures.fail("not made again", f"{number} {what}")
            else:
                figures.add("one line, exit 3, nothing left; whole once there was room")
            shutil.rmtree(disk / "out", ignore_errors=True)
    return figures


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
