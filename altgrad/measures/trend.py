"""Does a series fall, and has it fallen far? Mann-Kendall, Theil-Sen, and the alarm for collapsing ranks.

Mann-Kendall (Mann 1945; Kendall 1975) asks whether later values tend to be smaller, whatever their distribution:

    S = sum_{i<j} sign(x_j - x_i);   var S = (n (n-1) (2n+5) - sum over ties t (t-1) (2t+5)) / 18
    z = (S -+ 1) / sqrt(var S), towards 0;   p of a decline = Phi(z)

Theil-Sen (Sen 1968) is the median of the slopes of all pairs.

That variance, and with it p, is of *independent* values. Stable ranks of successive observations are not: a slow swing
looks like a trend. Here p is therefore a heuristic, a threshold that simulation has set (below), and no error rate;
what it lets through is stopped by the other conditions. `hamed_rao` has the variance for correlated values (Hamed and
Rao, Journal of Hydrology 204, 1998): with r_k the autocorrelation of the ranks of the values less their Theil-Sen line,
as far as it is significant at 5 %,

    var* S = var S (1 + 2 / (n (n-1) (n-2)) sum_k (n-k) (n-k-1) (n-k-2) r_k).

The rank alarm. Stable ranks fall a lot in healthy training, so a falling rank is no fault; falling *away from the BF16
twin* is one. Each observation is d = log(rank) - log(rank of the twin at the same step). The alarm is raised when

    it is far      the level, the median of the last 3 d, is below log(1 - drop): 20 %, for sensitive layers 10 %;
    it falls       in some window that ends here Mann-Kendall sees a decline (p < 0.01), and the Theil-Sen slope makes
                   up at least half of the level's distance over that window;
    it is new      the level has never been lower: noise comes back to where it was, a collapse does not; and it is
                   farther below the twin than the level has ever risen from its lowest point, or by 0.5 (39 %).

Windows count observations, never steps, and the first is full at the 8th. A collapse may take ten observations or a
thousand, so windows of 8, 16, 32, 64 ... are all tried, as 8 means of 1, 2, 4, 8 ... each: a few numbers of state for
a run of any length, where one fixed window is too short for a slow collapse or too long for a fast one. A level that
was low from the first never falls, and raises nothing. Without a twin d is log(rank) less the log of the run's own
median over observations 4 to 8; since healthy ranks fall too, the same test then gives a notice, not an alarm.

Simulated, 50 series each. A straight collapse 10 -> 1 over 10, 16, 32, 100 or 1000 observations raises it after 0.40,
0.31, 0.28, 0.24, 0.22 of its length (median, without noise), always by half; in 5 % of noise after as much, of the
shortest 94 % by half; in 10 % after 0.50, 0.38, 0.31, 0.26, 0.24, of the two shortest 80 and 94 % by half. False alarms
per 1,000 observations of a rank that loses 79 % beside a twin that loses as much, in white noise and in an
autoregression of rho = 0.9:

    deviation       5 %    10 %   |   3 %, rho   5 %, rho   10 %, rho
    drop 20 %       0      0      |   0          0          0.4
    drop 10 %       0.02   0.12   |   0.04       0.5        2.2

Without asking for more than the rebound the last column was 4.4 and 10.7, and without the third condition 93; none of
the collapses above was seen later for it. The alarm does not use Hamed and Rao's variance: eight points do not tell a
correlation, and what they would say of a slow swing is what its coming back says. Real runs are counted by
`bench.false_alarms`. An alarm flickers while its conditions come and go; the first observation that raises it is what
counts.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

POINTS = 8
"""Points of a window; the observation at which the first is full."""
LEVEL = 3
"""Observations whose median is the level."""
WARM_UP = 3
"""Observations left out of the run's own median."""
P_DECLINE = 0.01
FEWEST_CORRELATED = 10
"""Values below which no autocorrelation is estimated."""
REBOUND = 0.5
"""The most that a rebound can ask for, in log rank: less than half of a collapse to a tenth, whatever came before."""


def mann_kendall(values: Sequence[float]) -> tuple[float, float]:
    """z (negative for a decline) and p of a decline, one-sided, with ties and continuity correction.

    A constant series has z = 0 and p = 1/2; fewer than two values, or one that is not finite, NaN twice.
    """
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return math.nan, math.nan
    s = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    z = (s - (s > 0) + (s < 0)) / math.sqrt(variance) if variance else 0.0
    return z, math.erfc(-z / math.sqrt(2)) / 2


