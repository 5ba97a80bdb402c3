"""The few distributions that the statistics need, from scipy; the one file here that imports it.

    critical_value(n, k, r)    c with P(max over k of |t_j| <= c) = level, for k t statistics of n paired observations
                               each, whose observations correlate with r
    one_sided=True             the same for max of t_j: comparisons with the best (Hsu, Edwards 1983)

The k statistics have k *different* standard deviations, so their joint law is not scipy's multivariate t (which has one
common denominator); it is simulated, with fixed draws, from the sufficient statistics: means N(0, R / n) and sample
covariances Wishart(R, n - 1) by Bartlett's decomposition (by the observations themselves where n <= k). R has one
correlation for all pairs. The road not taken, a correlation for each pair, would have to be estimated from a handful of
seeds; on six structures of correlation between 4 and 8 formats the simpler rule covered 93.8 to 96.6 % at n = 5 to 20.
The general method is Hothorn, Bretz and Westfall 2008 (Biometrical Journal 50).
"""

import math
from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 30_000
MOST = 32
"""Beyond so many statistics their correlation is taken for 0, which has a formula (Sidak 1967): a draw costs k^2, and
the value is larger by 1 % at most. Positive correlation only adds coverage."""
EXACT = 8
"""Up to so many points every order is tried: 40,320 of them."""
_STEP = 0.1


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t with `degrees` >= 1 degrees of freedom."""
    from scipy import special

    return float(special.stdtrit(degrees, probability))


def student_cdf(x: float, degrees: int) -> float:
    """The distribution function of Student's t."""
    from scipy import special

    return float(special.stdtr(degrees, x))


def chi_square_quantile(probability: float, degrees: int) -> float:
    """The quantile of chi-square with `degrees` >= 1 degrees of freedom."""
    from scipy import stats

    return float(stats.chi2.ppf(probability, degrees))


def normal_cdf(x: Array) -> Array:
    """The standard normal distribution function."""
    from scipy import special

    return np.asarray(special.ndtr(x), dtype=np.float64)


def sd_quantiles(n: int, points: int = 801) -> Array:
    """Sample standard deviations of n >= 2 normal observations with sd 1, at evenly spaced probabilities."""
    from scipy import stats

    return np.asarray(np.sqrt(stats.chi2.ppf((np.arange(points) + 0.5) / points, n - 1) / (n - 1)), dtype=np.float64)


def rank_correlation(x: Array, y: Array) -> tuple[float, float]:
    """Spearman's rho and its two-sided p; (nan, nan) for fewer than 4 points or a constant side.

    Up to 8 points p is the share of all orders whose |rho| is as large: the approximation by t, which is taken from
    there on, gives 0 for equal orders of 4 points, where 2 of 24 are as extreme. It is never taken below 2 / n!.
    """
    from scipy import stats

    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    found = stats.spearmanr(x, y)
    if n > EXACT:
        return float(found.statistic), max(float(found.pvalue), 2 / math.factorial(n))
    ranks, others = stats.rankdata(x) - (n + 1) / 2, stats.rankdata(y) - (n + 1) / 2
    products = others[np.array(list(permutations(range(n))))] @ ranks
    return float(found.statistic), float(np.mean(np.abs(products) >= abs(others @ ranks) - 1e-9))


def critical_value(n: int, k: int, correlation: float = 0.0, level: float = 0.95, *, one_sided: bool = False) -> float:
    """See the head of the file; inf for n < 2. `correlation` is cut to [0, 0.95] and rounded down to a tenth."""
    assert k >= 1
    if n < 2:
        return float("inf")
    share = level if one_sided else (1 + level) / 2
    if k == 1:
        return student_quantile(share, n - 1)
    if k > MOST:
        return student_quantile(level ** (1 / k) if one_sided else (1 + level ** (1 / k)) / 2, n - 1)
    r = float(np.floor(min(max(correlation, 0.0), 0.95) / _STEP + 1e-9) * _STEP)
    return _simulated(n, k, round(r, 2), level, one_sided)


@lru_cache(maxsize=4096)
def _simulated(n: int, k: int, r: float, level: float, one_sided: bool) -> float:
    generator = np.random.Generator(np.random.PCG64(20_070_703))
    statistics = _by_observation(generator, n, k, r) if n <= k else _by_wishart(generator, n, k, r)
    if one_sided:  # the law is symmetric: each draw serves twice
        return float(np.quantile(np.concatenate([statistics.max(1), -statistics.min(1)]), level))
    return float(np.quantile(np.abs(statistics).max(1), level))


def _by_observation(generator: np.random.Generator, n: int, k: int, r: float) -> Array:
    """t statistics [DRAWS, k] from the observations."""
    parts = []
    for _ in range(4):
        common = generator.standard_normal((DRAWS // 4, n, 1))
        x = np.sqrt(r) * common + np.sqrt(1 - r) * generator.standard_normal((DRAWS // 4, n, k))
        parts.append(x.mean(1) / x.std(1, ddof=1) * np.sqrt(n))
    return np.concatenate(parts)


def _by_wishart(generator: np.random.Generator, n: int, k: int, r: float) -> Array:
    """t statistics [DRAWS, k] from means and sample variances."""
    root = np.linalg.cholesky(np.full((k, k), r) + (1 - r) * np.eye(k))
    means = generator.standard_normal((DRAWS, k)) @ root.T
    lower = np.tril(generator.standard_normal((DRAWS, k, k)), -1)
    lower[:, range(k), range(k)] = np.sqrt(generator.chisquare(n - 1 - np.arange(k), (DRAWS, k)))
    variances = np.square(root @ lower).sum(2) / (n - 1)
    return np.asarray(means / np.sqrt(variances), dtype=np.float64)
