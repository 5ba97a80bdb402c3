"""How often the report's statistics keep their promises, on simulated sweeps whose effects are known.

A sweep has five formats with true B of 0, 0, 0.009, 0.02 and -0.02 nats, n pairs of runs each, noise of sd 0.01 nats a
pair that formats share in part (correlation 0, 0.5 or 0.9 in turn). Counted: all five intervals hold their truths
together; a benefit is claimed for a format that has none; the truly best format is in Hsu's set; and, where all true
effects are 0 and n is what `needed_pairs` plans at 80 % power, "no practical benefit" is reached.

A study (`errors`) has a reference arm and one or three others, all at a boundary of their null: 0 for a sign, the
margin for "worse" and for "equivalent". Runs have a noise of their own (Gaussian, t with 5 degrees, or skewed: that of
the arms exponential, that of the reference a tenth of it, since the difference of two alike is symmetric) and an AR(1)
curve, of which the last 5 % count. Counted: studies in which any arm is decided wrongly. `window_errors` asks the
same of the band for one pair of curves.

    python -m bench.verdicts          # prints the tables of docs/REPORT.md and docs/COMPARE.md
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from altgrad.statistics.best import best_set
from altgrad.statistics.distributions import critical_value
from altgrad.statistics.intervals import MARGIN, decide, simultaneous
from altgrad.statistics.power import needed_pairs
from altgrad.statistics.window import window_band

Array = NDArray[np.float64]
FORMATS = ("e0m7", "e3m4", "e4m3fn", "e5m2", "e7m0")
EFFECTS = np.array([0.0, 0.0, 0.009, 0.02, -0.02])
SWEEPS = 1000
SD = 0.01
NEARLY = np.full(5, MARGIN * 0.999)
"""The hardest case for false benefits: every true effect just short of the margin."""

STUDIES = 10_000
TAIL, PERSISTENCE = 3, 0.9
"""Points of a curve that its final value is the mean of, and the correlation of neighbours."""
NULLS = {"a sign at 0": 0.0, "worse at d": MARGIN, "equivalent at d": MARGIN}


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


def losses(generator: np.random.Generator, shape: tuple[int, ...], noise: str) -> Array:
    """Final losses of runs: noise between runs, and the mean of the last points of an AR(1) curve."""
    draws = {"gaussian": generator.standard_normal, "t5": lambda size: generator.standard_t(5, size) * math.sqrt(0.6),
             "skewed": lambda size: generator.exponential(size=size) - 1}  # fmt: skip
    between = SD * draws[noise](shape)
    point, total = generator.standard_normal(shape), 0.0
    for _ in range(TAIL):
        total = total + point
        point = PERSISTENCE * point + math.sqrt(1 - PERSISTENCE**2) * generator.standard_normal(shape)
    return np.asarray(between + SD / 2 * total / TAIL)


def studies(n: int, arms: int, noise: str, count: int = STUDIES) -> Array:
    """Differences from the reference arm, [study, seed, arm], at true differences of 0."""
    generator = np.random.default_rng([n, arms, len(noise)])
    found = losses(generator, (count, n, arms + 1), noise)
    base = found[:, :, :1] * (0.1 if noise == "skewed" else 1.0)
    return np.asarray(found[:, :, 1:] - base)


def bounds(differences: Array) -> tuple[Array, Array]:
    """What `simultaneous` gives for each study: low and high, [study, arm]."""
    _, n, arms = differences.shape
    centred = differences - differences.mean(1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).sum(1, keepdims=True))
    pooled = (np.square(scaled.sum(2)).sum(1) - arms) / max(arms * (arms - 1), 1) if n > 2 and arms > 1 else 0.0
    tenth = np.floor(np.clip(pooled, 0.0, 0.95) * 10 + 1e-9) / 10 * np.ones(len(differences))
    known, which = np.unique(tenth, return_inverse=True)
    critical = np.array([critical_value(n, arms, each) for each in known])[which]
    half = critical[:, None] * differences.std(1, ddof=1) / math.sqrt(n)
    mean = differences.mean(1)
    return mean - half, mean + half


def errors(n: int, arms: int, noise: str, count: int = STUDIES) -> Mapping[str, float]:
    """The share of studies with a wrong decision, by null."""
    low, high = bounds(studies(n, arms, noise, count))
    wrong = {
        "a sign at 0": (low > 0) | (high < 0),
        "worse at d": low + MARGIN >= MARGIN,
        "equivalent at d": (low + MARGIN > -MARGIN) & (high + MARGIN < MARGIN),
    }
    return {null: float(found.any(1).mean()) for null, found in wrong.items()}


def window_errors(points: int, persistence: float, count: int = 1000) -> tuple[float, float]:
    """Of pairs of AR(1) curves that are not apart: the share with a band, and with a band that says they are."""
    generator = np.random.default_rng([points, round(100 * persistence)])
    series = generator.standard_normal((count, 2 * points))
    for t in range(1, 2 * points):
        series[:, t] = persistence * series[:, t - 1] + math.sqrt(1 - persistence**2) * series[:, t]
    bands = [window_band(np.arange(2.0 * points), each, "loss") for each in series]
    return sum(b is not None for b in bands) / count, sum(b is not None and b.differs for b in bands) / count


def main() -> None:
    """Print all tables."""
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
    for noise in ("gaussian", "t5", "skewed"):
        print(
            f"\n| {noise}: seeds | " + " | ".join(f"{null}, {k} arm{'s' * (k > 1)}" for k in (1, 3) for null in NULLS)
        )
        for n in (2, 3, 4, 6, 8, 12, 16):
            shares = [share for k in (1, 3) for share in errors(n, k, noise).values()]
            print(f"| {n} |", " | ".join(f"{100 * share:.1f} %" for share in shares), "|")
    print("\n| points in the window | r | a band is given | and says wrongly: apart |\n|---|---|---|---|")
    for points in (50, 100, 300):
        for r in (0.0, 0.5, 0.8, 0.9, 0.95):
            given, wrong = window_errors(points, r)
            print(f"| {points} | {r} | {100 * given:.0f} % | {100 * wrong:.1f} % |")


if __name__ == "__main__":
    main()
