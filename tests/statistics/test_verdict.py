"""The verdict on arms: statsmodels' p-values, the words at their borders, one seed, and diverged runs."""

import math
import re
from collections.abc import Iterable

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import Comparison, Family, judge
from altgrad.statistics.window import window_band
from bench import verdicts

REFERENCE = {seed: 2.3 + 0.01 * math.sin(seed) for seed in range(8)}


def shifted(by: float, spread: float = 0.003, seeds: int = 8) -> dict[int, float]:
    """The reference's losses moved by `by`, with a spread of its own."""
    return {seed: value + by + spread * math.cos(5 * seed) for seed, value in list(REFERENCE.items())[:seeds]}


@pytest.mark.parametrize("n", [2, 3, 7, 16])
def test_p_values_are_those_of_statsmodels(n: int) -> None:
    random = np.random.default_rng(n)
    first, second = random.normal(2.3, 0.02, (2, n))
    arm = judge({"a": dict(enumerate(first)), "b": dict(enumerate(second))}, "a").judged[0]
    expected = DescrStatsW(second - first)
    assert arm.p_zero == pytest.approx(expected.ttest_mean(0)[1], rel=1e-10)
    assert arm.p_equivalent == pytest.approx(expected.ttost_mean(-MARGIN, MARGIN)[0], rel=1e-10)
    assert arm.p_equivalent == pytest.approx(ttost_paired(second, first, -MARGIN, MARGIN)[0], rel=1e-10)
    assert (arm.interval.low, arm.interval.high) == pytest.approx(expected.tconfint_mean(0.05), rel=1e-10)


def test_of_one_arm_the_verdict_and_both_p_values_say_the_same() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for effect in np.repeat([0.0, 0.003, 0.012, 0.03, -0.03], 60):
        pairs = {s: effect + d for s, d in enumerate(random.normal(0, 0.01, 6))}
        arm = judge({"a": dict.fromkeys(pairs, 0.0), "b": pairs}, "a").judged[0]
        seen.add(arm.verdict)
        assert (arm.p_equivalent < 0.025) == (arm.verdict == "equivalent")
        assert (arm.p_zero < 0.05) or arm.verdict in ("undecided", "equivalent")
    assert seen == {"better", "worse", "equivalent", "direction only", "undecided"}


def test_arms_of_a_family_are_judged_together_and_each_has_its_word() -> None:
    arms = {"bf16": REFERENCE, "fp8": shifted(0.05), "mx": shifted(-0.05), "same": shifted(0.0, 0.001)}
    found = judge(arms, "bf16")
    assert [arm.verdict for arm in found.arms.values()] == ["reference", "worse", "better", "equivalent"]
    alone = judge({"bf16": REFERENCE, "fp8": shifted(0.05)}, "bf16").arms["fp8"]
    together = found.arms["fp8"]
    assert together.interval.high > alone.interval.high and together.bonferroni.high > together.interval.high
    assert alone.bonferroni == alone.interval
    size = r"[+−]0\.\d{4} \[[+−]0\.\d{4}, [+−]0\.\d{4}\]"
    said = f"Compared with bf16, in nats: fp8 is worse, {size}; mx is better, {size}; same is equivalent, {size}\\."
    assert re.fullmatch(said, found.sentence)
    assert judge(arms, "bf16", better="higher").arms["fp8"].verdict == "better"


def sentence(low: float, high: float, margin: float = MARGIN) -> str:
    """The sentence of two seeds whose interval is [low, high]."""
    half = (high - low) / 2 / 12.7062047364
    middle = (low + high) / 2
    return judge({"a": {0: 0.0, 1: 0.0}, "b": {0: middle + half, 1: middle - half}}, "a", margin=margin).sentence


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.02, 0.04, "b is worse than a: +0.0300 nats [+0.0200, +0.0400], 2 seeds."),
        (-0.04, -0.02, "b is better than a: −0.0300 nats [−0.0400, −0.0200], 2 seeds."),
        (-0.005, 0.007, "b is equivalent to a within 0.01 nats: +0.0010 nats [−0.0050, +0.0070], 2 seeds."),
        (0.002, 0.014, "b is higher than a (+0.0080 nats [+0.0020, +0.0140], 2 seeds), but whether by 0.01 nats or "
                       "more is undecided."),
    ],
)  # fmt: skip
def test_the_sentence_of_two_arms(low: float, high: float, said: str) -> None:
    assert sentence(low, high) == said


