"""python -m bench.small: what a small run takes beside a plain PyTorch loop, from its start to its steps.

    step     the quickstart with `precision: none`, as `altgrad train` trains it (its monitors, its log, its clipping),
             against a loop of the same model, batches, AdamW and clipping written with torch alone; segments of both
             take turns, each the median of its intervals of 5 steps; limit 1.10
    start    `altgrad train` of the same in a process of its own, until the first step is in metrics.jsonl; limit 6 s

What a driver does with two workers is in `bench.sweep`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch

from altgrad.data.dataset import Dataset
from altgrad.store import Run
from altgrad.training import RunSpec, train_run
from altgrad.training.prepare import prepare
from bench.timing import machine, median_interval

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "matrices" / "quickstart.yaml"
SETS = ["precision=none", "evaluate_every=100000", "checkpoint_every=100000", "steps=100000"]
EVERY = 5


def plain(spec: RunSpec, dataset: Dataset, steps: int) -> Iterator[float]:
    """The same steps as a user of torch writes them: seconds of each segment's median interval, a step."""
    torch.manual_seed(spec.seed)
    model = spec.model.build(dataset.vocabulary, dataset.outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.optimizer.lr, weight_decay=0.1)
    number = 0
    while True:
        taken = []
        for _ in range(steps // EVERY):
            began = time.perf_counter()
            for _ in range(EVERY):
                batch = dataset.batch(number)
                loss = dataset.loss(model(batch.inputs), batch)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                loss.item()
                number += 1
            taken.append((time.perf_counter() - began) / EVERY)
        yield statistics.median(taken)


def ours(spec: RunSpec, run: Run, dataset: Dataset, steps: int) -> Iterator[float]:
    """The same of a run of ours, which stops after each segment and goes on from its checkpoint."""
    until = 0
    while True:
        train_run(spec, run, dataset, until=until + steps)
        walls = [row["time/wall_seconds"] for row in run.metrics(["time/wall_seconds"]) if row["step"] > until]
        yield statistics.median((b - a) / EVERY for a, b in pairwise(walls))
        until += steps


def steps(rounds: int, count: int) -> None:
    """Print the ratio of steps."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(QUICKSTART, [*SETS, "evaluate_limit=1", f"threads={torch.get_num_threads()}"])
        run = prepared.run(Path(folder))
        prepared.ensure(run)
        arms = plain(prepared.spec, prepared.dataset, count), ours(prepared.spec, run, prepared.dataset, count)
        pairs = [(next(arms[0]), next(arms[1])) for _ in range(rounds + 1)][1:]  # the first one warms up
    ratios = [mine / theirs for theirs, mine in pairs]
    low, high = median_interval(ratios)
    print(f"{machine()}, {torch.get_num_threads()} thread(s); {rounds} segments of {count} steps each")
    print(f"plain loop     {1e3 * statistics.median(theirs for theirs, _ in pairs):7.1f} ms a step")
    print(f"altgrad train  {1e3 * statistics.median(mine for _, mine in pairs):7.1f} ms a step")
    print(f"ratio          {statistics.median(ratios):7.3f} (95 % of the median {low:.3f}-{high:.3f}), limit 1.10")


def start() -> tuple[float, float]:
    """Seconds from the command to the first row of a training step, of wall and of CPU."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "altgrad.cli.main", "train", str(QUICKSTART), "--runs", folder,
             *(word for each in SETS for word in ("--set", each))],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not any("train/loss" in path.read_text() for path in Path(folder).glob("*/*/metrics.jsonl")):
            assert process.poll() is None, "the run ended before its first step"
            time.sleep(0.02)
        wall = time.perf_counter() - began
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
        process.wait()
    return wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30, help="of a segment")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for _ in range(options.starts):
        wall, cpu = start()
        print(f"start          {wall:7.2f} s to the first step, {cpu:.2f} s of CPU; limit 6 s", flush=True)
    steps(options.rounds, options.steps)


if __name__ == "__main__":
    main()
