"""Runs side by side, whoever made them: what a comparison needs of each, and which of them are one arm.

A run has a name, a seed, the settings that decide it (a spec, a W&B config, nothing for a file), the curve of one
metric and how it ended. Runs are one arm that agree in all settings but seed and learning rate and have one name; an
arm that was run at several rates is judged at its best (`altgrad.reports.rates`), unless rates are all that differs or
runs were named one by one. Where a source has arms of its own (a column, a W&B group), those count.

Final values are read alike everywhere: AltGrad's own runs have a last validation on a fixed text; of any other curve
the points of its last 5 % are averaged, up to the last step that all runs have reached. A run whose curve ends in a
number that is none has diverged and enters as the loss of knowing nothing.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.arms import arm_of, differing, rate_of, settings_of
from altgrad.reports.rates import Losses, best_rate, split_seeds
from altgrad.reports.reading import LOSS, TRAIN_LOSS, RunRecord, Series
from altgrad.store import Run

TAIL = 0.05
_SEED = re.compile(r"(?i)(?:[-_./ ]+(?:s|rng)|[-_./ ]*seed)[-_= ]?(\d+)$")
_BASELINE = re.compile(
    r"(?i)(?<![a-z0-9])(base(?:line)?|ref(?:erence)?|control|twin|fp32|float32|bf16|bfloat16)(?![a-z0-9])"
)


@dataclass(frozen=True)
class ComparedRun:
    """One run. arm: the name that its source gives the arm; empty where settings say it. seed: None where unknown.

    final: the value that AltGrad's own record gives, None for curves of others. ignorance: the value of knowing
    nothing, NaN where unknown. stored: the run of the store that it is, if it is one.
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
    stored: Run | None = None

    @property
    def rate(self) -> float:
        """The peak learning rate, 0 where it is not known."""
        found = rate_of(self.spec)
        return 0.0 if math.isnan(found) else found

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


def compared_record(record: RunRecord, metric: str, stored: Run | None = None) -> ComparedRun:
    """A run of AltGrad's that completed or diverged. stored: where the store has it."""
    steps, values = record.series.get(metric, (np.array([]), np.array([])))
    if stored is not None and metric == TRAIN_LOSS:  # the record's is thinned to its extremes
        steps, values = stored_series(stored, metric)
    final: float | None = float(values[-1]) if len(values) else math.nan
    if metric.startswith("train/"):
        final = None
    is_loss = metric in (LOSS, TRAIN_LOSS)
    return ComparedRun(
        record.id, (steps, values), seed=record.seed, spec=record.spec, final=final, diverged=record.diverged,
        ignorance=record.ignorance if is_loss else math.nan, created=str(record.meta.get("created", "")), stored=stored,
    )  # fmt: skip


def stored_series(run: Run, metric: str) -> Series:
    """Every value of a metric."""
    rows = [(row["step"], row[metric]) for row in run.metrics([metric]) if metric in row]
    pairs = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


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


def arms_of(
    runs: Sequence[ComparedRun], *, one_by_one: bool = False, by_project: bool = False
) -> tuple[dict[str, list[ComparedRun]], list[str]]:
    """Runs by arm, seeds known and each once, and what a reader must know of that.

    one_by_one: every learning rate is an arm, since somebody named the runs. by_project: so are equal specs of two
    projects, since somebody named both.
    """
    notes: list[str] = []
    groups: dict[tuple[str, str, str], list[ComparedRun]] = {}
    known: dict[str, str] = {}  # of two names for the same settings the first counts
    for run in sorted(runs, key=lambda r: r.created):
        place = str(run.spec.get("project", "")) if by_project else ""
        name = known.setdefault(place + settings_of(run.spec), _given_name(run)) if run.spec else _given_name(run)
        key = (place, run.arm, "") if run.arm else (place, name, settings_of(run.spec, rate=False))
        groups.setdefault(key, []).append(run)
    kept = [_each_seed_once(inside, notes) for inside in groups.values()]
    several = [len({run.rate for run in inside}) > 1 and not inside[0].arm for inside in kept]
    if one_by_one or (len(kept) == 1 and several[0]):
        kept = [
            [run for run in inside if not split or run.rate == rate]
            for inside, split in zip(kept, several, strict=True)
            for rate in (sorted({run.rate for run in inside}) if split else [0.0])
        ]
        several = [False] * len(kept)
    kept, reused = _at_best_rates(kept, several)
    names = _names([inside[0] for inside in kept])
    if tuned := [
        f"{name}: {inside[0].rate:g}" for name, inside, split in zip(names, kept, several, strict=True) if split
    ]:
        seeds = "which the same seeds chose, so that intervals are too narrow" if reused else "chosen on other seeds"
        more = f" and {len(tuned) - 3} more" if len(tuned) > 3 else ""
        notes.append(f"Each arm at its best learning rate ({'; '.join(tuned[:3])}{more}), {seeds}.")
    return dict(zip(names, kept, strict=True)), notes