def test_an_undecided_arm_says_how_many_more_seeds() -> None:
    found = judge({"a": REFERENCE, "b": shifted(0.006, 0.02)}, "a")
    (arm,) = found.judged
    assert arm.verdict == "undecided" and arm.is_open and arm.more_seeds and arm.more_seeds > 0
    assert found.sentence.endswith(f"8 seeds; about {arm.more_seeds} more seeds would decide.")
    hopeless = judge({"a": REFERENCE, "b": {s: v + 50 * (-1) ** s for s, v in REFERENCE.items()}}, "a")
    assert hopeless.judged[0].more_seeds is None and "within reach" in hopeless.sentence


def test_one_seed_is_never_a_verdict_whatever_the_difference() -> None:
    for size in (0.0, 1e-9, 5.0, 1e9):
        found = judge({"a": {0: 1.0}, "b": {0: 1.0 + size}}, "a")
        (arm,) = found.judged
        assert arm.verdict == "one seed" == arm.bonferroni_verdict and arm.more_seeds == 7
        assert math.isnan(arm.p_zero) and found.sentence.startswith("Undecided: one seed an arm")
    apart = judge({"a": {0: 1.0, 1: 1.0}, "b": {2: 3.0, 3: 3.0}}, "a")
    assert apart.judged[0].verdict == "no seed in common" and apart.sentence.startswith("Undecided")


def test_a_diverged_run_counts_and_leaves_the_arm_open_where_its_loss_is_not_known() -> None:
    known = judge({"a": REFERENCE, "b": shifted(1.0) | {0: math.log(256)}}, "a", diverged={"b": [0]})
    assert known.arms["b"].verdict == "worse" and known.arms["b"].diverged == 1 and known.arms["b"].interval.n == 8
    unknown = judge({"a": REFERENCE, "b": shifted(0.0, 0.001) | {0: math.nan}}, "a", diverged={"b": [0]})
    (arm,) = unknown.judged
    assert (
        arm.verdict == "undecided"
        and arm.more_seeds is None
        and (arm.runs, arm.unnumbered, arm.interval.n) == (8, 1, 7)
    )
    assert unknown.sentence == (
        "Undecided: 1 of 8 runs of b diverged and 0 of 8 of a, and what that costs is not known."
    )


def test_arms_whose_runs_all_diverged_are_not_called_equivalent() -> None:
    fell = dict.fromkeys(range(5), math.log(256))
    both = judge({"a": fell, "b": fell}, "a", diverged={"a": fell, "b": fell})
    assert both.arms["b"].verdict == "undecided" and both.sentence == "Every run diverged, 5 of b and 5 of a."
    three = judge({"a": fell, "b": fell, "c": fell}, "a", diverged={name: list(fell) for name in "abc"})
    assert three.sentence == "All 15 runs of 3 arms diverged."
    one = judge({"a": REFERENCE, "b": fell}, "a", diverged={"b": fell})
    assert one.arms["b"].verdict == "worse" and one.arms["b"].diverged == 5


def test_of_many_arms_the_sentence_counts_verdicts_and_gives_the_interval_of_the_one_ahead() -> None:
    interval = r"[+−]0\.\d{4} nats \[[+−]0\.\d{4}, [+−]0\.\d{4}\]"
    worse = {"a": REFERENCE} | {f"b{i}": shifted(0.5 + i, 0.001) for i in range(9)}
    said = rf"Of 9 arms compared with a, none is better and 9 are worse; the lowest is b0, {interval}\."
    assert re.fullmatch(said, judge(worse, "a").sentence)
    mixed = worse | {"c": shifted(-0.05, 0.001), "d": shifted(-0.04, 0.001), "e": shifted(0.004, 0.02)}
    said = (
        r"Of 12 arms compared with a, 2 are better, 9 worse and 1 undecided \(about \d+ more seeds would decide\); "
        rf"furthest ahead is c, {interval}\."
    )
    assert re.fullmatch(said, judge(mixed, "a").sentence)
    assert "1 is worse" not in judge(worse, "b8").sentence and "9 are better" in judge(worse, "b8").sentence
    assert "furthest ahead is b8" in judge(worse, "a", better="higher").sentence


