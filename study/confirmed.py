"""From losses to B, in the second edition: which cells are confirmed, with how many pairs, and their estimate.

lr* of a cell is the rate of its lowest mean loss over the screen's seeds. On the confirmation seeds it is run there and
an eighth of a decade to either side, and its loss is that of the vertex of the parabola through the three means, in
log lr:

    V = L0 - (L+ - L-)^2 / (8 (L+ + L- - 2 L0))        at  (L- - L+) / (2 (L+ + L- - 2 L0))  eighths from lr*

B = V(AdamW) - V(manifold). V is linear in the means to first order, so (delta method) each seed has a contribution
dV/dL- L- + dV/dL0 L0 + dV/dL+ L+, and the pairs of contributions have the mean and the sd that an interval takes. Where
the three do not bend upwards, or the vertex lies beyond them, V is the lowest of the three means, which is said.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from altgrad.statistics.distributions import student_quantile
from altgrad.statistics.intervals import LEVEL, MARGIN
from study.cell import Cell, format_of, named
from study.rows import losses, mean_losses

FIRST_STAGE = 8
EVEN = 0.15
FAMILY = 16
"""Confirmed differences in all: four formats with four cells each; the level of an interval is set for so many."""


@dataclass(frozen=True)
class Choice:
    """lr* of a cell, its mean loss over the screen's seeds, and the mean cv(T) of its field there."""

    rate: float
    loss: float
    cv: float

    @property
    def even(self) -> bool:
        """Whether its field is too even to be evidence about its format."""
        return self.cv < EVEN


Tuned = Mapping[Cell, Choice]


def choose(frame: pd.DataFrame, cell: Cell, rates: Sequence[float], seeds: Sequence[int]) -> Choice:
    """lr* of a cell among these rates; ties go to the smaller one."""
    means = dict(zip(rates, mean_losses(frame, cell, rates, seeds), strict=True))
    rate = min(sorted(rates), key=means.__getitem__)
    cvs = losses(frame, cell, rate, seeds, "cv_t").values()
    return Choice(rate, means[rate], math.fsum(cvs) / len(cvs))


def reference_of(found: Tuned, format_: str) -> Cell:
    """AdamW's cell of a format."""
    return next(cell for cell in found if format_of(cell) == format_ and named(cell)["optimizer"] == "adamw")


def dial(found: Tuned, format_: str, p: float, kappa: float) -> Cell:
    """Manifold's cell of a format at one place of the dial."""
    return next(
        cell for cell in found
        if format_of(cell) == format_ and (named(cell)["p"], named(cell)["kappa"]) == (p, kappa)
    )  # fmt: skip


def screened(found: Tuned, format_: str) -> dict[Cell, float]:
    """B of every manifold cell of a format on the screen, each arm at its own rate."""
    base = found[reference_of(found, format_)].loss
    cells = [cell for cell in found if format_of(cell) == format_ and named(cell)["optimizer"] == "manifold_adamw"]
    return {cell: base - found[cell].loss for cell in cells}


def cells_of(found: Tuned, format_: str) -> dict[Cell, float]:
    """The cells of a format that are confirmed, with their lr*: AdamW first."""
    benefit = screened(found, format_)
    telling = {cell: b for cell, b in benefit.items() if not found[cell].even} or benefit
    chosen = [
        reference_of(found, format_), dial(found, format_, 1.0, 2.0**-6), dial(found, format_, 1.0, 1.0),
        max(telling, key=telling.__getitem__), min(telling, key=telling.__getitem__),
    ]  # fmt: skip
    return {cell: found[cell].rate for cell in dict.fromkeys(chosen)}


@dataclass(frozen=True)
class Vertex:
    """The estimate of a cell's loss: its value, each seed's contribution (whose mean is the value), and where."""

    value: float
    by_seed: Mapping[int, float]
    at: float
    """Eighths of a decade from lr*."""
    inside: bool


def vertex(by_rate: Sequence[Mapping[int, float]]) -> Vertex:
    """Of losses by seed at an eighth below lr*, at it, and an eighth above; all three at the same seeds."""
    seeds = sorted(by_rate[1])
    table = np.array([[by[seed] for seed in seeds] for by in by_rate])
    low, mid, high = table.mean(axis=1)
    bend, slope = high + low - 2 * mid, high - low
    at = -slope / (2 * bend) if bend > 0 else math.inf
    if abs(at) > 1:
        best = int(np.argmin([low, mid, high]))
        return Vertex(float(table[best].mean()), dict(zip(seeds, table[best].tolist(), strict=True)), best - 1.0, False)
    tilt, bow = slope / (4 * bend), slope**2 / (8 * bend**2)
    weights = np.array([tilt + bow, 1 - 2 * bow, bow - tilt])
    value, parts = mid - slope**2 / (8 * bend), weights @ table
    return Vertex(float(value), dict(zip(seeds, (parts - parts.mean() + value).tolist(), strict=True)), float(at), True)


def vertex_of(
    frame: pd.DataFrame,
    cell: Cell,
    rate: float,
    beside: Callable[[float, int], float],
    seeds: Collection[int],
    column: str = "loss",
) -> Vertex | None:
    """The vertex of a cell on the seeds that all three rates have; None for none."""
    by_rate = [losses(frame, cell, beside(rate, place), seeds, column) for place in (-1, 0, 1)]
    shared = set.intersection(*(set(by) for by in by_rate))
    return vertex([{seed: by[seed] for seed in shared} for by in by_rate]) if shared else None


def benefits(one: Vertex, other: Vertex) -> dict[int, float]:
    """B by seed, of the seeds that both have."""
    return {seed: one.by_seed[seed] - other.by_seed[seed] for seed in one.by_seed if seed in other.by_seed}


def pairs_of(
    frame: pd.DataFrame, own: Mapping[Cell, float], beside: Callable[[float, int], float], seeds: Sequence[int]
) -> int:
    """How many pairs a format gets: FIRST_STAGE; once all of them are in, as many as their pooled sd asks for.

    own: its cells with lr*, AdamW first. Stein's second stage: the least n whose half-width, at that sd, is MARGIN.
    """
    first = list(seeds)[:FIRST_STAGE]
    found = [vertex_of(frame, cell, rate, beside, first) for cell, rate in own.items()]
    if any(each is None or len(each.by_seed) < FIRST_STAGE for each in found):
        return FIRST_STAGE
    base, *others = [each for each in found if each is not None]
    variances = [float(np.var(list(benefits(base, other).values()), ddof=1)) for other in others]
    sd, degrees = math.sqrt(sum(variances) / len(variances)), len(variances) * (FIRST_STAGE - 1)
    critical = student_quantile((1 + LEVEL ** (1 / FAMILY)) / 2, degrees)
    return min(max(FIRST_STAGE, math.ceil((critical * sd / MARGIN) ** 2)), len(seeds))


def lowest(
    frame: pd.DataFrame, cell: Cell, rate: float, beside: Callable[[float, int], float], seeds: Sequence[int]
) -> float | None:
    """Of lr* and an eighth to either side, that of the lowest mean loss over these seeds; None with one missing."""
    rates = [beside(rate, place) for place in (-1, 0, 1)]
    means = dict(zip(rates, mean_losses(frame, cell, rates, seeds), strict=True))
    return None if any(map(math.isnan, means.values())) else min(rates, key=means.__getitem__)
