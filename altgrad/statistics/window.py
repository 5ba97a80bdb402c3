"""How far two curves are apart over a window: a band for one pair of runs, whose points depend on their neighbours.

The differences d_t of two runs of one seed are a series, not a sample: a wave that lasts twenty points counts once, not
twenty times. Its long-run variance is the mean of the squared projections on the first B cosines of the window,

    omega = (1/B) sum_j ( sqrt(2/T) sum_t d_t cos(pi j (t - 1/2) / T) )^2,      mean +- t(0.975, B) sqrt(omega / T)

(Mueller 2007, Lazarus et al. 2018: a "fixed-b" bound, so called since B stays while T grows). B = 2 gives a wide band,
t = 4.30, and the one that holds: over AR(1) points with r up to 0.95 its error is 4.4 to 7.2 % where 5 % is meant
(docs/COMPARE.md), given T >= 50 and a series worth 5 independent points, T (1 - r) / (1 + r) >= 5; no band is given
elsewhere. B = 8 would err in 31 % at T = 50, r = 0.9.

The band says how far *these two runs* are apart over the window. It holds nothing of the noise between runs, and so
decides nothing between their arms.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from altgrad.statistics.distributions import student_quantile
from altgrad.statistics.intervals import LEVEL

COSINES = 2
LEAST_POINTS, LEAST_WORTH = 50, 5.0


@dataclass(frozen=True)
class WindowBand:
    """The mean difference of two curves of a metric over the steps from `first` to `last`, with its 95 % band."""

    metric: str
    first: float
    last: float
    mean: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the two curves are apart over the window."""
        return self.low > 0 or self.high < 0


def window_band(steps: NDArray[np.float64], differences: NDArray[np.float64], metric: str) -> WindowBand | None:
    """The band over the later half of the points; None where those are few, not finite, or worth too few."""
    half = len(steps) // 2
    steps, series = steps[half:], differences[half:]
    points = len(series)
    if points < LEAST_POINTS or not np.isfinite(series).all() or worth(series) < LEAST_WORTH:
        return None
    angles = np.pi * np.outer(np.arange(1, COSINES + 1), np.arange(points) + 0.5) / points
    projections = math.sqrt(2 / points) * (np.cos(angles) @ series)
    half_width = student_quantile((1 + LEVEL) / 2, COSINES) * math.sqrt(float(np.mean(projections**2)) / points)
    mean = float(series.mean())
    return WindowBand(metric, float(steps[0]), float(steps[-1]), mean, mean - half_width, mean + half_width)


def worth(series: NDArray[np.float64]) -> float:
    """How many independent points as many correlated ones are worth, by the first autocorrelation, bias corrected."""
    centred, n = series - series.mean(), len(series)
    spread = float(centred @ centred)
    if spread == 0:
        return float(n)
    r = float(centred[1:] @ centred[:-1]) / spread
    r = min(r + (1 + 3 * r) / n, 1.0)
    return n * (1 - r) / (1 + r) if r > 0 else float(n)