def hamed_rao(values: Sequence[float]) -> tuple[float, float]:
    """`mann_kendall` with Hamed and Rao's variance for autocorrelated values; for ten of them or more.

    NaN twice for fewer than ten, and for values that are not finite. A corrected variance that is not positive (strong
    negative correlation) is left uncorrected.
    """
    n = len(values)
    z = mann_kendall(values)[0]
    if n < FEWEST_CORRELATED or math.isnan(z):
        return math.nan, math.nan
    slope = theil_sen(values)
    ranks = _ranks([value - slope * index for index, value in enumerate(values)])
    centred = [rank - (n + 1) / 2 for rank in ranks]
    energy = sum(c * c for c in centred)
    excess = 0.0
    for lag in range(1, n - 2) if energy else ():
        r = sum(a * b for a, b in zip(centred, centred[lag:], strict=False)) / energy
        if abs(r) > 1.96 / math.sqrt(n):
            excess += (n - lag) * (n - lag - 1) * (n - lag - 2) * r
    factor = 1 + 2 * excess / (n * (n - 1) * (n - 2))
    z = z / math.sqrt(factor) if factor > 0 else z
    return z, math.erfc(-z / math.sqrt(2)) / 2


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered, 1)))}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def theil_sen(values: Sequence[float]) -> float:
    """The median slope of all pairs, per observation; NaN for fewer than two values or one that is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


@dataclass(frozen=True)
class RankTrend:
    """What the rank alarm remembers of one layer: plain numbers, JSON through `dataclasses.asdict` and back."""

    seen: int = 0
    """Observations so far, those without a rank left out."""
    paired: bool | None = None
    """Whether they were held against a twin; None before the first."""
    reference: float = 0.0
    """What the level is measured from: 0 with a twin, without one the log of the run's own median, once known."""
    lowest: float | None = None
    """The lowest level so far."""
    rebound: float = 0.0
    """The most that the level has risen from its lowest point."""
    windows: Sequence[Sequence[float]] = ()
    """The last 8 means of 1, 2, 4, 8 ... observations, oldest first."""
    halves: Sequence[float | None] = ()
    """For each of them the first half of the next wider mean."""


@dataclass(frozen=True)
class RankVerdict:
    """What one observation says."""

    raised: bool
    """Whether the three conditions hold."""
    certain: bool
    """True for an alarm, against the twin; False for a notice, against the run's own past."""
    drop: float
    """1 - exp(level): how far below; negative above. NaN before there is a level, or without an observation."""
    window: int
    """Observations in the window with the surest decline among those that qualify; 0 for none."""


def observe_rank(
    trend: RankTrend, rank: float, twin: float | None = None, *, drop: float = 0.2
) -> tuple[RankTrend, RankVerdict]:
    """The trend one observation on, and its verdict.

    rank, twin: stable ranks of a layer and of its twin's at the same step; twin None for a run that has no twin. Where
    either is not positive and finite there is no observation, and the trend stays. drop: in (0, 1).
    ValueError for another drop, and for a twin that comes or goes within a series.
    """
    if not 0 < drop < 1:
        raise ValueError(f"drop={drop}; the fall that matters is a share between 0 and 1.")
    paired = twin is not None
    if trend.paired not in (None, paired):
        raise ValueError("a series has a twin from its first observation or none; give nan where it was not measured.")
    beside = 1.0 if twin is None else twin
    if not (0 < rank < math.inf and 0 < beside < math.inf):
        return trend, RankVerdict(False, paired, math.nan, 0)
    trend = _with(replace(trend, paired=paired, seen=trend.seen + 1), math.log(rank) - math.log(beside))
    if trend.seen < POINTS:
        return trend, RankVerdict(False, paired, math.nan, 0)
    if trend.seen == POINTS and not paired:
        trend = replace(trend, reference=statistics.median(trend.windows[0][WARM_UP:]))
    level = statistics.median(trend.windows[0][-LEVEL:]) - trend.reference
    new = trend.lowest is None or level <= trend.lowest
    far = level < min(math.log(1 - drop), -min(trend.rebound, REBOUND))
    window = _window_of_decline(trend, level) if new and far else 0
    verdict = RankVerdict(window > 0, paired, -math.expm1(level), window)
    lowest = level if trend.lowest is None else min(level, trend.lowest)
    return replace(trend, lowest=lowest, rebound=max(trend.rebound, level - lowest)), verdict


def _with(trend: RankTrend, value: float) -> RankTrend:
    """One more value in the narrowest window, and in every wider one whose next mean it completes."""
    windows, halves = [tuple(window) for window in trend.windows], list(trend.halves)
    for width in itertools.count():
        if width == len(windows):
            windows.append(())
            halves.append(None)
        windows[width] = (*windows[width], value)[-POINTS:]
        first = halves[width]
        if first is None:
            halves[width] = value
            break
        value, halves[width] = (first + value) / 2, None
    return replace(trend, windows=tuple(windows), halves=tuple(halves))


def _window_of_decline(trend: RankTrend, level: float) -> int:
    """Observations in the window of least p that declines and explains half of the level; 0 for none."""
    found = []
    for width, window in enumerate(trend.windows):
        if len(window) == POINTS:
            p = mann_kendall(window)[1]
            if p < P_DECLINE and theil_sen(window) * (POINTS - 1) <= level / 2:
                found.append((p, POINTS << width))
    return min(found)[1] if found else 0
