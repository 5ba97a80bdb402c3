"""Where two runs diverge that should agree: the step from which their training losses differ by more than chance.

Both saw the same data in the same order, so what batches do to a loss falls out of the difference D = suspect -
reference; and so does the trend of a loss that falls. What is left is judged against three things:

    noise    z times the spread of D itself, from its differences over 1, 2, 4 ... 64 observations: of these the
             largest, over sqrt 2. Autocorrelated noise shows at a distance, a trend or a gap hardly at all, being the
             same on both sides; it is the median absolute one, so that a departure does not count. z is the normal
             quantile which as many observations pass by chance in one of 20 runs that agree
    seeds    how far apart runs of other seeds are at each step, by their running medians: the levels, not the batches
    floor    a third of the reference's own noise about its trend, below which a gap is nobody's concern

The band is noise and seeds together, the floor at least. Three observations in a row beyond it are a departure; a loss
that is not finite is one at once. A gap that noise hides at every single step shows in the mean of D, over the whole
run or its last half: over eight blocks, by their own spread (Student's t with 7 degrees of freedom, two-sided 1 %),
beyond seeds and floor. On curves with autoregressive noise (coefficients 0 to 0.9, 60 to 1,000 steps) 2 % of the runs
that agree are said to part, 9 % in the worst cell, 60 steps at 0.9; `tests/diagnosis/test_departure.py` counts them.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LASTING, _WINDOW, _BLOCKS = 3, 11, 8
_LAGS = (1, 2, 4, 8, 16, 32, 64)
_OF_RUNS, _FLOOR, _T = 0.05, 1 / 3, 3.499
_MAD = 1.4826  # of a normal distribution: standard deviation over median absolute deviation

Losses = Mapping[int, float]


@dataclass(frozen=True)
class Departure:
    """step: the first of the observations beyond the band; None where the runs agree throughout.

    difference, band: there, or where the difference is largest against it. source: what the band was made from.
    """

    step: int | None
    difference: float
    band: float
    source: str
    observed: int


def departure(
    reference: Iterable[Mapping[str, float]],
    suspect: Iterable[Mapping[str, float]],
    siblings: Sequence[Iterable[Mapping[str, float]]] = (),
) -> Departure:
    """Where the training losses part. Rows as `Run.metrics` gives them; siblings: runs of other seeds, of either.

    ValueError if no step was logged by both.
    """
    a, b = _losses(reference), _losses(suspect)
    steps = [step for step in a if step in b]
    if not steps:
        raise ValueError("the two runs have logged no step in common; give runs of the same schedule of logging.")
    family = [losses for rows in siblings if (losses := _losses(rows))]
    differences = [b[step] - a[step] for step in steps]
    seeds = _spread(family, steps) if len(family) > 1 else [0.0] * len(steps)
    least = _FLOOR * _spread_of_differences([a[step] for step in steps], order=2)
    noise = _quantile(len(steps)) * _spread_of_differences(differences)
    band = [max(noise + own, least) for own in seeds]
    source = f"{len(family)} seeds and the difference's own noise" if len(family) > 1 else "the difference's own noise"

    def at(index: int | None, shown: int) -> Departure:
        step = None if index is None else steps[index]
        return Departure(step, differences[shown], band[shown], source, len(steps))

    beyond = 0
    for index, step in enumerate(steps):
        if math.isfinite(a[step]) and not math.isfinite(differences[index]):
            return at(index - beyond, index)
        beyond = beyond + 1 if abs(differences[index]) > band[index] else 0
        if beyond == LASTING:
            return at(index - LASTING + 1, index - LASTING + 1)
    for first, part in ((0, "all steps"), (len(steps) // 2, "the last half")):
        if (gap := _lasting_gap(differences[first:], max(statistics.fmean(seeds), least))) is not None:
            return Departure(steps[first], *gap, f"{source}, by the mean of {part}", len(steps))
    finite = [index for index in range(len(steps)) if math.isfinite(differences[index])] or [0]
    return at(None, max(finite, key=lambda index: abs(differences[index]) - band[index]))


def _losses(rows: Iterable[Mapping[str, float]]) -> dict[int, float]:
    return {int(row["step"]): row["train/loss"] for row in rows if "train/loss" in row}


def _quantile(count: int) -> float:
    """The normal quantile that one of `count` observations passes, on either side, in one of 20 runs."""
    return statistics.NormalDist().inv_cdf(1 - _OF_RUNS / (2 * count))


def _spread_of_differences(values: Sequence[float], order: int = 1) -> float:
    """The standard deviation of noise, from differences; order 2 takes out a straight trend as well, in white noise."""
    known = [value for value in values if math.isfinite(value)]
    if order == 2:
        second = [x - 2 * y + z for x, y, z in zip(known, known[1:], known[2:], strict=False)]
        return _deviation(second) / math.sqrt(6)
    lags = [lag for lag in _LAGS if 4 * lag <= len(known)]
    found = [_deviation([y - x for x, y in zip(known, known[lag:], strict=False)]) for lag in lags]
    return max(found, default=0.0) / math.sqrt(2)


def _deviation(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    middle = statistics.median(values)
    return _MAD * statistics.median(abs(value - middle) for value in values)


def _lasting_gap(differences: Sequence[float], least: float) -> tuple[float, float] | None:
    """The mean difference and its limit, where it is beyond that; None where it is not, or for few observations."""
    size = len(differences) // _BLOCKS
    if size < 2 or not all(map(math.isfinite, differences)):
        return None
    means = [statistics.fmean(differences[n * size : (n + 1) * size]) for n in range(_BLOCKS)]
    limit = least + _T * statistics.stdev(means) / math.sqrt(_BLOCKS)
    mean = statistics.fmean(means)
    return (mean, limit) if abs(mean) > limit else None


def _spread(family: Sequence[Losses], steps: Sequence[int]) -> list[float]:
    """At each step, the largest distance between two runs, of their running medians, nearby."""
    levels = []
    for losses in family:
        known = [step for step in steps if math.isfinite(losses.get(step, math.nan))]
        levels.append(dict(zip(known, _running_median([losses[step] for step in known]), strict=True)))
    spread = []
    for step in steps:
        there = [level[step] for level in levels if step in level]
        spread.append(max(there) - min(there) if len(there) > 1 else 0.0)
    half = _WINDOW // 2
    return [max(spread[max(0, n - half) : n + half + 1]) for n in range(len(spread))]


def _running_median(values: Sequence[float]) -> list[float]:
    half = _WINDOW // 2
    return [statistics.median(values[max(0, n - half) : n + half + 1]) for n in range(len(values))]
