"""The statistics equal scipy and statsmodels where those have them, and keep their promises on simulated sweeps."""

import math
from functools import cache

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from altgrad.reports.rates import choose_rate, split_seeds
from altgrad.statistics.best import best_set, compare_with_best
from altgrad.statistics.distributions import critical_value, rank_correlation
from altgrad.statistics.intervals import MARGIN, Interval, common_correlation, decide, simultaneous, t_interval
from altgrad.statistics.power import decision_chance, equivalence_chance, needed_pairs, pairs_to_decide
from bench import verdicts

outcomes = cache(verdicts.outcomes)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_simultaneous_intervals_cover_93_to_97_percent_of_simulated_sweeps(n: int) -> None:
    assert 0.93 <= outcomes(n)["covered"] <= 0.97


@pytest.mark.parametrize("n", [5, 10, 20])
def test_a_benefit_that_is_not_there_is_found_in_at_most_5_percent(n: int) -> None:
    assert outcomes(n)["false benefit"] <= 0.05


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_best_format_is_in_its_set_in_at_least_95_percent(n: int) -> None:
    assert outcomes(n)["best kept"] >= 0.95


@pytest.mark.long
@pytest.mark.parametrize("n", [5, 10, 20])
def test_in_10_000_sweeps_coverage_holds_and_effects_just_short_of_the_margin_are_no_benefits(n: int) -> None:
    assert 0.93 <= verdicts.outcomes(n, 10_000)["covered"] <= 0.97
    assert verdicts.outcomes(n, 10_000, verdicts.NEARLY)["false benefit"] <= 0.05


@pytest.mark.parametrize(("sd", "formats"), [(0.005, 1), (0.01, 1), (0.01, 5)])
def test_no_practical_benefit_is_reached_at_true_0_with_the_planned_n(sd: float, formats: int) -> None:
    n, reached = verdicts.equivalence(sd, formats)
    assert reached >= 0.78
    assert equivalence_chance(n - 1, sd, formats=formats) < 0.8 <= equivalence_chance(n, sd, formats=formats)


def test_one_interval_is_that_of_scipy_and_statsmodels() -> None:
    values = np.random.default_rng(0).normal(0.01, 0.02, 9)
    found = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-12)
    assert simultaneous({"only": dict(enumerate(values))})["only"] == found


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize("n", [4, 9, 30])
def test_critical_values_of_independent_formats_are_sidaks(n: int, k: int) -> None:
    exact = stats.t.ppf((1 + 0.95 ** (1 / k)) / 2, n - 1)
    assert critical_value(n, k) == pytest.approx(exact, rel=0.025)
    one_sided = stats.t.ppf(0.95 ** (1 / k), n - 1)
    assert critical_value(n, k, one_sided=True) == pytest.approx(one_sided, rel=0.025)


def test_critical_values_of_many_pairs_are_those_of_the_normal_distribution() -> None:
    normal = stats.multivariate_normal(cov=np.full((4, 4), 0.5) + 0.5 * np.eye(4))
    c = critical_value(4000, 4, 0.5)
    assert normal.cdf(np.full(4, c), lower_limit=np.full(4, -c)) == pytest.approx(0.95, abs=0.004)


def test_the_two_ways_of_drawing_critical_values_agree() -> None:
    assert critical_value(6, 6, 0.5) == pytest.approx(critical_value(7, 6, 0.5), rel=0.15)
    assert critical_value(6, 5, 0.5) == pytest.approx(critical_value(6, 6, 0.5), rel=0.06)


def test_the_chance_of_a_decision_is_that_of_statsmodels_where_only_a_sign_can_be_found() -> None:
    power = TTestPower().power(effect_size=0.8, nobs=12, alpha=0.05)
    assert decision_chance(12, 0.05, mean=0.04, margin=1e-9) == pytest.approx(power, abs=1e-3)


def test_the_chance_of_no_practical_benefit_is_that_of_simulation() -> None:
    x = np.random.default_rng(3).normal(0.002, 0.01, (200_000, 12))
    half = stats.t.ppf(0.975, 11) * x.std(1, ddof=1) / math.sqrt(12)
    simulated = np.mean(np.abs(x.mean(1)) + half < MARGIN)
    assert equivalence_chance(12, 0.01, mean=0.002) == pytest.approx(simulated, abs=0.004)


