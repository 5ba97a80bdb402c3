"""B_f = L(first) - L(second optimizer), format by format: each arm at its own learning rate, paired by seed.

The pair is AdamW and ManifoldAdamW unless the project names another: B is then the benefit of geometry.

A *family* is one condition, one way of storing weights and one set of casts; within it formats differ, and intervals
are simultaneous over them. The two sides of a format are the arms of the pair's optimizers that are closest to their
defaults (for ManifoldAdamW: own stiffness, p = 1). lr* comes from tuning seeds, B from confirmation seeds
where there are any; where the same seeds had to do both, `reused` is true and every section that shows B says so.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from altgrad.reports.arms import PAIR, STANDARD, Arm, optimizer_name
from altgrad.reports.project import Project, format_order
from altgrad.reports.rates import ChosenRate, Losses, best_rate
from altgrad.reports.reading import RunRecord
from altgrad.statistics.best import Contender, compare_with_best
from altgrad.statistics.intervals import Decision, Interval
from altgrad.statistics.power import needed_pairs
from altgrad.statistics.verdict import Family

Verdict: TypeAlias = Literal["benefit", "harm", "no practical benefit", "direction only", "undecided"]
VERDICTS: dict[Decision, Verdict] = {
    "above": "benefit", "below": "harm", "inside": "no practical benefit",
    "direction only": "direction only", "undecided": "undecided",
}  # fmt: skip
"""What is decided about B (`altgrad.statistics.intervals`), in the words of a report."""


@dataclass(frozen=True)
class Side:
    """An arm at its learning rate: what it came to by seed, and how many of its runs there diverged."""

    arm: Arm
    choice: ChosenRate
    by_seed: dict[int, float]
    diverged: int
    runs: int


@dataclass(frozen=True)
class Effect:
    """One format: the sides of the pair's first and second optimizer, and their paired differences by seed."""

    format: str
    first: Side
    second: Side

    @property
    def pairs(self) -> dict[int, float]:
        """L(first) - L(second) by seed: positive where the second is better."""
        theirs = self.second.by_seed
        return {seed: loss - theirs[seed] for seed, loss in self.first.by_seed.items() if seed in theirs}


@dataclass(frozen=True)
class FamilyOfFormats:
    """Formats that are compared together. `reused`: rates were chosen on the seeds that B is computed from."""

    condition: str
    storage: str
    casts: str
    effects: tuple[Effect, ...]
    reused: bool
    tuning: frozenset[int]
    pair: tuple[str, str] = PAIR

    @cached_property
    def paired(self) -> dict[str, dict[int, float]]:
        """Differences by format and seed."""
        return {effect.format: effect.pairs for effect in self.effects}

    @cached_property
    def judged(self) -> Family:
        """What is decided about the formats together."""
        return Family(self.paired)

    @property
    def intervals(self) -> dict[str, Interval]:
        """Simultaneous 95 % intervals of B by format."""
        return self.judged.intervals

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """By format."""
        return {name: VERDICTS[self.judged.decision(name)] for name in self.paired}

    @cached_property
    def contenders(self) -> list[Contender]:
        """Comparison with the best, over the formats that have pairs."""
        present = {name: pairs for name, pairs in self.paired.items() if pairs}
        return compare_with_best(present) if present else []

    @property
    def best(self) -> list[str]:
        """The formats that may benefit most."""
        return [each.name for each in self.contenders if each.may_be_best]

    def pairs_needed(self, format_: str) -> int | None:
        """Pairs in all that a decision takes, if mean and sd are what they look like; None beyond reach or unknown."""
        return self.judged.pairs_needed(format_)

    def pairs_planned(self, format_: str) -> int | None:
        """Pairs that would show "no practical benefit" if there is none."""
        found, judged = self.intervals[format_], self.judged
        if found.n < 2:
            return None
        return needed_pairs(found.sd, formats=judged.size, correlation=judged.correlation)

    @property
    def is_primary(self) -> bool:
        """Stochastic storage alone: what the study declared as its question before it ran."""
        return self.storage == "stochastic" and not self.casts

    @property
    def names(self) -> tuple[str, str]:
        """The pair's optimizers for people."""
        first, second = map(optimizer_name, self.pair)
        return first, second

    @property
    def title(self) -> str:
        """How weights are stored, and the casts beside it."""
        stored = {"master": "float32 masters, cast weights", "": "no storage format"}.get(
            self.storage, f"{self.storage} storage"
        )
        return f"{stored}, {self.casts}" if self.casts else stored


