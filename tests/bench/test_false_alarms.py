"""Claims about bench.false_alarms: its runs are the quickstart's, and it counts what is there to count."""

from collections import Counter

import pytest

from altgrad.training import RunSpec
from bench.false_alarms import ARMS, CADENCES, ROOT, SEEDS, STEPS, Looked, monitors, planned, rank_alarms, report


@pytest.mark.parametrize("arm", ["twin", *ARMS])
def test_every_run_is_the_quickstart_in_another_precision(arm: str) -> None:
    quickstart = RunSpec.load(ROOT / "matrices" / "quickstart.yaml")
    names = {planned(arm, seed).run_name for seed in SEEDS}
    for seed in SEEDS:
        spec = planned(arm, seed).spec
        assert (spec.model, spec.optimizer, spec.schedule) == (
            quickstart.model,
            quickstart.optimizer,
            quickstart.schedule,
        )
        assert spec.seed == seed and spec.steps == STEPS
    assert len(ARMS) * len(SEEDS) == 20 and len(names) == len(SEEDS)


def test_every_monitor_that_alarms_is_there_at_its_own_thresholds() -> None:
    found = {spec.kind: spec for spec in monitors(None)}
    known = {"finite", "range", "rank", "stall", "updates", "dead", "shadow", "codes", "amax", "gradient"}
    assert set(found) == known | {"accumulation"}
    changed = {
        kind: spec.model_dump(exclude={"every"}) != type(spec)().model_dump(exclude={"every"})
        for kind, spec in found.items()
    }
    assert not any(changed.values())


def test_a_planted_collapse_is_counted_and_a_healthy_series_is_not() -> None:
    healthy = [10.0 + 0.1 * (step % 3) for step in range(120)]
    falling = [10.0] * 60 + [10.0 - 9.0 * step / 60 for step in range(1, 61)]
    for cadence in CADENCES:
        looks = 1 + 120 // cadence - (cadence == 1)
        assert rank_alarms({"a": healthy}, {"a": healthy}, cadence) == (looks, 0, 0)
        seen, beyond, matrices = rank_alarms({"a": healthy, "b": falling}, {"a": healthy, "b": healthy}, cadence)
        assert seen == 2 * looks and matrices == 1
        assert 0 < beyond < looks / 2


def test_runs_that_are_not_healthy_are_shown_and_not_counted() -> None:
    ranks = dict.fromkeys(CADENCES, (100, 1, 1))
    good = Looked("good", 0, 0.01, Counter(rank=100, range=900), Counter(rank=1), ranks)
    bad = Looked("bad", 0, 0.5, Counter(rank=100), Counter(rank=50), ranks)
    lines = list(report([good, bad]))
    assert lines[0].startswith("1 healthy runs of 2")
    assert "| rank | 100 | 1 | 10.00 |" in lines and "| all | 1,000 | 1 | 1.00 |" in lines
    assert "| step | 100 | 1 | 10.00 | 1 |" in lines
    assert any(line.startswith("| bad | 0 | +0.500 (not healthy: not counted) | 50 rank") for line in lines)
