"""which causal sentences of study/PLAN.md hold: each one's checks, as they were written before its runs were in.

A check is a quantity that is above 0 if the sentence holds, with an interval. A sentence is *refuted* by a check whose
interval lies at or below 0, and *holds* where all lie above (or as many as it says); otherwise it is *open*, and one
whose runs are not in is *missing*. FINDINGS.md shows all; only one that holds is said. Intervals are simultaneous
over the checks of a sentence, by the sd pooled over them where there are three seeds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from altgrad.statistics.intervals import MARGIN, Interval, simultaneous
from study import confound, parts, rows
from study.cell import Cell, format_of, named, reference
from study.pairs import difference, interval_cells, pooled
from study.second_tables import Lines, Second, table

PLAN = Path(__file__).resolve().parent / "PLAN.md"
BySeed = dict[int, float]
Checks = Mapping[str, Interval]
NEAR = 0.02
"""How far a smooth field may harm less than the grid's own, in nats."""
SIDED = ("e4m3f", "e7m0")
"""The formats of the side arms, as cells name them."""


@dataclass(frozen=True)
class Sentence:
    """checks: by what they look at; None where runs are missing, none where the question did not arise."""

    words: str
    runs: str
    checks: Callable[[Second], Checks | None]
    needed: int | None = None
    """How many checks must be above 0, if not all; refuted once so many cannot be."""


@dataclass(frozen=True)
class Judged:
    """What became of a sentence."""

    sentence: Sentence
    word: str
    checks: Checks


def judge(sentence: Sentence, study: Second) -> Judged:
    """Judge one."""
    found = sentence.checks(study)
    if found is None:
        return Judged(sentence, "missing", {})
    if not found:
        return Judged(sentence, "not put to the test", {})
    holds = sum(one.low > 0 for one in found.values())
    fails = sum(one.high <= 0 for one in found.values())
    needed = len(found) if sentence.needed is None else sentence.needed
    word = "holds" if holds >= needed else "refuted" if fails > len(found) - needed else "open"
    return Judged(sentence, word, found)


def stored(name: str, p: float = 1.0, kappa: float = 2.0**-6) -> Cell:
    """The screen's manifold cell of a format."""
    cells = parts.cells_in("screen")
    return next(c for c in cells if format_of(c) == name and (named(c)["p"], named(c)["kappa"]) == (p, kappa))


def plain(name: str) -> Cell:
    """The screen's AdamW of a format."""
    return next(c for c in parts.cells_in("screen") if format_of(c) == name and named(c)["optimizer"] == "adamw")


def arm(part: str, arm_: str, name: str) -> Cell:
    """The cell of an arm and a format in a matrix."""
    found = parts.cells_in(part).items()
    return next(cell for cell, own in found if own[0].spec.name == arm_ and format_of(cell) == name)


def over(found: Mapping[str, BySeed]) -> Checks | None:
    """Intervals of three seeds; None unless all are in."""
    if not all(len(by) == len(parts.SCREEN) for by in found.values()):
        return None
    return pooled(found)


def screened(study: Second, name: str) -> BySeed:
    """B of p = 1, kappa = 2^-6 by the screen's seeds."""
    return study.paired(stored(name), plain(name))


def halved(by: BySeed) -> BySeed:
    """Half of each."""
    return {seed: value / 2 for seed, value in by.items()}


def less(by: BySeed, bound: float) -> BySeed:
    """By how much each is above the bound."""
    return {seed: value - bound for seed, value in by.items()}


def decided(one: Interval) -> Interval:
    """Where an interval that holds 0 is enough to refute: nothing of it is above 0 then."""
    return one if one.low > 0 else replace(one, high=min(one.high, 0.0))


def field_alone(study: Second) -> Checks | None:
    """Harm on masters, and more than half of what is there with storage."""
    found: dict[str, BySeed] = {}
    for name in parts.STORED:
        field = mastered(name)
        b = study.paired(field, reference(field))
        found[f"{name}: half of the stored B less B on masters"] = difference(halved(screened(study, name)), b)
        if format_of(field) == name:
            found[f"{name}: harm on masters"] = {seed: -value for seed, value in b.items()}
    judged = over(found)
    return judged and {name: decided(one) if "harm" in name else one for name, one in judged.items()}


def mastered(name: str) -> Cell:
    """The cell on masters that has the field of a stored format at p = 1, kappa = 2^-6."""
    own = "e3m4f" if name == "e3m4f" else "e4m3f"
    cells = parts.cells_in("masters")
    return next(c for c in cells if format_of(c) == own and (named(c)["p"], named(c)["kappa"]) == (1.0, 2.0**-6))


