"""How often the report's statistics keep their promises, on simulated sweeps whose effects are known.

A sweep has five formats with true B of 0, 0, 0.009, 0.02 and -0.02 nats, n pairs of runs each, noise of sd 0.01 nats a
pair that formats share in part (correlation 0, 0.5 or 0.9 in turn). Counted: all five intervals hold their truths
together; a benefit is claimed for a format that has none; the truly best format is in Hsu's set; and, where all true
effects are 0 and n is what `needed_pairs` plans at 80 % power, "no practical benefit" is reached.

    python -m bench.verdicts          # prints the tables of docs/REPORT.md
"""

import math

import numpy as np
from numpy.typing import NDArray

from altgrad.statistics.best import best_set
from altgrad.statistics.intervals import MARGIN, decide, simultaneous
from altgrad.statistics.power import needed_pairs

FORMATS = ("e0m7", "e3m4", "e4m3fn", "e5m2", "e7m0")
EFFECTS = np.array([0.0, 0.0, 0.009, 0.02, -0.02])
SWEEPS = 1000
SD = 0.01
NEARLY = np.full(5, MARGIN * 0.999)
"""The hardest case for false benefits: every true effect just short of the margin."""


def sweep(
    generator: np.random.Generator, n: int, effects: NDArray[np.float64], sd: float, shared: float
) -> dict[str, dict[int, float]]:
    """Paired differences by format and seed; `shared` is the correlation between formats."""
    common = math.sqrt(shared) * generator.standard_normal((n, 1))
    noise = common + math.sqrt(1 - shared) * generator.standard_normal((n, len(effects)))
    return {name: dict(enumerate(column)) for name, column in zip(FORMATS, (effects + sd * noise).T, strict=False)}


def outcomes(n: int, sweeps: int = SWEEPS, effects: NDArray[np.float64] = EFFECTS) -> dict[str, float]:
    """Shares of sweeps: `covered` together, `false benefit`, `best kept` in Hsu's set."""
    generator = np.random.default_rng(n)
    harmless = [name for name, effect in zip(FORMATS, effects, strict=True) if effect < MARGIN]
    best = FORMATS[int(effects.argmax())]
    covered = false = kept = 0
    for number in range(sweeps):
        found = sweep(generator, n, effects, SD, shared=(0.0, 0.5, 0.9)[number % 3])
        intervals = simultaneous(found)
        covered += all(i.low <= e <= i.high for i, e in zip(intervals.values(), effects, strict=True))
        false += any(decide(intervals[name]) == "above" for name in harmless)
        kept += best in best_set(found)
    return {"covered": covered / sweeps, "false benefit": false / sweeps, "best kept": kept / sweeps}


def equivalence(sd: float, formats: int, sweeps: int = SWEEPS) -> tuple[int, float]:
    """The planned n, and the share of formats for which "no practical benefit" is reached at true effects of 0."""
    n = needed_pairs(sd, formats=formats)
    assert n is not None
    generator = np.random.default_rng(7)
    reached = [
        decide(found) == "inside"
        for _ in range(sweeps)
        for found in simultaneous(sweep(generator, n, np.zeros(formats), sd, 0.0)).values()
    ]
    return n, float(np.mean(reached))


def main() -> None:
    """Print both tables."""
    print(
        "| pairs n | all intervals cover | false benefit | the best is in its set | false benefit if all B < d barely |"
    )
    print("|---|---|---|---|---|")
    for n in (5, 10, 20):
        shares = [*outcomes(n).values(), outcomes(n, effects=NEARLY)["false benefit"]]
        print(f"| {n} |", " | ".join(f"{100 * share:.1f} %" for share in shares), "|")
    print("\n| sd of a pair | formats | planned n | no practical benefit reached |\n|---|---|---|---|")
    for sd, formats in ((0.005, 1), (0.01, 1), (0.02, 1), (0.005, 5), (0.01, 5)):
        n, share = equivalence(sd, formats)
        print(f"| {sd} | {formats} | {n} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
