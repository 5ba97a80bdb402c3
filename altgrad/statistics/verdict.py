"""The verdict on arms: each arm's difference from a reference arm, its interval, and the one word that follows.

A *family* is a set of paired differences that are judged together. Its intervals are simultaneous (max-t, 95 %); for
n <= 12 pairs Bonferroni's t interval is given beside, because skewed noise takes max-t's coverage to 88 %. The word
comes from the interval [l, u] and the margin d alone (`altgrad.statistics.intervals.decide`); for a loss

    u <= -d  better       l >= d  worse       -d < l and u < d  equivalent (two one-sided tests at 2.5 % each)
    0 outside [l, u] otherwise  direction only       else  undecided, with the seeds it would take

One seed decides nothing: noise between runs is not in a single pair, however long its curves are. The number of seeds
it would take is then that of a first stage of 8 pairs, whose spread sets the rest (Stein 1945).

A diverged run enters as the loss of knowing nothing, ln(vocabulary), and is counted beside. Where that loss is not
known (NaN) its pair has no number; leaving such pairs out would favour the arm that diverges, so that the arm stays
undecided. Where all runs of both arms diverged, equal losses of knowing nothing do not make them equivalent.

    judge({"bf16": {0: 2.31, 1: 2.33, 2: 2.30}, "fp8": {0: 2.36, 1: 2.39, 2: 2.34}}, "bf16").sentence

p-values are Student's for the arm by itself: `p_zero` of a difference of 0, `p_equivalent` of one of d or more either
way (Schuirmann 1987). For one arm beside the reference p_zero < 0.05 wherever the interval excludes 0, and
p_equivalent < 0.025 wherever it lies inside (-d, d); a family's verdicts follow from its wider intervals.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from altgrad.numerals import counted, signed
from altgrad.spec.messages import listed
from altgrad.statistics.distributions import critical_value, student_cdf
from altgrad.statistics.intervals import (
    LEVEL,
    MARGIN,
    Decision,
    Interval,
    Paired,
    common_correlation,
    decide,
    interval_of_mean,
    seeds_in_common,
    simultaneous,
)
from altgrad.statistics.power import pairs_to_decide

Verdict: TypeAlias = Literal[
    "better", "worse", "equivalent", "direction only", "undecided", "one seed", "no seed in common", "reference"
]
WORDS: dict[Decision, Verdict] = {
    "above": "worse", "below": "better", "inside": "equivalent",
    "direction only": "direction only", "undecided": "undecided",
}  # fmt: skip
OPEN: tuple[Verdict, ...] = ("direction only", "undecided", "one seed", "no seed in common")
"""Verdicts that leave open whether an arm is as good as the reference."""
COUNTED: Mapping[str, str] = {
    "better": "better", "worse": "worse", "equivalent": "equivalent", "direction only": "apart by an undecided size",
    "undecided": "undecided",
}  # fmt: skip
"""In a sentence of several arms."""
FIRST_STAGE = 8
"""Pairs whose spread sets the number of all."""
SHOWN = 6
"""So many arms have their intervals in the sentence; of more, the one that is ahead."""
FEW = 12
"""Up to so many pairs Bonferroni's interval is given beside max-t's."""


@dataclass(frozen=True)
class Family:
    """Paired differences by name that are judged together."""

    paired: Paired
    margin: float = MARGIN

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """By name, simultaneous by max-t."""
        return simultaneous(self.paired)

    @cached_property
    def bonferroni(self) -> dict[str, Interval]:
        """By name, simultaneous by Bonferroni's inequality: wider, and less dependent on normality."""
        level = 1 - (1 - LEVEL) / max(self.size, 1)
        return {
            name: interval_of_mean(np.array(list(pairs.values())), critical_value(len(pairs), 1, level=level))
            for name, pairs in self.paired.items()
        }

    @cached_property
    def size(self) -> int:
        """Names that have an interval."""
        return sum(len(pairs) > 1 for pairs in self.paired.values())

    @cached_property
    def correlation(self) -> float:
        """Between the differences, over the seeds that those with an interval share."""
        return common_correlation(
            seeds_in_common({name: pairs for name, pairs in self.paired.items() if len(pairs) > 1})
        )

    def decision(self, name: str) -> Decision:
        """What its interval decides."""
        return decide(self.intervals[name], self.margin)

    def cautious_decision(self, name: str) -> Decision:
        """What Bonferroni's interval decides."""
        return decide(self.bonferroni[name], self.margin)

    def pairs_needed(self, name: str) -> int | None:
        """Pairs in all that a decision takes, if mean and sd are what they look like; None beyond reach or unknown."""
        found = self.intervals[name]
        if found.n < 2:
            return None
        return pairs_to_decide(
            found.mean, found.sd, margin=self.margin, formats=self.size, correlation=self.correlation
        )