def confirmed_b(study: Second, p: float, kappa: float) -> dict[str, BySeed] | None:
    """B by seed of one place of the dial, by format; None while pairs are missing."""
    found: dict[str, BySeed] = {}
    for (name, cell), (pairs, missing, *_) in study.confirmed_pairs.items():
        if (named(cell)["p"], named(cell)["kappa"]) == (p, kappa) and not missing:
            found[name] = pairs
    return found if len(found) == len(parts.STORED) else None


def coarseness(study: Second) -> Checks | None:
    """e4m3f, e5m2f and e7m0f have one field on masters, so what storage adds differs as B does."""
    b = confirmed_b(study, 1.0, 2.0**-6)
    if b is None:
        return None
    pairs = (("e4m3f", "e5m2f"), ("e5m2f", "e7m0"))
    return simultaneous({f"B in {one} less in {other}": difference(b[one], b[other]) for one, other in pairs})


def clipping(study: Second) -> Checks | None:
    """B under a fixed scale less B under a tracked one."""
    try:
        sides = confound.sides(study)
    except parts.Waiting:
        return None
    found = {name: difference(*b) for name, b in sides.items()}
    return simultaneous(found) if all(len(by) == len(parts.CONFIRM) for by in found.values()) else None


def magnitude(study: Second) -> Checks | None:
    """Shuffled harms less than the own field, smooth nearly as much."""
    found: dict[str, BySeed] = {}
    for name in SIDED:
        own = screened(study, name)
        found[f"{name}: shuffled"] = difference(study.paired(arm("sides", "shuffled", name), plain(name)), own)
        smooth = difference(study.paired(arm("sides", "smooth", name), plain(name)), own)
        found[f"{name}: {NEAR} less smooth"] = {seed: NEAR - value for seed, value in smooth.items()}
    return over(found)


def floor(study: Second) -> Checks | None:
    """B at kappa = 1 is above minus the margin."""
    b = confirmed_b(study, 1.0, 1.0)
    return None if b is None else simultaneous({name: less(by, -MARGIN) for name, by in b.items()})


def smaller_power(study: Second) -> Checks | None:
    """B at p = 1/4 less B at p = 1."""
    sides = {name: study.paired(stored(name, 0.25), plain(name)) for name in parts.STORED}
    return over({name: difference(by, screened(study, name)) for name, by in sides.items()})


def cliff_moves(study: Second) -> Checks | None:
    """Where AdamW's lr* has moved up, B has changed: the nearer end of its change, whichever way."""
    found: dict[str, BySeed] = {}
    asked = [(arm("sides", f"{a}-adamw", n), arm("sides", a, n), plain(n), screened(study, n), f"{n}: {a}")
             for n in SIDED for a in ("beta", "warmup")]  # fmt: skip
    for name in SIDED:
        base, own = llama(name, False)
        asked.append((*llama(name, True), base, study.paired(own, base), f"{name}: QK-norm"))
    for base, cell, before, b, words in asked:
        new, old, by = study.lowest(base), study.lowest(before), study.paired(cell, base)
        if new is None or old is None or not by or not b:
            return None
        if new.rate > old.rate * 1.01:
            found[words] = difference(by, b)
    return {name: _either_way(one) for name, one in pooled(found).items()}


def _either_way(one: Interval) -> Interval:
    """The same whichever sign a change has; without a change that can be told it is refuted."""
    return decided(one if one.mean >= 0 else replace(one, mean=-one.mean, low=-one.high, high=-one.low))


def llama(name: str, qk_norm: bool) -> tuple[Cell, Cell]:
    """AdamW's and manifold's cell of the second model."""
    kind = "llama+qk_norm" if qk_norm else "llama"
    cells = [c for c in parts.cells_in("llama") if format_of(c) == name and named(c)["model"] == kind]
    base = next(c for c in cells if named(c)["optimizer"] == "adamw")
    return base, next(c for c in cells if c != base)


def steadier(study: Second) -> Checks | None:
    """AdamW's mean cost over nine eighths less manifold's."""
    found: dict[str, BySeed] = {}
    for name in parts.STORED:
        one, other = cost(study, plain(name)), cost(study, stored(name))
        if one is None or other is None:
            return None
        found[name] = difference(one, other)
    return over(found)


