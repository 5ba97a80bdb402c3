"""Arms beside a reference arm: which runs are one arm, which arm is the reference, and what is decided about the rest.

An *arm* is all that a user changed but the seed: formats, recipes, sizes, steps, optimizers. Runs of one name that
differ in nothing but the learning rate are one arm whose rate was tuned, judged at its best on seeds that did not
choose it (`rates`); where rates are all that differs, or runs were named one by one, they are the arms. Where a source
has arms of its own (a column, a W&B group), those count. Nothing here decides: that is `altgrad.statistics.verdict`.

The reference is the arm that was named, else the twin that runs name, else the least quantised one: that in which
nothing is (of runs of others, one that is called baseline, fp32 or bf16), then that which spends the most bits; of
several alike in that, the first.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from altgrad.numerals import counted, signed
from altgrad.reports.arms import FREE, STANDARD, Arm, arm_of, cast_text, recipe_of, unique_names
from altgrad.reports.bits import least_first
from altgrad.reports.compared_runs import ComparedRun, common_end, full_curve, values_of
from altgrad.reports.curves import Array, common_steps, mean_over_runs
from altgrad.reports.rates import Losses, best_rate, split_seeds
from altgrad.reports.reading import LOSS, TRAIN_LOSS, RunRecord, Series
from altgrad.spec import did_you_mean
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import ArmVerdict, Comparison, judge
from altgrad.statistics.window import WindowBand, window_band
from altgrad.store.compare import differing_parts, in_words

Better = Literal["lower", "higher"]
_BASELINE = re.compile(
    r"(?i)(?<![a-z0-9])(base(?:line)?|ref(?:erence)?|control|twin|fp32|float32|bf16|bfloat16)(?![a-z0-9])"
)


@dataclass(frozen=True)
class ComparedArm:
    """An arm by its name. runs: those that it is judged by, one a seed. rates: all that it was run at.

    choosers: its other runs at the same rate, whose seeds chose that rate.
    """

    name: str
    runs: tuple[ComparedRun, ...]
    rates: tuple[float, ...]
    choosers: tuple[ComparedRun, ...] = ()

    @property
    def first(self) -> ComparedRun:
        """Any run of it."""
        return self.runs[0]

    @property
    def kind(self) -> Arm:
        """What its spec says of it; `?` where there is none."""
        return arm_of(self.first.spec)

    @property
    def rate(self) -> float:
        """The rate that it is judged at."""
        return self.first.rate

    @property
    def is_tuned(self) -> bool:
        """Whether its rate was chosen from several."""
        return len(self.rates) > 1

    @property
    def seeds(self) -> set[int]:
        """Of the runs that it is judged by."""
        return {run.seed or 0 for run in self.runs}

    @property
    def diverged(self) -> list[int]:
        """Seeds whose run diverged."""
        return [run.seed or 0 for run in self.runs if run.diverged]

    @property
    def records(self) -> dict[int, RunRecord]:
        """Of the runs that are AltGrad's, by seed."""
        return {run.seed or 0: run.record for run in self.runs if run.record is not None}

    def values(self, until: float = math.inf) -> dict[int, float]:
        """What enters statistics, by seed."""
        return values_of(self.runs, until)

    def is_called(self, name: str) -> bool:
        """Whether that is its name, what its user called it, or the id of a run of it."""
        return name == self.name or any(name in (run.id, run.given_name) for run in self.runs)