def reference_of(arms: Mapping[str, Sequence[ComparedRun]], wanted: str | None) -> str:
    """The arm that the others are compared with: the one named, else the twin that runs name, else the least quantised
    or, of runs of others, one that is called so; else the first. ValueError for a name that no arm has.
    """
    if wanted is not None:
        for name, inside in arms.items():
            if wanted == name or any(wanted in (run.id, _given_name(run)) for run in inside):
                return name
        raise ValueError(f"the reference is {wanted!r}; the arms are {', '.join(arms)}.")
    twins = {str(run.spec["twin"]).rpartition("/")[2] for inside in arms.values() for run in inside
             if run.spec.get("twin")}  # fmt: skip
    for name, inside in arms.items():
        if any(run.id in twins for run in inside):
            return name
    plain = {name: arm_of(inside[0].spec) for name, inside in arms.items() if _is_altgrads(inside[0])}
    baselines = [name for name, arm in plain.items() if arm.is_baseline]
    called = [name for name in arms if name not in plain and _BASELINE.search(name)]
    return next((name for name in baselines if plain[name].format == "FP32"), next(iter(baselines + called or arms)))


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


def _is_altgrads(run: ComparedRun) -> bool:
    return isinstance(run.spec.get("optimizer"), Mapping)


def _given_name(run: ComparedRun) -> str:
    return run.arm or str(run.spec.get("name") or name_and_seed(run.id)[0])


def _each_seed_once(inside: Sequence[ComparedRun], notes: list[str]) -> list[ComparedRun]:
    """Of two runs of one rate and seed the newer; runs without a seed are numbered, which pairs them in order."""
    by_key: dict[tuple[float, int], ComparedRun] = {}
    unknown = [run for run in inside if run.seed is None]
    if len(unknown) > 1:
        notes.append(f"{counted(len(unknown), 'run')} of {_given_name(unknown[0])} have no seed: numbered as read.")
    for number, run in enumerate(unknown):
        by_key[run.rate, number] = replace(run, seed=number)
    for run in inside:
        if run.seed is not None:
            if (run.rate, run.seed) in by_key:
                notes.append(f"{_given_name(run)} has seed {run.seed} more than once; the last counts ({run.id}).")
            by_key[run.rate, run.seed] = run
    return list(by_key.values())


def _at_best_rates(groups: list[list[ComparedRun]], several: Sequence[bool]) -> tuple[list[list[ComparedRun]], bool]:
    """Each arm at its lr*, on seeds that did not choose it where every arm has such; and whether none were left."""
    if not any(several):
        return groups, False
    grids: list[Losses] = []
    for inside in groups:
        grid: Losses = {}
        for run in inside:
            if math.isfinite(value := run.value(math.inf)):
                grid.setdefault(run.rate, {})[run.seed or 0] = value
        grids.append(grid)
    tuning, _ = split_seeds(grids)
    at_best, confirming = [], []
    for inside, grid, split in zip(groups, grids, several, strict=True):
        choice = best_rate(grid, tuning) if split else None
        there = [run for run in inside if choice is None or run.rate == choice.rate]
        at_best.append(there)
        confirming.append([run for run in there if run.seed not in tuning])
    shared = set.intersection(*({run.seed for run in runs} for runs in confirming))
    return (confirming, False) if shared else (at_best, True)


def _names(firsts: Sequence[ComparedRun]) -> list[str]:
    """A name for each arm, as short as tells it from the others."""
    given = [_given_name(run) for run in firsts]
    words = differing([settings_of(run.spec) + " " * number for number, run in enumerate(firsts)])
    told = [f"{name} ({said})" if said else name for name, said in zip(given, words.values(), strict=True)]
    labels = [arm_of(run.spec).label if _is_altgrads(run) else name for run, name in zip(firsts, given, strict=True)]
    rates = [f"{label}, lr {run.rate:g}" for label, run in zip(labels, firsts, strict=True)]
    placed = [f"{run.spec.get('project')}/{name}" for run, name in zip(firsts, given, strict=True)]
    counted_off = [f"{name} ({number})" for number, name in enumerate(given, 1)]
    schemes = (given, labels, rates, placed, told, [run.id for run in firsts], counted_off)
    return next(scheme for scheme in schemes if len(set(scheme)) == len(firsts))
