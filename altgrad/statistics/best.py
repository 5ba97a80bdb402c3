"""Which formats benefit most: comparison with the best, a *set* (Hsu 1984; Edwards and Hsu 1983).

The format with the largest mean is not the answer; noise chose it from several. Each format f is taken in turn as a
control and compared with all others by the paired differences B_f - B_g. Its distance from the best of the others has
the upper bound

    min over g of  mean(B_f - B_g) + c_f sd(B_f - B_g) / sqrt(n),

c_f the one-sided critical value of the largest of the k - 1 statistics. Formats whose bound is above 0 may be the best;
those left out are not, all together with 95 % confidence. Only the statement about the truly best format can be wrong
in the sense that matters, which is why no further correction over the controls is needed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altgrad.statistics.distributions import critical_value
from altgrad.statistics.intervals import LEVEL, Paired, common_correlation, seeds_in_common


@dataclass(frozen=True)
class Contender:
    """One name: its mean less the best mean of the others, that distance's upper bound, and whether it may be best."""

    name: str
    distance: float
    high: float
    may_be_best: bool


def compare_with_best(paired: Paired, level: float = LEVEL) -> list[Contender]:
    """Every name in its order, from the seeds that all have. Fewer than two such seeds: all may be the best."""
    values, names = seeds_in_common(paired), list(paired)
    if len(names) == 1:
        return [Contender(names[0], math.nan, math.inf, True)]
    return [_against_others(values, index, name, level) for index, name in enumerate(names)]


def best_set(paired: Paired, level: float = LEVEL) -> list[str]:
    """The names that may be the best."""
    return [each.name for each in compare_with_best(paired, level) if each.may_be_best]


def _against_others(values: NDArray[np.float64], index: int, name: str, level: float) -> Contender:
    n, k = values.shape
    if n == 0:
        return Contender(name, math.nan, math.inf, True)
    leads = values[:, [index]] - np.delete(values, index, axis=1)
    means = leads.mean(0)
    if n < 2:
        return Contender(name, float(means.min()), math.inf, True)
    critical = critical_value(n, k - 1, common_correlation(leads), level, one_sided=True)
    bounds = means + critical * leads.std(0, ddof=1) / math.sqrt(n)
    high = float(bounds.min())
    return Contender(name, float(means.min()), high, bool((bounds > 0).all() or (means >= 0).all()))
