"""python -m bench.sweep: what driving a sweep costs, as ratios where a machine is shared.

    driver       CPU of the driver for each run, beside the time that the run takes
    workers      wall time with 1 worker and with 2, of the same sweep of short runs; warm and cold starts
    matrix       5,000 runs expanded, validated and resolved
    store        10,000 synthetic runs listed by `altgrad runs list`, with the index and while it is built

Sweeps are of real runs on a text of their own, in a folder that is thrown away.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BASE = """\
project: bench
model: {kind: gpt, layers: 1, width: 32, heads: 2, context: 32}
data: {kind: text, source: words.txt, batch_size: 8}
precision: {rules: [{match: blocks.*, weight: {format: e4m3fn, scaling: delayed}, input: e4m3fn, grad_output: e5m2}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: STEPS
evaluate_every: STEPS
checkpoint_every: 30
"""
WORDS = "the law of a union shall not be member state article data right person"

DRIVER = """
import time
from pathlib import Path
from altgrad.sweeps import Sweep, SweepFolder, make_plan
from altgrad.sweeps.launchers.local import LocalSpec
plan = make_plan(Path("m.yaml"))
began, launcher = time.process_time(), LocalSpec(jobs=1).build()
assert Sweep(plan, SweepFolder(Path("driver"), plan.name), launcher, "local").run(lambda _: None)
print(time.process_time() - began)
launcher.close()
"""


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12, help="runs of each sweep")
    parser.add_argument("--steps", type=int, default=60, help="of a run; workers are compared by runs of some seconds")
    parser.add_argument("--only-workers", action="store_true", help="neither the matrix nor the store")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="altgrad-bench-") as name:
        folder = Path(name)
        draw = random.Random(0)
        text = "\n\n".join(" ".join(draw.choice(WORDS.split()) for _ in range(60)) for _ in range(80))
        (folder / "words.txt").write_text(text)
        (folder / "base.yaml").write_text(BASE.replace("STEPS", str(arguments.steps)))
        sweeps(folder, arguments.runs)
        if not arguments.only_workers:
            matrix(folder)
            store(folder / "store")


class Took(NamedTuple):
    """Seconds of wall and of CPU (with its children's, where it waits for them), and the largest of its memory."""

    wall: float
    cpu: float
    megabytes: float


def command(folder: Path, *arguments: str) -> Took:
    """What `altgrad ...` takes."""
    return took(folder, "-m", "altgrad.cli.main", *arguments)


def took(folder: Path, *arguments: str) -> Took:
    """What a Python of its own takes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status  # waited for already
    assert status == 0, f"python {' '.join(arguments)} ended with {status}"
    return Took(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def sweeps(folder: Path, runs: int) -> None:
    """Warm and cold, 1 worker and 2, in turn."""
    (folder / "m.yaml").write_text(f"base: base.yaml\nseeds: {list(range(runs))}\n")
    one, *_ = command(folder, "train", "base.yaml", "--json", "--runs", "alone")
    wall: dict[str, float] = {}
    for warm in ("true", "false"):
        for jobs in (1, 2):
            launcher = f"{{kind: local, jobs: {jobs}, warm: {warm}}}"
            name = f"{'warm' if warm == 'true' else 'cold'}, {jobs} worker{'s' * (jobs > 1)}"
            wall[name], cpu, _ = command(folder, "sweep", "m.yaml", "--json", "--launcher", launcher, "--runs", name)
            print(f"{name:16}  {wall[name] / runs:6.2f} s a run, {cpu / runs:5.2f} s CPU a run in all")
    _, again, _ = command(folder, "sweep", "m.yaml", "--json", "--runs", "warm, 1 worker")
    print(f"nothing to do     {again:6.2f} s CPU: the command's start, torch among it")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    driver = float(done.stdout) / runs
    whole = wall["warm, 1 worker"] / runs
    share = f"{driver / whole:.2%} of the {whole:.2f} s that it takes"
    print(f"driver            {1e3 * driver:6.1f} ms CPU a run, {share}")
    print(f"altgrad train     {one:6.2f} s for the same run by itself")
    for kind in ("warm", "cold"):
        print(f"{kind}: 2 workers are {wall[f'{kind}, 1 worker'] / wall[f'{kind}, 2 workers']:.2f} times as fast as 1")
    print(f"warm: 1 worker is {wall['cold, 1 worker'] / wall['warm, 1 worker']:.2f} times as fast as cold")


def matrix(folder: Path, seeds: int = 10) -> None:
    """500 runs a seed: 10 formats, 5 rates, 10 decays."""
    (folder / "words.txt").write_text(WORDS)
    (folder / "base.yaml").write_text(BASE.replace("STEPS", "60"))
    (folder / "large.yaml").write_text(
        "base: base.yaml\naxes:\n"
        "  precision.rules.0.weight.format: [e0m7f, e1m6f, e2m5f, e3m4f, e4m3f, e5m2f, e6m1f, e7m0f, e4m3fn, e5m2]\n"
        f"  optimizer.lr: {[1e-3 * k for k in range(1, 6)]}\n"
        f"  optimizer.weight_decay: {[0.01 * k for k in range(10)]}\n"
        f"seeds: {list(range(seeds))}\n"
    )
    code = "from pathlib import Path; from altgrad.sweeps import make_plan; make_plan(Path('large.yaml'))"
    wall, cpu, megabytes = took(folder, "-c", code)
    told = f"{wall:.1f} s, {cpu:.1f} s CPU, {megabytes:.0f} MB, torch's import included"
    print(f"planning: {500 * seeds:,} runs expanded, validated and resolved in {told}", flush=True)


def store(root: Path) -> None:
    """10,000 runs whose folders look like real ones."""
    for number in range(10_000):
        path = root / f"project-{number % 10}" / f"run-{number:08x}-s{number % 5}"
        path.mkdir(parents=True)
        status = ("completed", "diverged", "failed")[number % 3]
        (path / "spec.yaml").write_text("seed: 0\n")
        (path / "meta.json").write_text(
            json.dumps({"status": status, "created": "2026-03-01T12:00:00.000Z", "steps": 100, "seed": number % 5})
        )
        rows = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 101)]
        rows.append({"step": 100, "validation/loss": number / 1e4})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for what in ("built", "used", "used"):
        wall, cpu, _ = command(
            root.parent, "runs", "list", "--runs", str(root), "--status", "diverged", "--match", "run-0*"
        )
        print(f"store: 10,000 runs listed and filtered in {wall:.2f} s, {cpu:.2f} s CPU, the index {what}")
    (root / ".index.json").unlink()


if __name__ == "__main__":
    main()
