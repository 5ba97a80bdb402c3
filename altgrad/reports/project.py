"""All runs of a project, and the questions that sections ask of them together.

A *result* is a run that completed or diverged and has a loss that can enter statistics. Results are grouped by
condition; within one, an arm's losses are keyed by learning rate and seed. Of several runs of one arm, rate and seed
(another version, another name) the newest counts, and the section on runs says so.

Arms are compared that read the same data: those of the largest such group of results.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad.formats import FloatFormat
from altgrad.reports.arm_comparison import ArmComparison, compare_arms
from altgrad.reports.arms import PAIR, STANDARD, Arm, differing, unique_names
from altgrad.reports.compared_runs import ComparedRun, compared_record
from altgrad.reports.rates import Losses, split_seeds
from altgrad.reports.reading import LOSS, RunRecord


@dataclass
class Project:
    """Name, where it was read from, its records sorted by id, and (if said) which seeds chose learning rates.

    pair: the two optimizers that the verdict compares. reference: the arm, or a run of it, that arms are compared with.
    """

    name: str
    source: str
    records: list[RunRecord]
    tuning_seeds: frozenset[int] | None = None
    pair: tuple[str, str] = PAIR
    reference: str | None = None

    def results(self, condition: str | None = None) -> list[RunRecord]:
        """Runs that enter statistics, the newest for each arm, rate and seed. Records must not change any more."""
        found = [record for inside in self._grouped.values() for record in inside] if condition is None else None
        return self._grouped.get(condition or "", []) if found is None else sorted(found, key=lambda r: r.id)

    @cached_property
    def _grouped(self) -> dict[str, list[RunRecord]]:
        """Results by condition, sorted by id."""
        newest: dict[object, RunRecord] = {}
        for record in sorted(self.records, key=lambda r: str(r.meta.get("created", ""))):
            if math.isfinite(record.outcome):
                newest[record.condition, record.arm, record.rate, record.seed] = record
        grouped: dict[str, list[RunRecord]] = {}
        for record in sorted(newest.values(), key=lambda r: r.id):
            grouped.setdefault(record.condition, []).append(record)
        return grouped

    @property
    def replaced(self) -> list[RunRecord]:
        """Results that a newer run of the same arm, rate and seed stands for."""
        kept = {record.id for record in self.results()}
        return [r for r in self.records if math.isfinite(r.outcome) and r.id not in kept]

    @cached_property
    def conditions(self) -> dict[str, str]:
        """Conditions of results, those with most runs first, and in what each differs from the others."""
        ordered = sorted(self._grouped, key=lambda text: -len(self._grouped[text]))
        words = differing(ordered)
        return {text: words[text] for text in ordered}

    @cached_property
    def names(self) -> dict[tuple[str, Arm], str]:
        """A name for every arm of every condition: the user's where it tells arms apart, else with what differs."""
        firsts: dict[tuple[str, Arm], RunRecord] = {}
        for record in sorted(self.records, key=lambda r: (str(r.meta.get("created", "")), r.id)):
            if record.spec:
                firsts.setdefault((record.condition, record.arm), record)
        told = [(record.spec, str(record.spec.get("name") or record.id), record.id) for record in firsts.values()]
        return dict(zip(firsts, unique_names(told), strict=True))

    def name_of(self, record: RunRecord) -> str:
        """Of the record's arm."""
        return self.names.get((record.condition, record.arm), "?")

    @cached_property
    def comparison(self) -> ArmComparison | None:
        """The comparison that the project is about, of arms by their `names`; None where it has no result."""
        by_data: dict[str, list[RunRecord]] = {}
        for record in self.records:
            if record.ended and record.spec and record.whole and (record.diverged or record.loss is not None):
                by_data.setdefault(_data_read(record.spec), []).append(record)
        results = max(by_data.values(), key=len, default=[])
        if not results:
            return None

        def named(run: ComparedRun) -> str:
            return self.name_of(run.record) if run.record else run.given_name

        runs = [compared_record(record, LOSS) for record in results]
        found = compare_arms(runs, reference=self.reference, tuning=self.tuning_seeds or (), named=named)
        return replace(found, others=sum(map(len, by_data.values())) - len(results))

    def main(self) -> str:
        """The condition with most results; `` where there is none."""
        return next(iter(self.conditions), "")

    def arms(self, condition: str) -> dict[Arm, Losses]:
        """Losses by rate and seed of each arm, baselines first, then by format and method."""
        return self._arms.get(condition, {})

    @cached_property
    def _arms(self) -> dict[str, dict[Arm, Losses]]:
        """The same by condition."""
        found: dict[str, dict[Arm, Losses]] = {}
        for condition, inside in self._grouped.items():
            arms = found.setdefault(condition, {})
            for record in inside:
                arms.setdefault(record.arm, {}).setdefault(record.rate, {})[record.seed] = record.outcome
        return {condition: dict(sorted(arms.items(), key=lambda item: arm_order(item[0])))
                for condition, arms in found.items()}  # fmt: skip

    def tuning(self, condition: str) -> set[int]:
        """The seeds that chose learning rates: those said, else those that ran at every rate."""
        grids = list(self.arms(condition).values())
        return set(self.tuning_seeds or split_seeds(grids)[0])

    def of(self, arm: Arm, condition: str, rate: float | None = None) -> list[RunRecord]:
        """Results of one arm, at one rate if given."""
        return [r for r in self.results(condition) if r.arm == arm and rate in (None, r.rate)]


