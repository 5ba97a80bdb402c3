"""The stall oracle against training: move rates foretold and measured, over formats, optimizers, storages and lr.

    python -m bench.stall_oracle [--steps 60] [--write]

The model is the quickstart's, shrunk (2 layers, width 64, context 64, batch 8) so that all cells train in minutes;
data, schedule shape and optimizer settings are its own. Every cell trains `steps` steps and counts, at each, the
requested changes that changed a code, over the blocks' matrices. Three forecasts of a cell, each made before it trains:

    white    from its initial weights and spec alone, gradients of white noise
    shared   with signals from 20 steps of ONE run: the quickstart's optimizer at its own learning rate, nothing cast
    own      with signals from 20 steps of the cell itself

Of cells where fewer than one change in 10^6 was seen or foretold no logarithm is taken; they are listed.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import pearsonr

from altgrad.diagnosis.oracle import Moves, rehearse
from altgrad.diagnosis.signals import calibrate, train_steps
from altgrad.training import RunSpec
from altgrad.training.state import TrainState
from bench.page import refresh
from bench.timing import machine

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("e4m3fn", "e5m2", "e3m4", "e0m7")
OPTIMIZERS = ("adamw", "manifold_adamw", "madam")
STORAGES = ("stochastic", "nearest", "master")
RATES = {"adamw": (3e-4, 2e-3), "manifold_adamw": (3e-4, 2e-3), "madam": (3e-3, 2e-2)}
SHRUNK = ("model.layers=2", "model.width=64", "model.context=64", "data.batch_size=8", "threads=1", "engine=eager")
LEAST = 1e-6


class Cell(NamedTuple):
    """One cell's move rates."""

    name: str
    measured: float
    white: float
    shared: float
    own: float


def spec_of(fmt: str, optimizer: str, storage: str, lr: float, steps: int) -> RunSpec:
    """The quickstart, shrunk, in this cell."""
    kept = f"{{match: 'blocks.*.weight', kind: {storage}, format: {fmt}}}"
    casts = f"{{rules: [{{match: 'blocks.*', weight: {fmt}}}]}}" if storage == "master" else "{rules: []}"
    decay = "" if optimizer == "madam" else ", weight_decay: 0.1"
    sets = [*SHRUNK, f"steps={steps}", "schedule.warmup=5", f"precision={casts}", f"storage=[{kept}]"]
    sets += [f"optimizer={{kind: {optimizer}, lr: {lr}{decay}}}"]
    return RunSpec.load(ROOT / "matrices" / "quickstart.yaml", sets)


def matrices(moves: Moves) -> float:
    """Moves over attempts of the blocks' matrices."""
    names = [name for name in moves.attempted if name.startswith("blocks.") and "norm" not in name]
    return sum(moves.moved[name] for name in names) / sum(moves.attempted[name] for name in names)


def cells(steps: int) -> list[Cell]:
    """Train and foretell every cell."""
    base = spec_of("e4m3fn", "adamw", "master", 2e-3, steps)
    data = base.data.build(base.seed, base.model.context)
    plain = RunSpec.load(ROOT / "matrices" / "quickstart.yaml", [*SHRUNK, "schedule.warmup=5", "precision={rules: []}"])
    signals = calibrate(plain.model_copy(update={"steps": steps}), data)
    found = []
    for fmt, optimizer, storage in itertools.product(FORMATS, OPTIMIZERS, STORAGES):
        for lr in RATES[optimizer]:
            spec = spec_of(fmt, optimizer, storage, lr, steps)
            state = TrainState.build(spec, data, torch.device("cpu"))
            foretold = [overall(spec, state, steps, each) for each in (None, signals, calibrate(spec, data))]
            moves = Moves()
            state.optimizer.watching = True
            state.optimizer.observers.append(moves)
            for _ in train_steps(spec, data, state, steps):
                pass
            cell = Cell(f"{fmt} {optimizer} {storage} {lr:g}", matrices(moves), *foretold)
            print(*cell, flush=True)
            found.append(cell)
    return found


def overall(spec: RunSpec, state: TrainState, steps: int, signals: object) -> float:
    """The forecast over the blocks' matrices, by their size."""
    forecast = rehearse(spec, state.model, steps=steps, signals=signals)  # type: ignore[arg-type]
    sizes = {name: p.numel() for name, p in state.model.named_parameters()}
    names = [name for name in forecast.rates if name.startswith("blocks.") and "norm" not in name]
    return sum(forecast.rates[name] * sizes[name] for name in names) / sum(sizes[name] for name in names)


def figures(found: Sequence[Cell], which: str) -> tuple[int, float, float, float]:
    """Number of cells, correlation of log10, median factor, and the 90th percentile of the factor."""
    pairs = [(cell.measured, getattr(cell, which)) for cell in found]
    logs = [(math.log10(a), math.log10(b)) for a, b in pairs if min(a, b) >= LEAST]
    factors = sorted(10 ** abs(a - b) for a, b in logs)
    correlation = float(pearsonr([a for a, _ in logs], [b for _, b in logs])[0])
    return len(logs), correlation, statistics.median(factors), factors[int(0.9 * len(factors))]


def main() -> None:
    """Print the tables; with --write put them into docs/ORACLE.md."""
    parser = argparse.ArgumentParser(description="Foretold and measured move rates.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = cells(options.steps)
    lines = [
        f"{len(found)} cells, {options.steps} steps each; {machine()}.", "",
        "| gradients | cells compared | correlation of log10 | median factor | 90th percentile |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for which in ("white", "shared", "own"):
        count, correlation, median, high = figures(found, which)
        lines.append(f"| {which} | {count} | {correlation:.3f} | {median:.2f} | {high:.2f} |")
    few = [cell.name for cell in found if min(cell[1:]) < LEAST]
    lines += ["", f"Below {LEAST:g}, not compared: {', '.join(few) or 'none'}.", ""]
    lines += ["| format, optimizer, storage, lr | measured | white | shared | own |", "|---|---|---|---|---|"]
    lines += [f"| {c.name} | {c.measured:.2e} | {c.white:.2e} | {c.shared:.2e} | {c.own:.2e} |" for c in found]
    print("\n".join(lines[:9]))
    if options.write:
        refresh(ROOT / "docs" / "ORACLE.md", "cells", "\n".join(lines))


if __name__ == "__main__":
    main()