def test_of_several_arms_with_one_seed_each_the_sentence_decides_nothing() -> None:
    single = judge({"a": {0: 1.0}} | {f"b{i}": {0: 1.0 + i} for i in range(9)}, "a").sentence
    assert single == (
        "Undecided: one seed an arm cannot decide between a and b0 (+0.0000), b1 (+1.0000), b2 (+2.0000) and 6 more, "
        "in nats; about 7 more seeds would show how far runs differ by chance."
    )
    apart = judge({"a": {0: 1.0}, "b": {1: 1.0}, "c": {1: 1.0}}, "a").sentence
    assert apart == "Undecided: none of 2 arms has a seed in common with a."
    some = judge({"a": REFERENCE, "b": {0: 3.0}, "c": shifted(0.5)}, "a").sentence
    assert re.search(r"b has one seed, [+−]\d\.\d{4}; c is worse, ", some)


def test_few_seeds_of_many_arms_say_where_bonferronis_interval_would_not_decide() -> None:
    arms = {"a": REFERENCE} | {f"b{i}": shifted(0.0182 + i / 1e5, 0.009) for i in range(8)}
    fragile = [arm.is_fragile for arm in judge(arms, "a", margin=0.01).judged]
    assert any(fragile) and not judge({"a": REFERENCE, "b": shifted(0.05)}, "a").arms["b"].is_fragile


def test_a_family_without_pairs_has_nothing_to_say() -> None:
    family = Family({"a": {}, "b": {0: 1.0}})
    assert family.size == 0 and family.correlation == 0 and family.pairs_needed("b") is None
    assert family.decision("a") == family.decision("b") == "undecided"


def test_what_cannot_be_judged_is_said() -> None:
    with pytest.raises(ValueError, match="reference is 'x'; the arms are a"):
        judge({"a": {0: 1.0}}, "x")
    with pytest.raises(ValueError, match="margin is 0; it must be above 0"):
        judge({"a": {0: 1.0}}, "a", margin=0)
    assert isinstance(judge({"a": {0: 1.0}}, "a"), Comparison)


def check_errors(noise: str, arms: int, seeds: Iterable[int]) -> None:
    """Wrong decisions at every null's boundary stay within what is stated and three Monte Carlo standard errors."""
    for n in seeds:
        for null, share in verdicts.errors(n, arms, noise).items():
            limit = 0.05 if null == "a sign at 0" or arms > 1 else 0.025
            assert share <= limit + 3 * math.sqrt(limit * (1 - limit) / verdicts.STUDIES), (n, null)


@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize("noise", ["gaussian", "t5"])
def test_over_10_000_studies_a_null_at_its_boundary_is_rejected_in_5_percent_at_most(noise: str, arms: int) -> None:
    check_errors(noise, arms, (2, 5, 16))


@pytest.mark.long
@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize("noise", ["gaussian", "t5"])
def test_the_same_for_every_number_of_seeds_from_2_to_16(noise: str, arms: int) -> None:
    check_errors(noise, arms, range(2, 17))


@pytest.mark.parametrize(
    ("n", "arms"), [(3, 3), *(pytest.param(*each, marks=pytest.mark.long) for each in ((2, 1), (9, 3)))]
)
def test_the_simulated_studies_are_judged_as_judge_does(n: int, arms: int) -> None:
    differences = verdicts.studies(n, arms, "t5", 40)
    low, high = verdicts.bounds(differences)
    for number, study in enumerate(differences):
        made = {"a": dict.fromkeys(range(n), 2.0)} | {f"b{i}": dict(enumerate(2 + study[:, i])) for i in range(arms)}
        found = [arm.interval for arm in judge(made, "a").judged]
        assert [each.low for each in found] == pytest.approx(low[number], abs=1e-12)
        assert [each.high for each in found] == pytest.approx(high[number], abs=1e-12)


@pytest.mark.parametrize(("points", "persistence"), [(50, 0.0), (50, 0.8), (100, 0.9), (300, 0.95)])
def test_the_band_of_one_pair_of_curves_is_false_in_about_5_percent(points: int, persistence: float) -> None:
    given, wrong = verdicts.window_errors(points, persistence, 1000)
    assert given > 0.3 and wrong <= 0.075


def test_a_curve_worth_few_points_or_with_gaps_has_no_band() -> None:
    steps, wave = np.arange(200.0), np.sin(np.arange(200) / 60)
    noise = np.random.default_rng(0).standard_normal(200)
    assert window_band(steps, wave, "x") is None and window_band(steps[:30], noise[:30], "x") is None
    assert window_band(steps, np.where(steps == 150, math.nan, noise), "x") is None
    band, constant = window_band(steps, noise + 3, "x"), window_band(steps, np.ones(200), "x")
    assert band is not None and band.differs and (band.first, band.last) == (100, 199)
    assert constant is not None and constant.low == pytest.approx(1) == constant.high
