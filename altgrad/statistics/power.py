"""How many pairs of runs a comparison takes, from the standard deviation of the paired differences.

Three questions, one search: the least n whose chance reaches 80 %. s is the deviation of n pairs, c its critical value.

    a difference of d is found     P(|t| > c), the mean at d                                  `sweep --power`
    "inside" at true mean m        P(|mean| < d - h), h = c s / sqrt(n), averaged over s       a plan, at m = 0
    any decision at all            P(|mean| < d - h or |mean| > h)                            an undecided comparison

The first is the usual planning formula n >= (t(1 - a/2, n - 1) + t(p, n - 1))^2 (sd / d)^2. The other two are chances
of the decision's own rule, with its simultaneous 95 % interval. A plan by two one-sided tests at 5 % (90 % intervals)
would be a fifth smaller (4, 10 and 36 pairs for sd .005, .01 and .02 instead of what `needed_pairs` gives), but its
verdict would not be the one given.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altgrad.statistics.distributions import (
    chi_square_quantile,
    critical_value,
    normal_cdf,
    sd_quantiles,
    student_cdf,
    student_quantile,
)
from altgrad.statistics.intervals import LEVEL, MARGIN

POWER = 0.8
CAP, DETECTION_CAP = 10_000, 100_000


@dataclass(frozen=True)
class Need:
    """For one pair of arms: pairs seen, their mean difference and its deviation, pairs needed, and at worst."""

    first: str
    second: str
    pairs: int
    mean: float
    deviation: float
    needed: int
    at_worst: int


def pairs_for_margin(first: str, second: str, cells: Sequence[Sequence[float]], margin: float) -> Need:
    """What a margin takes, from the differences (first - second) of each cell. ValueError without a spread.

    Cells (learning rates, say) are pooled: each has its own mean and costs a degree of freedom. The deviation is itself
    uncertain: with f degrees it may be sqrt(f / chi2(0.1, f)) times larger, which `at_worst` uses.
    """
    seen = sum(len(differences) for differences in cells)
    degrees = seen - len(cells)
    if degrees < 1:
        raise ValueError(f"{seen} pairs of {first} and {second} are finished; a spread takes 2 of one cell.")
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0.")
    means = [statistics.fmean(differences) for differences in cells]
    squares = sum((each - mean) ** 2 for own, mean in zip(cells, means, strict=True) for each in own)
    deviation = math.sqrt(squares / degrees)
    worse = deviation * math.sqrt(degrees / chi_square_quantile(0.1, degrees))
    return Need(
        first, second, seen, statistics.fmean(means), deviation,
        pairs_to_detect(deviation / margin), pairs_to_detect(worse / margin),
    )  # fmt: skip


def pairs_to_detect(ratio: float, level: float = LEVEL, power: float = POWER) -> int:
    """The least n >= 2 that finds a difference for a deviation of `ratio` differences; DETECTION_CAP where more."""

    def chance(n: int) -> float:
        return student_cdf(math.sqrt(n) / ratio - student_quantile((1 + level) / 2, n - 1), n - 1)

    return _least(chance, ratio, power, DETECTION_CAP) or DETECTION_CAP


def equivalence_chance(
    n: int, sd: float, *, mean: float = 0.0, margin: float = MARGIN, formats: int = 1, correlation: float = 0.0
) -> float:
    """The probability that n pairs end "inside", for one of `formats` compared together."""
    half, error = _half_widths(n, sd, formats, correlation), sd / math.sqrt(n)
    return float(np.mean(_within(np.maximum(margin - half, 0.0), mean, error)))


def decision_chance(
    n: int, sd: float, *, mean: float, margin: float = MARGIN, formats: int = 1, correlation: float = 0.0
) -> float:
    """The probability that n pairs end in anything but "undecided"."""
    half, error = _half_widths(n, sd, formats, correlation), sd / math.sqrt(n)
    inside, beyond = np.maximum(margin - half, 0.0), half
    undecided = _within(beyond, mean, error) - _within(np.minimum(inside, beyond), mean, error)
    return float(np.mean(1 - np.where(inside >= beyond, 0.0, undecided)))


def needed_pairs(
    sd: float, *, margin: float = MARGIN, formats: int = 1, correlation: float = 0.0, power: float = POWER
) -> int | None:
    """The least n that ends "inside" at true effect 0 with chance `power`; None beyond CAP."""
    return _least(
        lambda n: equivalence_chance(n, sd, margin=margin, formats=formats, correlation=correlation), sd, power
    )


def pairs_to_decide(
    mean: float, sd: float, *, margin: float = MARGIN, formats: int = 1, correlation: float = 0.0, power: float = POWER
) -> int | None:
    """The least n that comes to any decision with chance `power`, if mean and sd are what they look like now."""
    return _least(
        lambda n: decision_chance(n, sd, mean=mean, margin=margin, formats=formats, correlation=correlation), sd, power
    )


def _half_widths(n: int, sd: float, formats: int, correlation: float) -> NDArray[np.float64]:
    return critical_value(n, formats, correlation) * sd * sd_quantiles(n) / math.sqrt(n)


def _within(reach: NDArray[np.float64], mean: float, error: float) -> NDArray[np.float64]:
    """P(|N(mean, error^2)| < reach)."""
    return normal_cdf((reach - mean) / error) - normal_cdf((-reach - mean) / error)


def _least(chance: Callable[[int], float], sd: float, power: float, cap: int = CAP) -> int | None:
    """The first n that reaches `power`: doubled until it does, then halved back; None beyond `cap`."""
    if not math.isfinite(sd):
        return None
    if sd == 0:
        return 2
    high = 2
    while chance(high) < power:
        high *= 2
        if high > cap:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle, high)
    return max(high, 2)
