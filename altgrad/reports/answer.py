"""What a report opens with: the sentence that says how the arms of a project differ."""

import math
from collections.abc import Callable

import numpy as np

from altgrad.numerals import counted, significant
from altgrad.reports.arm_comparison import ArmComparison, ComparedArm
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import bounds
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import t_interval


def answer(project: Project, found: ArmComparison | None) -> str:
    """The first sentence of a report that no study has a better one for."""
    if found is None:
        states = [record.status for record in project.records]
        counts = listed([f"{states.count(state)} {state}" for state in dict.fromkeys(states)], "and")
        return f"No run has a result yet: of {counted(len(states), 'run')}, {counts}."
    if found.all_diverged:
        return _all_diverged(found)
    return found.sentence or _alone(found.reference)


def _alone(arm: ComparedArm) -> str:
    values = np.array([value for value in arm.values().values() if math.isfinite(value)])
    if len(arm.runs) == 1 and (record := arm.first.record):
        return (
            f"One run, {arm.name}: {record.status} at step {record.step} with a validation loss of "
            f"{significant(float(values[0]), 4) if len(values) else '–'} nats."
        )
    return (
        f"One arm, {arm.name}, of {counted(len(arm.runs), 'seed')}: mean validation loss "
        f"{significant(float(values.mean()), 4)} nats {bounds(t_interval(values), sign=False)}."
    )


def _all_diverged(found: ArmComparison) -> str:
    records = [record for arm in found.arms.values() for record in arm.records.values()]
    first = min(records, key=lambda record: record.step)
    if len(records) == 1:
        return f"The only run with a result, {first.id}, diverged at step {first.step}."
    arms = f" of {len(found.arms)} arms" if len(found.arms) > 1 else ""
    return f"All {len(records)} runs{arms} diverged; the first, {first.id}, at step {first.step}."


def mean_ratio(found: ArmComparison, arm: ComparedArm, value: Callable[[RunRecord], float]) -> float:
    """A quantity of an arm's runs over that of the reference's runs of the same seeds; NaN where unknown."""
    base = found.reference.records
    ratios = [
        value(record) / other
        for seed, record in arm.records.items() if seed in base and (other := value(base[seed]))
    ]  # fmt: skip
    kept = [ratio for ratio in ratios if math.isfinite(ratio)]
    return math.fsum(kept) / len(kept) if kept else math.nan