def test_undecided_comparisons_can_always_be_decided_by_more_pairs_unless_noise_is_too_large() -> None:
    few, many = pairs_to_decide(0.03, 0.01), pairs_to_decide(0.004, 0.01)
    assert few is not None and many is not None and 2 < few < many
    assert pairs_to_decide(0.0, 0.01) == needed_pairs(0.01) or pairs_to_decide(0.0, 0.01) is not None
    assert needed_pairs(5.0) is None and needed_pairs(math.nan) is None and needed_pairs(0.0) == 2


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (0.01, 0.02, "above"), (-0.03, -0.01, "below"), (-0.0099, 0.0099, "inside"),
        (0.001, 0.009, "inside"), (0.001, 0.02, "direction only"), (-0.02, -0.001, "direction only"),
        (-0.01, 0.005, "undecided"), (0.0, 0.01, "undecided"),
    ],
)  # fmt: skip
def test_the_five_decisions_at_their_borders(low: float, high: float, decision: str) -> None:
    assert decide(Interval((low + high) / 2, 0.01, 5, low, high)) == decision


def test_one_pair_or_none_decides_nothing() -> None:
    found = simultaneous({"a": {0: 1.0}, "b": {}})
    assert found["a"].n == 1 and math.isinf(found["a"].high) and decide(found["a"]) == "undecided"
    assert found["b"].n == 0 and decide(found["b"]) == "undecided"


def test_equal_formats_are_both_best_and_a_lone_one_is() -> None:
    same = {0: 0.1, 1: 0.2, 2: 0.15}
    assert best_set({"a": same, "b": dict(same), "c": {s: v - 1 for s, v in same.items()}}) == ["a", "b"]
    assert best_set({"a": same}) == ["a"]
    assert all(each.may_be_best for each in compare_with_best({"a": {0: 1.0}, "b": {1: 0.0}}))


def test_correlation_is_that_of_numpy_and_needs_three_seeds() -> None:
    x = np.random.default_rng(0).standard_normal((9, 2))
    x[:, 1] += x[:, 0]
    assert common_correlation(x) == pytest.approx(np.corrcoef(x.T)[0, 1])
    assert common_correlation(x[:2]) == 0 and common_correlation(np.zeros((5, 3))) == 0
    assert rank_correlation(x[:, 0], x[:, 0])[0] == 1 and math.isnan(rank_correlation(x[:3, 0], x[:3, 1])[0])


@pytest.mark.parametrize("n", [4, 5, 6])
def test_the_chance_of_a_rank_correlation_is_that_of_all_orders(n: int) -> None:
    """With ties, too; equal orders of four points come about by chance in 2 of 24 cases, not in none."""
    x, y = np.random.default_rng(n).integers(0, n, (2, n)).astype(float)
    for other in (x, y):
        asked = stats.permutation_test(
            (other,), lambda v: abs(stats.spearmanr(x, v).statistic), permutation_type="pairings", alternative="greater"
        )
        rho, p = rank_correlation(x, other)
        assert (abs(rho), p) == pytest.approx((asked.statistic, asked.pvalue))
    orders = np.arange(float(n))
    assert rank_correlation(orders, orders) == pytest.approx((1, 2 / math.factorial(n)))
    assert rank_correlation(np.arange(12.0), np.arange(12.0))[1] == pytest.approx(2 / math.factorial(12))


def test_the_learning_rate_is_the_best_mean_over_tuning_seeds_and_says_when_it_is_on_the_edge() -> None:
    losses = {1e-3: {0: 3.0, 1: 3.0}, 3e-3: {0: 2.0, 1: 2.4, 9: 0.0}, 1e-2: {0: 1.0}}
    chosen = choose_rate(losses, {0, 1})
    assert chosen is not None and (chosen.rate, chosen.loss, chosen.n, chosen.edge) == (3e-3, 2.2, 2, "high")
    assert chosen.rates == (1e-3, 3e-3)
    wide = {**losses, 1e-2: {0: 5.0, 1: 5.0}}
    assert (choice := choose_rate(wide, {0, 1})) is not None and choice.edge == ""
    assert (single := choose_rate({1e-3: {4: 1.0}}, {4})) is not None and single.edge == "only"
    assert choose_rate(losses, {5}) is None


def test_tuning_seeds_are_those_that_ran_at_every_rate() -> None:
    grid = {rate: dict.fromkeys((0, 1, 2), 1.0) for rate in (1e-4, 3e-4, 1e-3, 3e-3)}
    grid[1e-3] |= dict.fromkeys((10, 11, 12), 1.0)
    assert split_seeds([grid, grid]) == ({0, 1, 2}, {10, 11, 12})
    assert split_seeds([{1e-3: {0: 1.0, 1: 1.0}}]) == ({0, 1}, set())
    assert split_seeds([]) == (set(), set())