@dataclass(frozen=True)
class ArmVerdict:
    """One arm: what it came to, and how that differs from the reference.

    runs: results it has, of which so many `diverged`; unnumbered: pairs with a diverged run whose loss is not known.
    interval and bonferroni: of the difference, arm less reference.
    verdict: by interval; bonferroni_verdict: by the other one, which is told where it differs and n is small (`FEW`).
    more_seeds: about how many more an open verdict would take; None where that is unknown or beyond reach.
    """

    arm: str
    runs: int
    diverged: int
    unnumbered: int
    mean: float
    interval: Interval
    bonferroni: Interval
    verdict: Verdict
    bonferroni_verdict: Verdict
    more_seeds: int | None
    p_zero: float
    p_equivalent: float

    @property
    def is_open(self) -> bool:
        """Whether the arm may still be better, worse or as good."""
        return self.verdict in OPEN

    @property
    def is_fragile(self) -> bool:
        """Whether few seeds were run and Bonferroni's interval would not give the verdict."""
        return self.interval.n <= FEW and self.verdict != self.bonferroni_verdict


@dataclass(frozen=True)
class Comparison:
    """Every arm beside the reference, in the order they came; `arms[reference].verdict` is "reference".

    better: whether lower or higher values are. unit: of the values, for the sentences.
    """

    reference: str
    arms: Mapping[str, ArmVerdict]
    margin: float = MARGIN
    better: Literal["lower", "higher"] = "lower"
    unit: str = "nats"

    @property
    def judged(self) -> list[ArmVerdict]:
        """All but the reference."""
        return [arm for name, arm in self.arms.items() if name != self.reference]

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        judged = self.judged
        if len(judged) == 1:
            return self.sentence_of(judged[0])
        if all(map(self._fell, self.arms.values())):
            return f"All {sum(arm.runs for arm in self.arms.values())} runs of {len(self.arms)} arms diverged."
        if all(arm.interval.n < 2 for arm in judged):
            return self._single_seeds(judged)
        if len(judged) > SHOWN:
            return self._counts(judged)
        undecided = [arm for arm in judged if arm.verdict == "undecided"]
        told = "; ".join([f"{arm.arm} {_told(arm)}" for arm in judged] + [_more(undecided)] * bool(undecided))
        unit = f", in {self.unit}" if self.unit else ""
        return f"Compared with {self.reference}{unit}: {told}."

    def sentence_of(self, arm: ArmVerdict) -> str:
        """The answer for one arm."""
        found, reference = arm.interval, self.reference
        size = f"{signed(found.mean)}{self._unit}"
        if found.n > 1:
            size += f" {_bounds(found)}"
        based = f"{size}, {counted(found.n, 'seed')}"
        match arm.verdict:
            case "better" | "worse":
                return f"{arm.arm} is {arm.verdict} than {reference}: {based}."
            case "equivalent":
                return f"{arm.arm} is equivalent to {reference} within {self.margin:g}{self._unit}: {based}."
            case "direction only":
                way = "higher" if found.mean > 0 else "lower"
                return (
                    f"{arm.arm} is {way} than {reference} ({based}), but whether by {self.margin:g}{self._unit} "
                    "or more is undecided."
                )
            case "no seed in common":
                return f"Undecided: {arm.arm} and {reference} have no seed in common."
            case "one seed":
                return (
                    f"Undecided: one seed an arm cannot decide between {arm.arm} and {reference} ({size}); "
                    f"about {arm.more_seeds} more seeds would show how far runs differ by chance."
                )
        base = self.arms[reference]
        if self._fell(arm) and self._fell(base):
            return f"Every run diverged, {arm.runs} of {arm.arm} and {base.runs} of {reference}."
        if arm.unnumbered:
            return (
                f"Undecided: {arm.diverged} of {counted(arm.runs, 'run')} of {arm.arm} diverged and {base.diverged} of "
                f"{base.runs} of {reference}, and what that costs is not known."
            )
        return f"Undecided between {arm.arm} and {reference}: {based}; {_more([arm])}."

    def _single_seeds(self, judged: list[ArmVerdict]) -> str:
        """The answer where no arm has two seeds in common with the reference."""
        sized = [f"{arm.arm} ({signed(arm.interval.mean)})" for arm in judged if arm.interval.n]
        if not sized:
            return f"Undecided: none of {len(judged)} arms has a seed in common with {self.reference}."
        unit = f", in {self.unit}" if self.unit else ""
        more = max(arm.more_seeds or 0 for arm in judged)
        return (
            f"Undecided: one seed an arm cannot decide between {self.reference} and {_few(sized)}{unit}; about "
            f"{counted(more, 'more seed')} would show how far runs differ by chance."
        )

    def _counts(self, judged: list[ArmVerdict]) -> str:
        """The answer for more arms than a sentence can have: how many are what, and the one that is ahead."""
        sign = 1 if self.better == "lower" else -1
        groups = {word: [arm for arm in judged if _in_short(arm) == word] for word in COUNTED}
        counts = [f"{len(arms)} {COUNTED[word]}" for word, arms in groups.items() if arms]
        number, _, rest = counts[0].partition(" ")
        counts[0] = f"{number} {'is' if number == '1' else 'are'} {rest}"
        if groups["undecided"]:
            counts[-1] += f" ({_more(groups['undecided'])})"
        told = listed(counts if groups["better"] else ["none is better", *counts], "and")
        sized = [arm for arm in groups["better"] or judged if arm.interval.n > 1]
        ahead = min(sized, key=lambda arm: sign * arm.interval.mean)
        place = "furthest ahead" if groups["better"] else "the lowest" if sign > 0 else "the highest"
        size = f"{signed(ahead.interval.mean)}{self._unit} {_bounds(ahead.interval)}"
        return f"Of {len(judged)} arms compared with {self.reference}, {told}; {place} is {ahead.arm}, {size}."

    def _fell(self, arm: ArmVerdict) -> bool:
        """Whether all its runs diverged."""
        return arm.runs > 0 and arm.diverged == arm.runs

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