def cost(study: Second, cell: Cell) -> BySeed | None:
    """By seed, the mean over nine eighths around lr* of min(L, L at step 0), less L at lr*; None with rates missing."""
    best = study.tuned.get(cell)
    if best is None:
        return None
    total = dict.fromkeys(parts.SCREEN, 0.0)
    for step in range(-parts.AROUND, parts.AROUND + 1):
        rate = parts.beside(best.rate, step)
        ended, began = (rows.losses(study.frame, cell, rate, parts.SCREEN, c) for c in ("loss", "loss_start"))
        if len(ended) < len(total):
            return None
        for seed in total:
            total[seed] += float(np.fmin(ended[seed], began[seed])) / 9
    return difference(total, rows.losses(study.frame, cell, best.rate, parts.SCREEN))


def adams(study: Second) -> Checks | None:
    """B of SGD with S less half of what Adam's cell has."""
    sides = {n: study.paired(arm("sgd", "sgd-s", n), arm("sgd", "sgd", n)) for n in SIDED}
    return over({name: difference(by, halved(screened(study, name))) for name, by in sides.items()})


def between_tensors(study: Second) -> Checks | None:
    """What `normalise: none` is ahead of `rms` by, less the margin."""
    sides = {name: (arm("none", "none", name), stored(name)) for name in SIDED}
    sides["e4m3f, spread"] = arm("spread", "none", "e4m3f"), arm("spread", "manifold", "e4m3f")
    return over({name: less(study.paired(none, rms), MARGIN) for name, (none, rms) in sides.items()})


def decay(study: Second) -> Checks | None:
    """B with decay less B without."""
    sides = {n: study.paired(arm("sides", "decay", n), arm("sides", "decay-adamw", n)) for n in SIDED}
    return over({name: difference(by, screened(study, name)) for name, by in sides.items()})


def second_model(study: Second) -> Checks | None:
    """B of the second model, turned to be above 0 where its sign is the GPT's."""
    b = confirmed_b(study, 1.0, 2.0**-6)
    if b is None:
        return None
    found: dict[str, BySeed] = {}
    for name in SIDED:
        base, cell = llama(name, False)
        sign = math.copysign(1.0, math.fsum(b[name].values()))
        found[name] = {seed: sign * value for seed, value in study.paired(cell, base).items()}
    return over(found)


SENTENCES = (
    Sentence("the harm of p = 1, kappa = 2^-6 is in the field, not in storage", "masters", field_alone),
    Sentence("what storage adds grows with coarseness", "confirm", coarseness),
    Sentence("clipping lessened the harm", "confound", clipping),
    Sentence("it is growth with magnitude that harms, not inequality", "sides: smooth, shuffled", magnitude),
    Sentence("the floor decides: no harm at kappa = 1", "confirm", floor),
    Sentence("a smaller p harms less", "screen", smaller_power, needed=3),
    Sentence("B at tuned rates rests on where AdamW's cliff is", "sides, llama", cliff_moves),
    Sentence("manifold is steadier where the rate is too high", "cliff", steadier),
    Sentence("the harm of the field is Adam's, whose directions are all of one size", "sgd", adams),
    Sentence("the mean per tensor hides a benefit between tensors", "none, spread", between_tensors, needed=1),
    Sentence("decay brings back small weights that the field holds", "sides: decay", decay),
    Sentence("it is not this model's alone", "llama", second_model),
)  # fmt: skip


def causes(study: Second) -> Lines:
    """Every sentence, what became of it, and what would have refuted it."""
    body = [
        [str(number), sentence.words, judge(sentence, study).word, sentence.runs, refuted_if(sentence)]
        for number, sentence in enumerate(SENTENCES, 1)
    ]
    return table(["", "sentence", "", "runs", "refuted if"], body)


def checks(study: Second) -> Lines:
    """What every sentence was put to: a quantity that is above 0 if it holds."""
    body = []
    for number, sentence in enumerate(SENTENCES, 1):
        for name, one in judge(sentence, study).checks.items():
            body.append([str(number), name, *interval_cells(one)])
    return table(["", "above 0 if the sentence holds", "", "95 % interval"], body)


@cache
def _planned() -> dict[str, str]:
    _, _, after = PLAN.read_text(encoding="utf-8").partition("| sentence | run | refuted if |\n|---|---|---|\n")
    rows_ = [line.split("|")[1:4] for line in after.partition("\n\n")[0].splitlines()]
    return {words.strip(): found.strip() for words, _, found in rows_}


def refuted_if(sentence: Sentence) -> str:
    """What the plan says would refute it."""
    return _planned()[sentence.words]
