"""Claims about trends, against scipy; about the rank alarm, on planted collapses and on healthy series."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from altgrad.measures.trend import POINTS, RankTrend, RankVerdict, hamed_rao, mann_kendall, observe_rank, theil_sen


def series() -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    return {
        "noise": rng.standard_normal(30).tolist(),
        "decline": (rng.standard_normal(20) - 0.2 * np.arange(20)).tolist(),
        "ties": rng.integers(0, 4, 25).astype(float).tolist(),
        "tiny": (1e-13 * rng.standard_normal(12)).tolist(),
        "three": [2.0, 1.0, 1.5],
    }


@pytest.mark.parametrize("case", list(series()))
def test_mann_kendall_is_kendalls_tau_against_time(case: str) -> None:
    """scipy's asymptotic p has no continuity correction, so S and its variance are what is compared."""
    x = series()[case]
    n = len(x)
    tau = stats.kendalltau(np.arange(n), x, method="asymptotic")
    ties = sum(t * (t - 1) // 2 for t in np.unique(x, return_counts=True)[1])
    pairs = n * (n - 1) / 2
    s = round(float(tau.statistic) * math.sqrt(pairs * (pairs - ties)))
    deviation = abs(s) / stats.norm.isf(tau.pvalue / 2)
    z, p = mann_kendall(x)
    assert z == pytest.approx((s - math.copysign(1, s)) / deviation, rel=1e-6, abs=1e-9)
    assert p == pytest.approx(stats.norm.cdf(z), rel=1e-9)


@pytest.mark.parametrize("case", list(series()))
def test_theil_sen_is_scipys(case: str) -> None:
    assert theil_sen(series()[case]) == pytest.approx(stats.theilslopes(series()[case]).slope, rel=1e-12)


def test_edges_of_both() -> None:
    assert mann_kendall([3.0] * 5) == (0, 0.5) and theil_sen([3.0] * 5) == 0
    for nothing in ([], [1.0], [1.0, math.nan, 2.0], [1.0, math.inf]):
        assert all(map(math.isnan, (*mann_kendall(nothing), theil_sen(nothing))))
    assert mann_kendall([3.0, 2.0, 1.0])[1] < 0.5 < mann_kendall([1.0, 2.0, 3.0])[1]


def verdicts(ranks: np.ndarray, twins: np.ndarray | None = None, drop: float = 0.2) -> list[RankVerdict]:
    trend, found = RankTrend(), []
    for number, rank in enumerate(ranks.tolist()):
        trend, verdict = observe_rank(trend, rank, None if twins is None else float(twins[number]), drop=drop)
        found.append(verdict)
    return found


def first_raised(found: list[RankVerdict]) -> float:
    return next((number for number, verdict in enumerate(found) if verdict.raised), math.inf)


def collapse(length: int, before: int) -> np.ndarray:
    """Rank 10, then 10 -> 1 in a straight line over `length` observations."""
    return 10 - 9 * np.clip(np.arange(before + length) - before + 1, 0, None) / length


def correlated(rng: np.random.Generator, size: int, rho: float, deviation: float) -> np.ndarray:
    """Noise of an autoregression of the first order, with this standard deviation."""
    x = rng.standard_normal(size)
    for i in range(1, size):
        x[i] = rho * x[i - 1] + math.sqrt(1 - rho * rho) * x[i]
    return deviation * x


@pytest.mark.parametrize("length", [10, 12, 16, 20, 32, 50, 100, 333, 1000, 3000])
@pytest.mark.parametrize("before", [8, 11, 40, 500])
@pytest.mark.parametrize("drop", [0.1, 0.2])
def test_a_collapse_raises_the_alarm_before_half_of_it_is_done(length: int, before: int, drop: float) -> None:
    ranks = collapse(length, before)
    healthy = np.full(len(ranks), 10.0)
    found = verdicts(ranks, healthy, drop)
    assert before <= first_raised(found) < before + length / 2
    assert not any(verdict.raised for verdict in found[:before])
    assert found[-1].drop == pytest.approx(1 - np.median(ranks[-3:]) / 10)


@pytest.mark.parametrize("length", [16, 32, 100, 1000])
@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_so_it_does_among_noise_beside_a_twin_that_falls_too(length: int, noise: float) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        ranks = collapse(length, 30)
        twins = 40 * np.exp(-1.5 * np.arange(len(ranks)) / len(ranks))
        own = ranks / 10 * twins * np.exp(noise * rng.standard_normal(len(ranks)))
        assert 30 <= first_raised(verdicts(own, twins)) < 30 + length / 2, seed


@pytest.mark.parametrize(
    ("rho", "deviation", "drop", "limit"),
    [
        (0, 0.1, 0.2, 10),
        (0.9, 0.05, 0.2, 10),
        (0.9, 0.1, 0.2, 20),
        (0, 0.1, 0.1, 10),
        (0.9, 0.05, 0.1, 20),
        (0.9, 0.1, 0.1, 100),
    ],
)
def test_healthy_series_raise_fewer_than_one_in_a_hundred(
    rho: float, deviation: float, drop: float, limit: int
) -> None:
    """A rank that loses 79 % beside a twin that loses as much, for 10 seeds of 1,000 observations."""
    raised = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        twins = 60 * np.exp(math.log(0.21) * np.arange(1000) / 1000)
        raised += sum(v.raised for v in verdicts(twins * np.exp(correlated(rng, 1000, rho, deviation)), twins, drop))
    assert raised < limit


@pytest.mark.parametrize("length", [32, 100, 1000])
@pytest.mark.parametrize("swing", [0.2, 0.6])
def test_a_collapse_after_swings_is_still_seen_before_half_of_it_is_done(length: int, swing: float) -> None:
    """The rank has been down by half of `swing` and up again, so the next time it must fall farther to be new."""
    steps = np.arange(400)
    ranks = collapse(length, 400)
    ranks[:400] *= np.exp(-swing / 2 * np.sin(2 * np.pi * steps / 200))
    found = verdicts(ranks, np.full(len(ranks), 10.0))
    late = [number for number, verdict in enumerate(found) if verdict.raised and number >= 400]
    assert late[0] < 400 + length / 2
    assert found[late[0]].drop > 1 - math.exp(-min(swing, 0.5))


def test_what_came_back_raises_nothing_until_it_is_farther_than_it_came_back() -> None:
    level = np.concatenate(
        [np.zeros(20), np.linspace(0, -0.4, 20), np.linspace(-0.4, 0, 20), np.linspace(0, -0.45, 40)]
    )
    found = verdicts(10 * np.exp(level), np.full(len(level), 10.0))
    raised = [number for number, verdict in enumerate(found) if verdict.raised]
    assert 20 < raised[0] < 40 and not any(42 <= number < 90 for number in raised) and raised[-1] >= 90


def test_a_level_that_was_low_from_the_first_raises_nothing() -> None:
    rng = np.random.default_rng(1)
    found = verdicts(5 * np.exp(0.02 * rng.standard_normal(500)), np.full(500, 10.0))
    assert not any(verdict.raised for verdict in found)
    assert found[-1].drop == pytest.approx(0.5, abs=0.05)


def test_without_a_twin_it_is_a_notice_against_the_runs_own_median() -> None:
    ranks = np.concatenate([[50.0, 30.0, 20.0], collapse(100, 30)])
    found = verdicts(ranks)
    assert 33 <= first_raised(found) < 33 + 50
    assert not any(verdict.certain for verdict in found)
    assert found[-1].drop == pytest.approx(1 - np.median(ranks[-3:]) / 10)
    assert all(math.isnan(verdict.drop) for verdict in found[: POINTS - 1])


def test_the_runs_own_median_is_that_of_observations_4_to_8() -> None:
    ranks = np.array([50.0, 30, 20, 10, 9, 8, 7, 6, 8, 8, 8])
    assert verdicts(ranks)[-1].drop == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("twinned", [True, False])
def test_an_observation_without_a_rank_is_none(twinned: bool) -> None:
    ranks = collapse(40, 20)
    beside = np.full(len(ranks), 10.0)
    expected = verdicts(ranks, beside if twinned else None)
    trend, found = RankTrend(), []
    for rank in ranks.tolist():
        for hole in (math.nan, 0.0, math.inf, -1.0):
            same, verdict = observe_rank(trend, hole, 10.0 if twinned else None)
            assert same == trend and not verdict.raised and math.isnan(verdict.drop)
        if twinned:
            assert observe_rank(trend, rank, math.nan)[0] == trend
        trend, verdict = observe_rank(trend, rank, 10.0 if twinned else None)
        found.append(verdict)
    assert found[POINTS:] == expected[POINTS:]


@pytest.mark.parametrize("factor", [1e-13, 1e13])
def test_a_common_factor_of_rank_and_twin_does_not_matter(factor: float) -> None:
    ranks, twins = collapse(64, 20), np.full(84, 10.0)
    assert first_raised(verdicts(ranks * factor, twins * factor)) == first_raised(verdicts(ranks, twins))


def test_the_state_is_json_and_small_for_a_run_of_any_length() -> None:
    ranks = collapse(200, 4000)
    trend = RankTrend()
    for rank in ranks[:4100].tolist():
        trend, _ = observe_rank(trend, rank, 10.0)
    text = json.dumps(dataclasses.asdict(trend))
    restored = RankTrend(**json.loads(text))
    assert sum(map(len, trend.windows)) <= POINTS * (math.ceil(math.log2(4100)) + 1)
    for rank in ranks[4100:].tolist():
        trend, verdict = observe_rank(trend, rank, 10.0)
        restored, again = observe_rank(restored, rank, 10.0)
        assert verdict == again and trend == restored


def test_mistakes_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="drop=20; the fall that matters is a share between 0 and 1."):
        observe_rank(RankTrend(), 1.0, drop=20)
    trend, _ = observe_rank(RankTrend(), 1.0, 1.0)
    with pytest.raises(ValueError, match="give nan where it was not measured."):
        observe_rank(trend, 1.0)


