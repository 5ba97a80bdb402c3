"""How many pairs of runs a study takes, from the standard deviation of the paired differences.

The chances are those of the verdict's own rule, with its simultaneous 95 % interval of half-width h = c s / sqrt(n):

    "no practical benefit" at true effect m    P(|mean| < d - h)                mean ~ N(m, sd^2 / n), s ~ sd chi / ...
    any decision at all                        P(|mean| < d - h or |mean| > h)

averaged over the sample standard deviation s. An undecided comparison asks for the second at the mean it has, a plan
for the first at m = 0; both at 80 %. A plan by two one-sided tests (90 % intervals) would be a fifth smaller (4, 10 and
36 pairs for sd .005, .01 and .02 instead of what `needed_pairs` gives), but its verdict would not be the one above.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from altgrad.reports.distributions import critical_value, normal_cdf, sd_quantiles
from altgrad.reports.verdicts import MARGIN

POWER = 0.8
CAP = 10_000


def equivalence_chance(
    n: int, sd: float, *, mean: float = 0.0, margin: float = MARGIN, formats: int = 1, correlation: float = 0.0
) -> float:
    """The probability that n pairs end in "no practical benefit", for one of `formats` compared together."""
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
    """The least n that reaches "no practical benefit" at true effect 0 with chance `power`; None beyond CAP."""
    return _least(
        lambda n: equivalence_chance(n, sd, margin=margin, formats=formats, correlation=correlation), sd, power
    )


def pairs_to_decide(
    mean: float,
    sd: float,
    *,
    margin: float = MARGIN,
    formats: int = 1,
    correlation: float = 0.0,
    power: float = POWER,
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


def _least(chance: Callable[[int], float], sd: float, power: float) -> int | None:
    """The first n that reaches `power`: doubled until it does, then halved back."""
    if not math.isfinite(sd):
        return None
    if sd == 0:
        return 2
    high = 2
    while chance(high) < power:
        high *= 2
        if high > CAP:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle, high)
    return max(high, 2)