def judge(
    arms: Mapping[str, Mapping[int, float]],
    reference: str,
    *,
    margin: float = MARGIN,
    better: Literal["lower", "higher"] = "lower",
    diverged: Mapping[str, Collection[int]] | None = None,
    unit: str = "nats",
) -> Comparison:
    """Compare every arm with the reference arm, paired by seed.

    arms: by name, the final value by seed, of runs that completed or diverged; of a diverged run the loss of knowing
    nothing, or NaN where that is not known. diverged: by name, the seeds of those runs.

    ValueError for a reference that is no arm, or a margin that is not above 0.
    """
    if reference not in arms:
        raise ValueError(f"the reference is {reference!r}; the arms are {', '.join(arms)}.")
    if not margin > 0:
        raise ValueError(f"margin is {margin}; it must be above 0.")
    base = arms[reference]
    both = {
        name: {seed: value - base[seed] for seed, value in by_seed.items() if seed in base}
        for name, by_seed in arms.items() if name != reference
    }  # fmt: skip
    fallen = {name for name, by_seed in arms.items() if by_seed and set(by_seed) <= set((diverged or {}).get(name, ()))}
    lost = {name: sum(not math.isfinite(value) for value in pairs.values()) for name, pairs in both.items()}
    known = {name: {s: v for s, v in pairs.items() if math.isfinite(v)} for name, pairs in both.items()}
    family = Family(known, margin)
    found = {}
    for name, by_seed in arms.items():
        values = [value for value in by_seed.values() if math.isfinite(value)]
        mean = math.fsum(values) / len(values) if values else math.nan
        count = len(set((diverged or {}).get(name, ())) & set(by_seed))
        if name == reference:
            alone = Interval(0.0, 0.0, len(values), 0.0, 0.0)
            found[name] = ArmVerdict(
                name, len(by_seed), count, 0, mean, alone, alone, "reference", "reference", None, math.nan, math.nan
            )
            continue
        stuck = lost[name] > 0 or {name, reference} <= fallen
        verdict: Verdict = "undecided" if stuck else _verdict(family, name, family.decision(name), better)
        other: Verdict = "undecided" if stuck else _verdict(family, name, family.cautious_decision(name), better)
        interval = family.intervals[name]
        found[name] = ArmVerdict(
            name, len(by_seed), count, lost[name], mean, interval, family.bonferroni[name], verdict, other,
            None if stuck else _more_seeds(family, name, verdict),
            p_zero(interval), p_equivalent(interval, margin),
        )  # fmt: skip
    return Comparison(reference, found, margin, better, unit)


