"""How many pairs of seeds a margin takes, from the spread of the pairs seen so far.

Two arms are compared pair by pair, on the same seed and data; with s the standard deviation of the n0 differences seen,
a two-sided t test at level a finds a true difference of d with probability p for the least n with

    n >= (t(1 - a/2, n - 1) + t(p, n - 1))^2 (s / d)^2

(the usual normal formula with Student's quantiles, iterated; for k comparisons a is a/k). Differences of several cells
(learning rates, say) are pooled: each cell has its own mean and costs a degree of freedom. s is itself uncertain: with
f degrees it may be sqrt(f / chi2(0.1, f)) times larger, which the upper figure uses. Quantiles are found by bisection
on the integrated density, so this needs no library.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

LEVEL, POWER, MOST = 0.05, 0.8, 100_000


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


def need(first: str, second: str, cells: Sequence[Sequence[float]], margin: float, comparisons: int = 1) -> Need:
    """What a margin takes, from the differences (first - second) of each cell. ValueError without a spread."""
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
    level = LEVEL / comparisons
    return Need(
        first, second, seen, statistics.fmean(means), deviation,
        pairs_needed(deviation / margin, level), pairs_needed(worse / margin, level),
    )  # fmt: skip


def pairs_needed(ratio: float, level: float = LEVEL, power: float = POWER) -> int:
    """The least n >= 2 for a deviation of `ratio` margins; MOST where it would be more."""

    def enough(n: int) -> bool:
        return n >= (t_quantile(1 - level / 2, n - 1) + t_quantile(power, n - 1)) ** 2 * ratio**2

    low, high = 2, 2
    while not enough(high):
        low, high = high, 2 * high
        if high >= MOST:
            return MOST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


@lru_cache(maxsize=4096)
def t_quantile(share: float, degrees: int) -> float:
    """Student's quantile for a share in [0.5, 1)."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)

    def density(angle: float) -> float:
        # With x = sqrt(degrees) tan(angle) the range is finite and the integrand smooth.
        return math.exp(log_scale) * math.sqrt(degrees) * math.cos(angle) ** (degrees - 1)

    def below(angle: float) -> float:
        return 0.5 + _integral(density, 0.0, angle)

    angle = _bisect(lambda angle: below(angle) - share, 0.0, math.pi / 2)
    return math.sqrt(degrees) * math.tan(angle)


def chi_square_quantile(share: float, degrees: int) -> float:
    """The chi-square quantile."""

    def density(root: float) -> float:
        # In the root of x the density has no pole at 0.
        return (
            2
            * math.exp(
                (degrees - 1) * math.log(root) - root * root / 2 - degrees / 2 * math.log(2) - math.lgamma(degrees / 2)
            )
            if root
            else (2 / math.sqrt(2 * math.pi) if degrees == 1 else 0.0)
        )

    top = math.sqrt(degrees) + 8
    return _bisect(lambda root: _integral(density, 0.0, root) - share, 0.0, top) ** 2


def _integral(f: Callable[[float], float], low: float, high: float, parts: int = 400) -> float:
    """Simpson's rule."""
    width = (high - low) / parts
    inner = sum((4 if index % 2 else 2) * f(low + index * width) for index in range(1, parts))
    return (f(low) + inner + f(high)) * width / 3


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if f(middle) > 0 else (middle, high)
    return (low + high) / 2
