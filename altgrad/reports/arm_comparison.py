"""Every arm of a project beside its reference arm: what the report opens with.

An *arm* is all that a user changed but the seed: formats, recipes, sizes, steps, optimizers. Runs of one name that
differ in nothing but the learning rate are one arm whose rate was tuned, judged at its best on seeds that did not
choose it (`rates`); where rates are all that differs, or have names, they are the arms. Arms must have read the same
data; the largest such group is compared. What a verdict is, says `altgrad.statistics.verdict`; nothing here decides.

The reference is the arm that was named, else the twin that runs name, else the least quantised one; of several that are
alike in that, the first that ran.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from altgrad.numerals import counted, signed, significant
from altgrad.reports.arms import Arm, settings_of
from altgrad.reports.bits import least_first
from altgrad.reports.project import Project, unique_names
from altgrad.reports.rates import Losses, best_rate, split_seeds
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import bounds
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import t_interval
from altgrad.statistics.verdict import ArmVerdict, Comparison, judge

FEW = 6
"""So many arms have their intervals in the first sentence; of more, only what was decided."""


@dataclass(frozen=True)
class ComparedArm:
    """An arm by its name, at the rate that it is judged at. judged: its runs by seed. rates: all that it was run at."""

    name: str
    arm: Arm
    rate: float
    rates: tuple[float, ...]
    judged: dict[int, RunRecord]

    @property
    def first(self) -> RunRecord:
        """Any run of it."""
        return next(iter(self.judged.values()))

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run diverged."""
        return [seed for seed, record in self.judged.items() if record.diverged]

    @property
    def values(self) -> dict[int, float]:
        """The loss that enters statistics, by seed."""
        return {seed: record.outcome for seed, record in self.judged.items()}


@dataclass(frozen=True)
class ArmComparison:
    """Arms by name in the order they were run, the reference first. reused: rates were chosen on the seeds judged.

    others: results that read other data and are not compared.
    """

    arms: dict[str, ComparedArm]
    reused: bool
    others: int

    @property
    def reference(self) -> ComparedArm:
        """The arm that the others are compared with."""
        return next(iter(self.arms.values()))

    @cached_property
    def verdict(self) -> Comparison | None:
        """What is decided; None where there is no other arm, or no run came to an end but by diverging."""
        if len(self.arms) < 2 or self.all_diverged:
            return None
        values = {name: arm.values for name, arm in self.arms.items()}
        diverged = {name: arm.diverged for name, arm in self.arms.items()}
        return judge(values, self.reference.name, diverged=diverged)

    @property
    def all_diverged(self) -> bool:
        """Whether no run completed."""
        return all(len(arm.diverged) == len(arm.judged) for arm in self.arms.values())

    @property
    def others_judged(self) -> list[tuple[ComparedArm, ArmVerdict]]:
        """All but the reference, with what is decided about each."""
        return [(self.arms[found.arm], found) for found in self.verdict.judged] if self.verdict else []


def compare_arms(project: Project) -> ArmComparison | None:
    """The comparison that a project is about; None where it has no result."""
    results, others = _same_data(project.records)
    if not results:
        return None
    groups = _groups(results)
    only_rates = len(groups) == 1 and len(groups[0]) > 1
    if only_rates:
        groups = [{rate: runs} for rate, runs in groups[0].items()]
    grids: list[Losses] = [{rate: _outcomes(runs) for rate, runs in group.items()} for group in groups]
    tuning = set(project.tuning_seeds or split_seeds(grids)[0])
    firsts = [next(iter(next(iter(group.values())).values())) for group in groups]
    names = [project.name_of(first) for first in firsts]
    if len(set(names)) < len(names):
        names = [f"lr {rate:g}" for group in groups for rate in group] if only_rates else unique_names(firsts)
    arms: list[ComparedArm] = []
    reused = False
    for name, group, losses in zip(names, groups, grids, strict=True):
        choice = best_rate(losses, tuning) if len(group) > 1 else None
        rate = choice.rate if choice else next(iter(group))
        confirming = {seed: record for seed, record in group[rate].items() if choice and seed not in tuning}
        reused |= len(group) > 1 and not confirming
        runs = confirming or group[rate]
        arms.append(ComparedArm(name, next(iter(runs.values())).arm, rate, tuple(sorted(group)), runs))
    reference = _reference(arms, project.reference)
    base = set(reference.judged)
    ordered = {reference.name: reference}
    for arm, group in zip(arms, groups, strict=True):
        if arm is not reference:
            if not base & set(arm.judged) and base & set(group[arm.rate]):  # confirmed on other seeds than these
                arm = ComparedArm(arm.name, arm.arm, arm.rate, arm.rates, group[arm.rate])
                reused = reused or len(group) > 1
            ordered[arm.name] = arm
    return ArmComparison(ordered, reused, others)