def _data_read(spec: Mapping[str, Any]) -> str:
    """The data set of a spec, as canonical JSON."""
    data = spec.get("data")
    read = {key: value for key, value in data.items() if key != "batch_size"} if isinstance(data, Mapping) else data
    return json.dumps(read, sort_keys=True, default=str)


def arm_order(arm: Arm) -> tuple[object, ...]:
    """Frozen, FP32 and BF16 first, then formats as `format_order` has them, the standard optimizer first."""
    return (not arm.frozen, not arm.is_baseline, format_order(arm.format), arm.storage, arm.casts,
            arm.optimizer != STANDARD, arm.optimizer, arm.variant)  # fmt: skip


def parsed(name: str) -> FloatFormat | None:
    """The format of that name, or None (`FP32`, several formats, a name from elsewhere)."""
    try:
        return FloatFormat.parse(name)
    except ValueError:
        return None


def format_order(name: str) -> tuple[int, int, str]:
    """By exponent bits, then name; what is no single format comes first."""
    found = parsed(name)
    return (-1, 0, name) if found is None else (found.exponent_bits, found.mantissa_bits, name)


def final(record: RunRecord, monitor: str, quantity: str, *, tail: float = 0.25) -> float:
    """One number for a run: the mean over sites of the mean over the last quarter of the steps; NaN without any."""
    means = [value for value in by_site(record, monitor, quantity, tail=tail).values() if math.isfinite(value)]
    return float(np.mean(means)) if means else math.nan


def by_site(record: RunRecord, monitor: str, quantity: str, *, tail: float = 0.25) -> dict[str, float]:
    """The mean over the last quarter of the steps, by site or parameter; non-finite values are left out."""
    return {site: _late(series, tail) for site, series in record.sited(monitor, quantity).items()}


def _late(series: tuple[NDArray[np.float64], NDArray[np.float64]], tail: float) -> float:
    steps, values = series
    late = values[steps >= steps[-1] * (1 - tail)]
    late = late[np.isfinite(late)]
    return float(late.mean()) if len(late) else math.nan


def layer_type(site: str) -> str:
    """The site without the numbers of its blocks: `blocks.3.mlp.up.weight` is of type `mlp.up`."""
    words = [w for w in site.replace("/", ".").split(".") if not w.isdecimal() and w not in ("weight", "blocks")]
    return ".".join(words) or site
