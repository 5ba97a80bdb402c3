"""The verdict on arms: statsmodels' p-values, the words at their borders, one seed, and diverged runs."""

import math

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import Comparison, Family, judge

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
    assert found.sentence == (
        f"Compared with bf16, mx is better (−{-found.arms['mx'].interval.mean:.4f} nats); "
        f"fp8 is worse (+{together.interval.mean:.4f} nats); same is equivalent within 0.01 nats."
    )
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