@dataclass(frozen=True)
class ArmComparison:
    """Arms by name, the reference first, and the verdict on the others, if there are any.

    notes: what was taken for granted. others: results that read other data and are not compared.
    """

    arms: dict[str, ComparedArm]
    verdict: Comparison
    metric: str
    notes: Sequence[str]
    others: int = 0

    @property
    def reference(self) -> ComparedArm:
        """The arm that the others are compared with."""
        return next(iter(self.arms.values()))

    @property
    def reused(self) -> bool:
        """Whether rates were chosen on the seeds that arms are judged by."""
        return any(arm.is_tuned and not arm.choosers for arm in self.arms.values())

    @property
    def all_diverged(self) -> bool:
        """Whether no run completed."""
        return all(len(arm.diverged) == len(arm.runs) for arm in self.arms.values())

    @property
    def judged(self) -> list[tuple[ComparedArm, ArmVerdict]]:
        """All but the reference, with what is decided about each; none where nothing can be."""
        return [] if self.all_diverged else [(self.arms[found.arm], found) for found in self.verdict.judged]

    @property
    def sentence(self) -> str:
        """The answer; empty where there is no other arm."""
        return self.verdict.sentence if len(self.arms) > 1 else ""

    @property
    def exit_code(self) -> int:
        """For scripts: 0 every arm is better or equivalent, 6 some arm is worse, 7 none is and some verdict is open."""
        if any(arm.verdict == "worse" for arm in self.verdict.judged):
            return 6
        return 7 if any(arm.is_open for arm in self.verdict.judged) else 0

    @cached_property
    def differences(self) -> dict[str, list[str]]:
        """By path, the part of each arm's settings, in words, where the arms differ."""
        specs = [arm.first.spec for arm in self.arms.values()]
        firsts = [{k: v for k, v in spec.items() if k not in FREE} for spec in specs]
        words = [recipe_of(spec) or cast_text(spec) for spec in specs]
        of_recipes = all(recipe_of(spec) or cast_text(spec) == "none" for spec in specs)
        if of_recipes and len(set(words)) == len(words):
            firsts = [first | {"precision": word} for first, word in zip(firsts, words, strict=True)]
        parts = differing_parts(firsts) if all(firsts) else ()
        return {path: [in_words(part) for part in values] for path, values in parts}

    @cached_property
    def windows(self) -> dict[str, WindowBand]:
        """By arm, of those with one seed, the band of its curve less the reference's."""
        single = [arm for arm, verdict in self.judged if verdict.verdict == "one seed"]
        bands = {arm.name: _band(arm.runs, self.reference.runs, self.metric) for arm in single}
        return {name: band for name, band in bands.items() if band is not None}

    @property
    def said_of_curves(self) -> list[str]:
        """What may be said of one seed an arm: of the two curves, and never of the arms."""
        return [
            f"{band.metric}, steps {band.first:g} to {band.last:g}: these two curves are "
            f"{'apart' if band.differs else 'not shown to be apart'}, {name} by {signed(band.mean)} "
            f"[{signed(band.low)}, {signed(band.high)}]; other seeds may differ otherwise."
            for name, band in self.windows.items()
        ]

    @property
    def settings(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of what differs: a row an arm, the longest words last, or, of more, a row a setting."""
        found = self.differences
        parts = sorted(found.items(), key=lambda each: max(map(len, each[1])))
        if len(parts) > len(self.arms):
            return ["setting", *self.arms], [[path, *words] for path, words in found.items()]
        rows = [[arm, *(words[i] for _, words in parts)] for i, arm in enumerate(self.arms)]
        return ["arm", *(path for path, _ in parts)], rows

    def curve(self, arm: str) -> Series:
        """The mean over seeds by step."""
        steps, mean, _, _ = mean_over_runs([run.series for run in self.arms[arm].runs])
        return steps, mean

    def difference(self, arm: str) -> tuple[Array, Array, Array, Array]:
        """(steps, mean, low, high) of the arm's curve less the reference's, over the seeds of both."""
        base = {run.seed: run.series for run in self.reference.runs}
        pairs = [_less(run.series, base[run.seed]) for run in self.arms[arm].runs if run.seed in base]
        return mean_over_runs([pair for pair in pairs if len(pair[0])])


def compare_arms(
    runs: Sequence[ComparedRun],
    metric: str = LOSS,
    *,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Better = "lower",
    tuning: Collection[int] = (),
    each_rate: bool = False,
    by_project: bool = False,
    named: Callable[[ComparedRun], str] = lambda run: run.given_name,
) -> ArmComparison:
    """Group runs (one or more) into arms and judge them. See `arms_of`. ValueError for a reference that no arm is."""
    arms, notes = arms_of(runs, tuning=tuning, better=better, each_rate=each_rate, by_project=by_project, named=named)
    base = arms[reference_of(arms, reference)]
    ordered = {base.name: base}
    for arm in arms.values():
        if arm is not base:
            # Its rate was confirmed on other seeds than the reference has: those that chose it must serve as well.
            apart = not arm.seeds & base.seeds and base.seeds & {run.seed or 0 for run in arm.choosers}
            ordered[arm.name] = replace(arm, runs=arm.runs + arm.choosers, choosers=()) if apart else arm
    notes += _tuned(list(ordered.values()))
    end = common_end(runs, notes)
    values = {name: arm.values(end) for name, arm in ordered.items()}
    diverged = {name: arm.diverged for name, arm in ordered.items()}
    unit = "nats" if "loss" in metric else ""
    verdict = judge(values, base.name, margin=margin, better=better, diverged=diverged, unit=unit)
    return ArmComparison(ordered, verdict, metric, notes)


def arms_of(
    runs: Iterable[ComparedRun],
    *,
    tuning: Collection[int] = (),
    better: Better = "lower",
    each_rate: bool = False,
    by_project: bool = False,
    named: Callable[[ComparedRun], str] = lambda run: run.given_name,
) -> tuple[dict[str, ComparedArm], list[str]]:
    """Arms in the order in which they were made, seeds known and each once, and what a reader must know of that.

    tuning: seeds that chose learning rates; found from the runs if left out. each_rate: every learning rate is an arm,
    since somebody named the runs. by_project: so are equal specs of two projects, since somebody named both. named:
    gives an arm's name; where names are not enough, what differs is added.
    """
    notes: list[str] = []
    groups: dict[tuple[str, str, str, bool], list[ComparedRun]] = {}
    known: dict[tuple[str, str, float], str] = {}  # of two names for the same settings the first counts
    for run in sorted(runs, key=lambda each: each.created):
        place = str(run.spec.get("project", "")) if by_project else ""
        settings = "" if run.arm else run.settings
        name = run.arm or run.given_name
        if run.spec and not run.arm:
            name = known.setdefault((place, settings, run.rate), name)
        groups.setdefault((place, name, settings, _is_frozen(run)), []).append(run)
    kept = [_by_rate(inside, notes) for inside in groups.values()]
    if each_rate or len(kept) == 1:
        kept = [{rate: by_rate[rate]} for by_rate in kept for rate in sorted(by_rate)]
    grids = [_losses(by_rate, better) for by_rate in kept]
    chose = set(tuning) or split_seeds(grids)[0]
    firsts = [next(iter(by_rate.values()))[0] for by_rate in kept]
    names = unique_names([(run.spec, named(run), run.id) for run in firsts])
    found = {}
    for name, by_rate, losses in zip(names, kept, grids, strict=True):
        choice = best_rate(losses, chose) if len(by_rate) > 1 else None
        there = by_rate[choice.rate if choice else next(iter(by_rate))]
        confirming = tuple(run for run in there if choice and run.seed not in chose)
        choosers = tuple(run for run in there if confirming and run.seed in chose)
        found[name] = ComparedArm(name, confirming or tuple(there), tuple(sorted(by_rate)), choosers)
    return found, notes


def reference_of(arms: Mapping[str, ComparedArm], wanted: str | None) -> str:
    """The name of the arm that the others are compared with. ValueError for a name that no arm has."""
    if wanted is not None:
        for name, arm in arms.items():
            if arm.is_called(wanted):
                return name
        hint = did_you_mean(wanted, arms) or f" There are {listed(list(arms)[:8], 'and')}."
        raise ValueError(f"no arm is named {wanted!r}.{hint}")
    runs = [run for arm in arms.values() for run in arm.runs]
    twins = {str(run.spec["twin"]).rpartition("/")[2] for run in runs if run.spec.get("twin")}
    for name, arm in arms.items():
        if any(run.id in twins for run in arm.runs):
            return name
    return min(arms, key=lambda name: _least_quantised_first(arms[name]))


def _least_quantised_first(arm: ComparedArm) -> tuple[bool, bool, float, bool]:
    """A key by which arms that move come first, then those not quantised, of the most bits, of the usual optimizer."""
    if not isinstance(arm.first.spec.get("optimizer"), Mapping):
        return False, not _BASELINE.search(arm.name), 0.0, False
    kind, bits = arm.kind, least_first(arm.first.spec)
    return kind.frozen, not kind.is_baseline, bits, kind.optimizer != STANDARD


def _is_frozen(run: ComparedRun) -> bool:
    """Whether its weights cannot move: a control, and no rate of an arm that was tuned."""
    optimizer = run.spec.get("optimizer")
    return isinstance(optimizer, Mapping) and optimizer.get("lr") == 0


def _by_rate(inside: Sequence[ComparedRun], notes: list[str]) -> dict[float, list[ComparedRun]]:
    """Runs of an arm by learning rate (one, where arms have names of their own), each seed once: of two the newer.

    Runs without a seed are numbered, which pairs them in order.
    """
    found: dict[float, dict[int, ComparedRun]] = {}
    unknown = [run for run in inside if run.seed is None]
    if len(unknown) > 1:
        notes.append(f"{counted(len(unknown), 'run')} of {unknown[0].given_name} have no seed: numbered as read.")
    numbered = [replace(run, seed=number) for number, run in enumerate(unknown)]
    for run in [*numbered, *(run for run in inside if run.seed is not None)]:
        rate, seed = 0.0 if run.arm else run.rate, run.seed or 0
        if seed in found.setdefault(rate, {}):
            notes.append(f"{run.given_name} has seed {seed} more than once; the last counts ({run.id}).")
        found[rate][seed] = run
    return {rate: list(by_seed.values()) for rate, by_seed in found.items()}


def _losses(by_rate: Mapping[float, Iterable[ComparedRun]], better: Better) -> Losses:
    """What the runs came to, by rate and seed, so that lower is better."""
    sign = 1.0 if better == "lower" else -1.0
    return {
        rate: {run.seed or 0: sign * value for run in runs if math.isfinite(value := run.value(math.inf))}
        for rate, runs in by_rate.items()
    }


def _tuned(arms: Sequence[ComparedArm]) -> list[str]:
    """The rates that arms are judged at, where they were chosen from several."""
    told = [f"{arm.name}: {arm.rate:g}" for arm in arms if arm.is_tuned]
    reused = any(arm.is_tuned and not arm.choosers for arm in arms)
    seeds = "which the same seeds chose, so that intervals are too narrow" if reused else "chosen on other seeds"
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return [f"Each arm at its best learning rate ({'; '.join(told[:3])}{more}), {seeds}."] if told else []


def _band(inside: Iterable[ComparedRun], base: Iterable[ComparedRun], metric: str) -> WindowBand | None:
    """Of the one pair of runs with a seed in common; of their training loss where the metric's curve is too short."""
    others = {run.seed: run for run in base}
    for run in inside:
        if other := others.get(run.seed):
            found = window_band(*_less(full_curve(run, metric), full_curve(other, metric)), metric)
            if found is None and metric == LOSS and run.record and other.record:
                found = window_band(*_less(full_curve(run, TRAIN_LOSS), full_curve(other, TRAIN_LOSS)), TRAIN_LOSS)
            return found
    return None


def _less(ours: Series, theirs: Series) -> Series:
    """The difference of two curves on the steps that both reach; empty where one is."""
    if not (len(ours[0]) and len(theirs[0])):
        return np.array([]), np.array([])
    steps = common_steps([ours, theirs])
    steps = steps[(steps >= max(ours[0][0], theirs[0][0])) & (steps <= min(ours[0][-1], theirs[0][-1]))]
    return steps, np.interp(steps, *ours) - np.interp(steps, *theirs)