def p_zero(found: Interval) -> float:
    """The two-sided p of Student's t for a difference of 0; NaN below two pairs."""
    if found.n < 2:
        return math.nan
    return 2 * student_cdf(-abs(_t(found, 0.0)), found.n - 1)


def p_equivalent(found: Interval, margin: float = MARGIN) -> float:
    """The p of two one-sided tests for a difference of `margin` or more, either way; NaN below two pairs."""
    if found.n < 2:
        return math.nan
    return max(student_cdf(-_t(found, -margin), found.n - 1), student_cdf(_t(found, margin), found.n - 1))


def _t(found: Interval, at: float) -> float:
    gap, error = found.mean - at, found.sd / math.sqrt(found.n)
    return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0


def _verdict(family: Family, name: str, decision: Decision, better: Literal["lower", "higher"]) -> Verdict:
    n = len(family.paired[name])
    if n < 2:
        return "one seed" if n else "no seed in common"
    word = WORDS[decision]
    opposite: dict[Verdict, Verdict] = {"worse": "better", "better": "worse"}
    return word if better == "lower" else opposite.get(word, word)


def _more_seeds(family: Family, name: str, verdict: Verdict) -> int | None:
    n = len(family.paired[name])
    if verdict in ("one seed", "no seed in common"):
        return FIRST_STAGE - n
    needed = family.pairs_needed(name) if verdict == "undecided" else None
    return None if needed is None else max(needed - n, 1)


def _bounds(found: Interval) -> str:
    return f"[{signed(found.low)}, {signed(found.high)}]"


def _told(arm: ArmVerdict) -> str:
    """Verdict and size of one of a few arms."""
    if arm.unnumbered:
        return f"is undecided, {arm.diverged} of {counted(arm.runs, 'run')} diverged"
    if arm.interval.n < 2:
        return f"has {arm.verdict}" + (f", {signed(arm.interval.mean)}" if arm.interval.n else "")
    return f"is {COUNTED[arm.verdict]}, {signed(arm.interval.mean)} {_bounds(arm.interval)}"


def _in_short(arm: ArmVerdict) -> str:
    """What it is counted as."""
    return "undecided" if arm.verdict in OPEN[1:] else arm.verdict


def _few(names: list[str], most: int = 4) -> str:
    """The names, of more than `most` the first few and how many more."""
    kept = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return listed(kept, "and")


def _more(arms: list[ArmVerdict]) -> str:
    """`about 9 more seeds would decide`, of several arms the most."""
    if any(arm.unnumbered for arm in arms):
        return "what a diverged run costs is not known"
    known = [arm.more_seeds for arm in arms if arm.more_seeds is not None]
    if not known:
        return "no number of seeds within reach would decide"
    return f"about {counted(max(known), 'more seed')} would decide"
