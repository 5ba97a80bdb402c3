"""python -m bench.demo [--triples 8] [--runs DIR] [--page]: how often three seeds decide what `make demo` asks.

matrices/demo.yaml on further seeds (10, 11, ...), three of them a triple, each judged as the demo's own three are: the
differences of the two arms from float32, paired by seed, with intervals that hold for both together (max-t, and
Bonferroni's t beside it), and what they decide at a margin of 0.01 nats. Runs one after another, on one thread; what is
there already is not trained again. --page writes the table into bench/RESULTS.md.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from altgrad.matrix import Matrix, runs_of
from altgrad.statistics.distributions import critical_value
from altgrad.statistics.intervals import LEVEL, decide, interval_of_mean, simultaneous
from altgrad.training import RunSpec
from altgrad.training.prepare import prepare
from bench.page import refresh

ROOT = Path(__file__).resolve().parents[1]
TWIN, ARMS, FIRST = "fp32", ("fp8", "mxfp4"), 10
HEAD = ("seeds", "arm", "difference", "sd", "max-t", "decides", "Bonferroni", "decides")
Losses = Mapping[str, Mapping[int, float]]


def train(triples: int, runs: Path) -> dict[str, dict[int, float]]:
    """Final validation losses by arm and seed."""
    path = ROOT / "matrices" / "demo.yaml"
    seeds = tuple(range(FIRST, FIRST + 3 * triples))
    matrix = Matrix.load(path).model_copy(update={"seeds": seeds})
    losses: dict[str, dict[int, float]] = {arm: {} for arm in (TWIN, *ARMS)}
    for place, spec in sorted(runs_of(matrix, path.parent, RunSpec), key=lambda each: each[0].seed):
        found = prepare(spec).train(runs)
        losses[place.arm][place.seed] = found.validation["validation/loss"]
        print(f"seed {place.seed}  {place.arm:<6} {losses[place.arm][place.seed]:.4f}", flush=True)
    return losses


def judged(losses: Losses) -> list[list[str]]:
    """A row for each triple of seeds and each arm, in cells."""
    rows = []
    seeds = sorted(losses[TWIN])
    for start in range(0, len(seeds) - 2, 3):
        triple = seeds[start : start + 3]
        paired = {arm: {seed: losses[arm][seed] - losses[TWIN][seed] for seed in triple} for arm in ARMS}
        critical = critical_value(len(triple), 1, level=1 - (1 - LEVEL) / len(ARMS))
        for arm, wide in simultaneous(paired).items():
            wider = interval_of_mean(np.array(list(paired[arm].values())), critical)
            cells = [f"[{each.low:+.3f}, {each.high:+.3f}]" for each in (wide, wider)]
            rows.append(
                [f"{triple[0]} to {triple[-1]}", arm, f"{wide.mean:+.4f}", f"{wide.sd:.4f}", cells[0], decide(wide)]
                + [cells[1], decide(wider)]
            )
    return rows


def main() -> None:
    """Train what is missing and say what each triple decides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--triples", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--page", action="store_true", help="write the table into bench/RESULTS.md")
    options = parser.parse_args()
    rows = judged(train(options.triples, options.runs))
    table = "\n".join(f"| {' | '.join(row)} |" for row in [list(HEAD), ["---"] * len(HEAD), *rows])
    print(table)
    if options.page:
        refresh(ROOT / "bench" / "RESULTS.md", "demo", table)


if __name__ == "__main__":
    main()
