"""Claims about the number of pairs, against scipy's and statsmodels' distributions."""

import math

import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from altgrad.statistics.distributions import chi_square_quantile, student_cdf, student_quantile
from altgrad.statistics.power import DETECTION_CAP, pairs_for_margin, pairs_to_detect


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 10, 33, 200, 100_000])
def test_quantiles_are_scipys(degrees: int) -> None:
    for share in (0.6, 0.8, 0.9, 0.975, 0.995, 0.999):
        assert student_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-12)
        assert student_cdf(student_quantile(share, degrees), degrees) == pytest.approx(share, rel=1e-9)
    assert chi_square_quantile(0.1, degrees) == pytest.approx(stats.chi2.ppf(0.1, degrees), rel=1e-12)


@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 8])
def test_pairs_are_the_least_that_the_planning_formula_allows(level: float) -> None:
    """n >= (t(1 - a/2, n - 1) + t(p, n - 1))^2 (sd / d)^2, by scipy's quantiles."""

    def enough(n: int, ratio: float) -> bool:
        return bool(n >= (stats.t.ppf((1 + level) / 2, n - 1) + stats.t.ppf(0.8, n - 1)) ** 2 * ratio**2)

    for ratio in (0.05, 0.11, 0.2, 0.31, 0.5, 0.77, 1.0, 1.5, 2.0, 3.3, 5.0, 12.0):
        n = pairs_to_detect(ratio, level)
        assert enough(n, ratio) and (n == 2 or not enough(n - 1, ratio))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_that_many_pairs_have_the_power_by_the_noncentral_t(ratio: float) -> None:
    def power(n: int) -> float:
        return float(TTestPower().power(effect_size=1 / ratio, nobs=n, alpha=0.05))

    n = pairs_to_detect(ratio)
    assert power(n) > 0.77 and (n <= 4 or power(n - 2) < 0.82)


def test_the_figures_that_the_study_was_planned_with() -> None:
    assert [pairs_to_detect(sd / 0.01) for sd in (0.005, 0.01, 0.02)] == pytest.approx([4, 10, 36], abs=2)
    assert [pairs_to_detect(sd / 0.01, 1 - 0.05 / 8) for sd in (0.005, 0.01, 0.02)] == pytest.approx([7, 18, 61], abs=7)
    assert pairs_to_detect(1e6) == DETECTION_CAP and pairs_to_detect(0.0) == 2


def test_cells_are_pooled_about_their_own_means() -> None:
    found = pairs_for_margin("a", "b", [[1.0, 1.2, 0.8], [5.0, 5.2, 4.8]], 0.2)
    assert found.pairs == 6 and found.mean == pytest.approx(3.0) and found.deviation == pytest.approx(0.2)
    worst = 0.2 * math.sqrt(4 / stats.chi2.ppf(0.1, 4))
    assert found.needed == pairs_to_detect(1.0) < found.at_worst == pairs_to_detect(worst / 0.2)
    with pytest.raises(ValueError, match="a spread takes 2 of one cell"):
        pairs_for_margin("a", "b", [[1.0]], 0.2)
    with pytest.raises(ValueError, match="margin is 0"):
        pairs_for_margin("a", "b", [[1.0, 2.0]], 0)
