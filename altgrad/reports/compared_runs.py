"""Runs side by side, whoever made them: what a comparison needs of each. Which are one arm, says `arm_comparison`.

A run has a name, a seed, the settings that decide it (a spec, a W&B config, nothing for a file), the curve of one
metric and how it ended.

Final values are read alike everywhere: AltGrad's own runs have a last validation on a fixed text; of any other curve
the points of its last 5 % are averaged, up to the last step that all runs have reached. A run whose curve ends in a
number that is none has diverged and enters as the loss of knowing nothing.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from altgrad.reports.arms import rate_of, settings_of
from altgrad.reports.reading import LOSS, PLAIN_POINTS, TRAIN_LOSS, RunRecord, Series
from altgrad.store import Run

TAIL = 0.05
_SEED = re.compile(r"(?i)(?:[-_./ ]+(?:s|rng)|[-_./ ]*seed)[-_= ]?(\d+)$")


@dataclass(frozen=True)
class ComparedRun:
    """One run. arm: the name that its source gives the arm; empty where settings say it. seed: None where unknown.

    final: the value that AltGrad's own record gives, None for curves of others. ignorance: the value of knowing
    nothing, NaN where unknown. record: of a run of AltGrad's, all that a report knows of it.
    """

    id: str
    series: Series
    arm: str = ""
    seed: int | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    final: float | None = None
    diverged: bool = False
    ignorance: float = math.nan
    created: str = ""
    record: RunRecord | None = None

    @property
    def given_name(self) -> str:
        """What its source or its user calls its arm."""
        return self.arm or str(self.spec.get("name") or name_and_seed(self.id)[0])

    @property
    def rate(self) -> float:
        """The peak learning rate, 0 where it is not known."""
        found = rate_of(self.spec)
        return 0.0 if math.isnan(found) else found

    @property
    def settings(self) -> str:
        """All that decides its result but seed and peak learning rate, as canonical JSON."""
        return self.record.settings if self.record else settings_of(self.spec, rate=False)

    @property
    def last_step(self) -> float:
        """Of its curve; infinite for a run that has its final value."""
        return float(self.series[0][-1]) if self.final is None and len(self.series[0]) else math.inf

    def value(self, until: float) -> float:
        """What it came to, by the step `until`; NaN where that is not known."""
        if self.diverged:
            return self.ignorance
        if self.final is not None:
            return self.final
        steps, values = self.series
        kept = (steps <= until) & np.isfinite(values)
        late = kept & (steps > until - TAIL * (until - float(steps[0])))
        found = values[late] if late.any() else values[kept][-1:]
        return float(found.mean()) if len(found) else math.nan


def compared_record(record: RunRecord, metric: str) -> ComparedRun:
    """A run of AltGrad's that completed or diverged."""
    steps, values = record.series.get(metric, (np.array([]), np.array([])))
    if record.run is not None and metric == TRAIN_LOSS:  # the record's is thinned to its extremes
        steps, values = stored_series(record.run, metric)
    final: float | None = float(values[-1]) if len(values) else math.nan
    if metric.startswith("train/"):
        final = None
    is_loss = metric in (LOSS, TRAIN_LOSS)
    return ComparedRun(
        record.id, (steps, values), seed=record.seed, spec=record.spec, final=final, diverged=record.diverged,
        ignorance=record.ignorance if is_loss else math.nan, created=str(record.meta.get("created", "")), record=record,
    )  # fmt: skip


def stored_series(run: Run, metric: str) -> Series:
    """Every value of a metric."""
    rows = [(row["step"], row[metric]) for row in run.metrics([metric]) if metric in row]
    pairs = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def full_curve(run: ComparedRun, metric: str) -> Series:
    """Every point of one of its metrics; none where nobody has more than its extremes, as of a report's archive."""
    record = run.record
    if record is None:
        return run.series
    steps, values = record.series.get(metric, (np.array([]), np.array([])))
    if len(steps) < PLAIN_POINTS // 3:  # a series that was thinned is longer
        return steps, values
    if record.run is not None:
        return stored_series(record.run, metric)
    even = np.ptp(np.diff(steps[:-1])) == 0
    return (steps, values) if even else (np.array([]), np.array([]))


def foreign_run(id: str, series: Series, **more: Any) -> ComparedRun:
    """A run of others from its curve: seed and arm from its name where nothing else says them, and how it ended."""
    steps, values = series
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    kept = np.append(steps[1:] != steps[:-1], True) if len(steps) else np.zeros(0, dtype=bool)  # the last of a step
    steps, values = steps[kept], values[kept]
    run = ComparedRun(id, (steps, values), **more)
    diverged = bool(len(values)) and not math.isfinite(values[-1])
    ignorance = run.ignorance
    early = len(values) > 1 and (steps[0] <= 1 or steps[0] <= 0.01 * steps[-1])
    if math.isnan(ignorance) and early and math.isfinite(values[0]):
        ignorance = float(values[0])
    return replace(run, diverged=diverged, ignorance=ignorance)


def name_and_seed(name: str) -> tuple[str, int | None]:
    """`fp8-s3`, `fp8/seed_3` and `fp8_seed=3` are (fp8, 3); a name without a seed stays."""
    match = _SEED.search(name)
    return (name[: match.start()], int(match[1])) if match and match.start() else (name, None)


def common_end(runs: Iterable[ComparedRun], notes: list[str]) -> float:
    """The last step that all curves have reached, but for those that diverged; says so where some go further."""
    sound = [run for run in runs if not run.diverged and math.isfinite(run.last_step)]
    end = min((run.last_step for run in sound), default=math.inf)
    if sound and max(run.last_step for run in sound) > end:
        short = [run.id for run in sound if run.last_step == end]
        notes.append(f"Compared at step {end:g}, where {short[0]} ends; others go further.")
    return end


def values_of(inside: Iterable[ComparedRun], until: float) -> dict[int, float]:
    """What an arm's runs came to, by seed; of those that diverged NaN where that is not known."""
    found = {run.seed or 0: (run.diverged, run.value(until)) for run in inside}
    return {seed: value for seed, (diverged, value) in found.items() if diverged or math.isfinite(value)}