def families(project: Project) -> list[FamilyOfFormats]:
    """Every family in which at least one format has both sides, the primary comparison and larger ones first."""
    found = []
    for condition in project.conditions:
        arms = project.arms(condition)
        tuning = project.tuning(condition)
        places = dict.fromkeys((arm.storage, arm.casts) for arm in arms if not arm.is_baseline and not arm.frozen)
        for storage, casts in places:
            inside = {a: losses for a, losses in arms.items() if (a.storage, a.casts) == (storage, casts)}
            if family := _family(project, condition, storage, casts, inside, tuning):
                found.append(family)
    return sorted(found, key=lambda f: (not f.is_primary, -len(f.effects)))


def side_of(project: Project, condition: str, arm: Arm, losses: Losses, tuning: set[int]) -> tuple[Side, bool] | None:
    """An arm at its rate, and whether its seeds had to serve twice; None without results on tuning seeds."""
    choice = best_rate(losses, tuning)
    if choice is None:
        return None
    here = losses[choice.rate]
    confirming = {seed: loss for seed, loss in here.items() if seed not in tuning}
    runs = project.of(arm, condition, choice.rate)
    side = Side(arm, choice, confirming or dict(here), sum(r.diverged for r in runs), len(runs))
    return side, not confirming


def _family(
    project: Project, condition: str, storage: str, casts: str, arms: dict[Arm, Losses], tuning: set[int]
) -> FamilyOfFormats | None:
    effects, reused = [], False
    for format_ in sorted({arm.format for arm in arms}, key=format_order):
        inside = [arm for arm in arms if arm.format == format_ and not arm.frozen]
        pair = [_closest(inside, optimizer) for optimizer in project.pair]
        sides = [side_of(project, condition, arm, arms[arm], tuning) if arm else None for arm in pair]
        if sides[0] is None or sides[1] is None:
            continue
        (first, again), (second, too) = sides[0], sides[1]
        shared = first.by_seed.keys() & second.by_seed.keys()
        if again != too or not shared:  # confirmed at other rates than these: all seeds at lr* must serve
            again = True
            first, second = (
                Side(s.arm, s.choice, arms[s.arm][s.choice.rate], s.diverged, s.runs) for s in (first, second)
            )
        reused = reused or again or too
        effects.append(Effect(format_, first, second))
    if not effects:
        return None
    return FamilyOfFormats(condition, storage, casts, tuple(effects), reused, frozenset(tuning), project.pair)


def _closest(arms: list[Arm], optimizer: str) -> Arm | None:
    """The arm of that optimizer with the fewest settings of its own; for AdamW, one that steps as it does will do."""
    own = [arm for arm in arms if arm.optimizer == optimizer and not arm.is_off]
    if not own and optimizer == STANDARD:
        own = [arm for arm in arms if arm.is_off]
    return min(own, key=lambda arm: len(arm.variant), default=None)


def short_name(optimizer: str) -> str:
    """An optimizer's name where there is little room."""
    return {"ManifoldAdamW": "Manifold"}.get(optimizer, optimizer)


def mean_or_nan(values: list[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def at_best_rate(project: Project, condition: str) -> dict[Arm, list[RunRecord]]:
    """Runs of every arm at its lr*, seeds in order."""
    tuning, found = project.tuning(condition), {}
    for arm, losses in project.arms(condition).items():
        if choice := best_rate(losses, tuning):
            found[arm] = sorted(project.of(arm, condition, choice.rate), key=lambda r: r.seed)
    return found


def main_arms(project: Project) -> dict[Arm, list[RunRecord]]:
    """The same in the condition that the verdict is about, or that most runs share."""
    family = main_family(project)
    return at_best_rate(project, family.condition if family else project.main())


def main_family(project: Project) -> FamilyOfFormats | None:
    """The family that the verdict is about."""
    return next(iter(families(project)), None)