Group = dict[float, dict[int, RunRecord]]
"""Runs of one arm by rate and seed."""


def _same_data(records: Sequence[RunRecord]) -> tuple[list[RunRecord], int]:
    """Results of the data set that most of them read, oldest first, and how many read another."""
    by_data: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (str(r.meta.get("created", "")), r.id)):
        if record.ended and record.spec and record.whole and (record.diverged or record.loss is not None):
            data = record.spec.get("data")
            read = {k: v for k, v in data.items() if k != "batch_size"} if isinstance(data, dict) else data
            by_data.setdefault(json.dumps(read, sort_keys=True, default=str), []).append(record)
    most = max(by_data.values(), key=len, default=[])
    return most, sum(map(len, by_data.values())) - len(most)


def _groups(results: Sequence[RunRecord]) -> list[Group]:
    """Runs by arm, in the order they were made; of two with the same settings and seed the newer counts."""
    known: dict[str, str] = {}  # of two names for the same settings the first counts
    groups: dict[tuple[str, Arm, str], Group] = {}
    for record in results:
        name = known.setdefault(settings_of(record.spec), str(record.spec.get("name")))
        rate = 0.0 if math.isnan(record.rate) else record.rate
        groups.setdefault((record.condition, record.arm, name), {}).setdefault(rate, {})[record.seed] = record
    return list(groups.values())


def _outcomes(runs: dict[int, RunRecord]) -> dict[int, float]:
    return {seed: record.outcome for seed, record in runs.items() if math.isfinite(record.outcome)}


def _reference(arms: Sequence[ComparedArm], wanted: str | None) -> ComparedArm:
    def holds(arm: ComparedArm, name: str) -> bool:
        return name == arm.name or any(name in (r.id, r.spec.get("name")) for r in arm.judged.values())

    if wanted is not None:
        for arm in arms:
            if holds(arm, wanted):
                return arm
        raise ValueError(f"no arm is named '{wanted}'; there are {', '.join(arm.name for arm in arms)}.")
    twins = {str(r.spec["twin"]).rsplit("/", 1)[-1] for arm in arms for r in arm.judged.values() if r.spec.get("twin")}
    for arm in arms:
        if any(record.id in twins for record in arm.judged.values()):
            return arm
    moving = [arm for arm in arms if not arm.arm.frozen] or list(arms)
    return min(moving, key=lambda arm: (least_first(arm.first.spec), arm.arm.optimizer != "adamw"))


def answer(project: Project, found: ArmComparison | None) -> str:
    """The first sentence of a report that no study has a better one for."""
    if found is None:
        states = [record.status for record in project.records]
        counts = listed([f"{states.count(state)} {state}" for state in dict.fromkeys(states)], "and")
        return f"No run has a result yet: of {counted(len(states), 'run')}, {counts}."
    if found.all_diverged:
        return _all_diverged(found)
    if found.verdict is None:
        return _alone(found.reference)
    judged = found.verdict.judged
    if not 1 < len(judged) <= FEW or any(arm.interval.n < 2 for arm in judged):
        return found.verdict.sentence
    told = [f"{arm.arm} is {arm.verdict}, {signed(arm.interval.mean)} {bounds(arm.interval)}" for arm in judged]
    return f"Compared with {found.reference.name}, in nats: {'; '.join(told)}."


def _alone(arm: ComparedArm) -> str:
    values = np.array([value for value in arm.values.values() if math.isfinite(value)])
    if len(arm.judged) == 1:
        return (
            f"One run, {arm.name}: {arm.first.status} at step {arm.first.step} with a validation loss of "
            f"{significant(float(values[0]), 4) if len(values) else '–'} nats."
        )
    return (
        f"One arm, {arm.name}, of {counted(len(arm.judged), 'seed')}: mean validation loss "
        f"{significant(float(values.mean()), 4)} nats {bounds(t_interval(values), sign=False)}."
    )


def _all_diverged(found: ArmComparison) -> str:
    records = [record for arm in found.arms.values() for record in arm.judged.values()]
    first = min(records, key=lambda record: record.step)
    if len(records) == 1:
        return f"The only run with a result, {first.id}, diverged at step {first.step}."
    arms = f" of {len(found.arms)} arms" if len(found.arms) > 1 else ""
    return f"Every run diverged, {len(records)}{arms}; the first, {first.id}, at step {first.step}."


def mean_ratio(found: ArmComparison, arm: ComparedArm, value: Callable[[RunRecord], float]) -> float:
    """A quantity of an arm's runs over that of the reference's runs of the same seeds; NaN where unknown."""
    base = found.reference.judged
    ratios = [
        value(record) / other
        for seed, record in arm.judged.items() if seed in base and (other := value(base[seed]))
    ]  # fmt: skip
    kept = [ratio for ratio in ratios if math.isfinite(ratio)]
    return math.fsum(kept) / len(kept) if kept else math.nan
