"""Claims about the number of pairs, against scipy's distributions."""

import math

import pytest
from scipy import stats

from altgrad.sweeps.power import MOST, chi_square_quantile, need, pairs_needed, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 10, 33, 200])
def test_quantiles_are_scipys(degrees: int) -> None:
    for share in (0.6, 0.8, 0.9, 0.975, 0.995, 0.999):
        assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), rel=1e-5)
    assert chi_square_quantile(0.1, degrees) == pytest.approx(stats.chi2.ppf(0.1, degrees), rel=1e-4)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_that_many_pairs_have_the_power_by_the_noncentral_t(ratio: float) -> None:
    def power(n: int) -> float:
        shift, edge = math.sqrt(n) / ratio, stats.t.ppf(0.975, n - 1)
        return float(stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift))

    n = pairs_needed(ratio)
    assert power(n) > 0.77 and (n <= 4 or power(n - 2) < 0.82)


def test_the_figures_that_the_study_was_planned_with() -> None:
    assert [pairs_needed(sd / 0.01) for sd in (0.005, 0.01, 0.02)] == pytest.approx([4, 10, 36], abs=2)
    assert [pairs_needed(sd / 0.01, 0.05 / 8) for sd in (0.005, 0.01, 0.02)] == pytest.approx([7, 18, 61], abs=7)
    assert pairs_needed(1e6) == MOST and pairs_needed(0.0) == 2


def test_cells_are_pooled_about_their_own_means() -> None:
    found = need("a", "b", [[1.0, 1.2, 0.8], [5.0, 5.2, 4.8]], 0.2)
    assert found.pairs == 6 and found.mean == pytest.approx(3.0) and found.deviation == pytest.approx(0.2)
    assert found.needed == pairs_needed(1.0) < found.at_worst
    with pytest.raises(ValueError, match="a spread takes 2 of one cell"):
        need("a", "b", [[1.0]], 0.2)
    with pytest.raises(ValueError, match="margin is 0"):
        need("a", "b", [[1.0, 2.0]], 0)
