"""The driver of a sweep as a process, its workers by their heartbeats, and what came of it all."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from altgrad.sweeps import Launcher, Sweep, SweepFolder, make_plan

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the law of a union shall not be member state article data right person"

BASE = """\
project: mini
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, source: words.txt, batch_size: 4}
precision: {rules: [{match: blocks.*, weight: {format: e4m3fn, scaling: delayed, rounding: stochastic}}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 12
evaluate_every: 100
checkpoint_every: 3
"""


def start(bench: Path, *args: str) -> "subprocess.Popen[str]":
    """`altgrad sweep` with these arguments, in `bench`, its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "altgrad.cli.main", "sweep", *args],
        cwd=bench, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """Wait for it; what it printed."""
    out, errors = process.communicate(timeout=900)
    assert process.returncode == code, (process.returncode, out, errors)
    return out


def came_to(store: Path) -> dict[str, list[str]]:
    """Every run's metrics as written, line by line, keys under `time/` taken out."""
    found = {}
    for path in sorted(store.glob("*/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
        found[path.parent.name] = [json.dumps(row) for row in kept if len(row) > 1]
    return found


def trained_once(store: Path) -> None:
    """Every run came to its end once: one `completed`, every step once, nothing set aside."""
    for path in sorted(store.glob("*/*/events.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        ends = [event for event in events if event["event"] == "stopped" and event["status"] == "completed"]
        assert len(ends) == 1, path
        steps = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        trained = [row["step"] for row in steps if "train/loss" in row]
        assert trained == list(range(1, len(trained) + 1)) and ".old-" not in str(path)


def workers(store: Path) -> list[int]:
    """Pids of the workers that say they are alive, by their heartbeat files."""
    found = []
    for path in store.glob(".sweeps/*/beats/*.json"):
        try:
            beat = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if beat["exit"] is None and Path(f"/proc/{beat['pid']}/stat").exists():
            found.append(beat["pid"])
    return found


def kill_some(store: Path, share: float, draw: random.Random, going: Callable[[], bool]) -> int:
    """SIGKILL a share of all workers ever seen, each at a random moment of its life; how many were."""
    seen: set[int] = set()
    killed = 0
    while going():
        for pid in workers(store):
            if pid in seen:
                continue
            seen.add(pid)
            if draw.random() < share:
                time.sleep(draw.uniform(0, 0.6))
                if pid in workers(store):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        time.sleep(0.02)
    return killed


@contextmanager
def killing(store: Path, share: float, draw: random.Random) -> Iterator[list[int]]:
    """Kill a share of all workers while the block runs; the list ends with how many were killed."""
    over = threading.Event()
    killed: list[int] = []
    thread = threading.Thread(target=lambda: killed.append(kill_some(store, share, draw, lambda: not over.is_set())))
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def drive(launcher: Launcher, matrix: str, store: str = "runs", **settings: Any) -> Sweep:
    """Run a matrix of the present folder to its end in this process."""
    driver = make(launcher, matrix, store, **settings)
    assert driver.run(lambda _: None)
    return driver


def make(launcher: Launcher, matrix: str, store: str = "runs", **settings: Any) -> Sweep:
    """A driver that has not begun."""
    plan = make_plan(Path(matrix))
    return Sweep(plan, SweepFolder(Path(store), plan.name), launcher, "local", **settings)
