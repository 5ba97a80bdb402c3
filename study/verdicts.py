"""The confirmed cells' B by pairs, and the verdict on each: at the vertex of three rates, and at fixed rates beside it.

The vertex is the plan's estimate (`study.confirmed`), and its word is the cell's. At fixed rates each cell has that of
its three rates whose mean over the first stage's seeds is lowest, and B is that of the second stage's seeds, which
chose nothing (PLAN.md, changes).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pandas as pd

from altgrad.statistics.intervals import MARGIN, Interval
from altgrad.statistics.verdict import FEW, Family
from study import confirmed, parts, rows
from study.cell import Cell
from study.pairs import difference

WIDEST = 0.02
"""Nats: no confirmed interval should be wider."""
WORDS = {
    "above": "benefit", "below": "harm", "inside": "no practical effect", "direction only": "direction only",
    "undecided": "undecided",
}  # fmt: skip
Where = tuple[str, Cell]
"""A format and a cell."""


class Pairs(NamedTuple):
    """B of a cell by seed, how many pairs are missing, and whether both vertices lie between their three rates.

    rates: AdamW's and the cell's, where they are fixed.
    """

    by_seed: dict[int, float]
    missing: int
    inside: bool = True
    rates: tuple[float, float] | None = None


class Judged(NamedTuple):
    """A confirmed cell. word: of WORDS, `none` of a cell that is no evidence, `missing` of one that lacks pairs.

    rate: lr*, or its fixed rate; base_rate: AdamW's fixed rate, 0 at the vertex.
    """

    format: str
    cell: Cell
    rate: float
    interval: Interval
    word: str
    notes: str
    missing: int
    base_rate: float = 0.0


def cells_by_format(frame: pd.DataFrame) -> dict[str, tuple[dict[Cell, float], int]]:
    """The confirmed cells with lr*, AdamW first, and the pairs that their format gets; none before the screen is in."""
    try:
        tuned = parts.tuned(frame)
    except parts.Waiting:
        return {}
    found = {name: confirmed.cells_of(tuned, name) for name in parts.STORED}
    return {name: (own, confirmed.pairs_of(frame, own, parts.beside, parts.CONFIRM)) for name, own in found.items()}


def confirmed_pairs(frame: pd.DataFrame) -> dict[Where, Pairs]:
    """At the vertex of three rates."""
    found: dict[Where, Pairs] = {}
    for name, (own, n) in cells_by_format(frame).items():
        base, *others = own
        sides = {c: confirmed.vertex_of(frame, c, r, parts.beside, parts.CONFIRM) for c, r in own.items()}
        for cell in others:
            one, other = sides[base], sides[cell]
            pairs = {} if one is None or other is None else confirmed.benefits(one, other)
            inside = one is not None and other is not None and one.inside and other.inside
            found[name, cell] = Pairs(pairs, max(n - len(pairs), 0), inside)
    return found


def fixed_pairs(frame: pd.DataFrame) -> dict[Where, Pairs]:
    """At rates that the first stage chose, on the seeds after it; none of a format whose first stage is not in."""
    first, after = parts.CONFIRM[: confirmed.FIRST_STAGE], parts.CONFIRM[confirmed.FIRST_STAGE :]
    found: dict[Where, Pairs] = {}
    for name, (own, _) in cells_by_format(frame).items():
        chosen = {cell: confirmed.lowest(frame, cell, rate, parts.beside, first) for cell, rate in own.items()}
        rates = {cell: rate for cell, rate in chosen.items() if rate is not None}
        if len(rates) < len(own):
            continue
        base, *others = own
        sides = {cell: rows.losses(frame, cell, rate, after) for cell, rate in rates.items()}
        for cell in others:
            pairs = difference(sides[base], sides[cell])
            found[name, cell] = Pairs(pairs, len(after) - len(pairs), rates=(rates[base], rates[cell]))
    return found


def judged(found: Mapping[Where, Pairs], tuned: confirmed.Tuned, marks: Callable[[Cell, float], str]) -> list[Judged]:
    """Every cell; one family of all of them. marks: why a cell at a rate is no evidence, empty if it is."""
    keys = {at: "|".join(at) for at in found}
    family = Family({keys[at]: pairs.by_seed for at, pairs in found.items()})
    cells = []
    for at, pairs in found.items():
        base_rate, rate = pairs.rates or (0.0, tuned[at[1]].rate)
        why = marks(at[1], rate)
        if pairs.missing:  # a family of few pairs decides nothing, and its intervals may be infinite
            word, told = "missing", f"{pairs.missing} pairs missing"
        elif why:
            word, told = "none", "none"
        else:
            word, told = WORDS[family.decision(keys[at])], verdict(family, keys[at])
        outside = bool(pairs.by_seed) and not pairs.inside
        notes = ", ".join([told, *filter(None, [why]), *["vertex outside"] * outside])
        cells.append(Judged(*at, rate, family.intervals[keys[at]], word, notes, pairs.missing, base_rate))
    return cells


def beyond_direction(one: Interval) -> int:
    """The pairs at which an interval of this mean and sd would no longer hold the margin's end that it holds."""
    half, left = (one.high - one.low) / 2, max(abs(abs(one.mean) - MARGIN), 1e-6)
    return math.ceil(one.n * (half / left) ** 2)


def verdict(family: Family, key: str) -> str:
    """The word; where it is open, or the interval too wide, the pairs that it would take."""
    one, decision = family.intervals[key], family.decision(key)
    told = [WORDS[decision]]
    if decision == "undecided":
        needed = family.pairs_needed(key)
        told.append("beyond reach" if needed is None else f"about {needed} pairs")
    if decision == "direction only":
        told.append(f"about {beyond_direction(one)} pairs for more than that")
    if one.n <= FEW and family.cautious_decision(key) != decision:
        told.append("fragile")
    if one.high - one.low > WIDEST:
        told.append(f"wider than {WIDEST}, which takes about {math.ceil(one.n * ((one.high - one.low) / WIDEST) ** 2)}")
    return ", ".join(told)