def test_hamed_rao_is_its_formula_and_allows_for_correlation() -> None:
    """Against the formula in NumPy and SciPy's ranks; and p < 0.05 for a trendless autoregression, rho = 0.5."""
    generator = np.random.default_rng(0)
    wrong = {"independent": 0, "corrected": 0}
    for number in range(150):
        x = generator.standard_normal(60)
        for t in range(1, 60):
            x[t] += 0.5 * x[t - 1]
        z, p = hamed_rao(x.tolist())
        if number < 5:
            n = len(x)
            ranks = stats.rankdata(x - stats.theilslopes(x).slope * np.arange(n))
            centred = ranks - ranks.mean()
            r = np.array([(centred[: n - k] * centred[k:]).sum() for k in range(n)]) / (centred**2).sum()
            k = np.arange(1, n - 2)
            kept = np.where(np.abs(r[k]) > 1.96 / np.sqrt(n), r[k], 0)
            factor = 1 + 2 / (n * (n - 1) * (n - 2)) * ((n - k) * (n - k - 1) * (n - k - 2) * kept).sum()
            assert z == pytest.approx(mann_kendall(x.tolist())[0] / math.sqrt(factor), rel=1e-9)
        wrong["corrected"] += p < 0.05
        wrong["independent"] += mann_kendall(x.tolist())[1] < 0.05
    assert wrong["independent"] > wrong["corrected"] + 5 and wrong["independent"] > 20
    assert all(map(math.isnan, hamed_rao([1.0] * 9))) and hamed_rao([2.0] * 12) == (0, 0.5)
