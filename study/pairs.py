"""Differences by seed, their mean, and their intervals as text."""

import math
from collections.abc import Mapping

import numpy as np

from altgrad.numerals import signed
from altgrad.statistics.distributions import student_quantile
from altgrad.statistics.intervals import Interval
from study.cell import Cell


def interval_cells(one: Interval) -> list[str]:
    """Mean and interval as two cells."""
    if one.n == 0:
        return ["-", "-"]
    bounds = f"[{signed(one.low)}, {signed(one.high)}]" if one.n > 1 else "-"
    return [signed(one.mean), bounds]


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """By the seeds that both have."""
    return {seed: value - other[seed] for seed, value in one.items() if seed in other}


def mean(by_seed: Mapping[int, float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(by_seed.values()) / len(by_seed) if by_seed else math.nan


def pooled(paired: Mapping[Cell, Mapping[int, float]]) -> dict[Cell, Interval]:
    """Intervals over one family by the sd pooled over it (Sidak): three seeds alone know little of their spread."""
    full = {cell: np.array(list(by.values())) for cell, by in paired.items() if len(by) > 1}
    degrees = sum(len(values) - 1 for values in full.values())
    if not degrees:
        return {}
    sd = math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in full.values()) / degrees)
    critical = student_quantile((1 + 0.95 ** (1 / len(full))) / 2, degrees)
    found = {}
    for cell, values in full.items():
        half, centre = critical * sd / math.sqrt(len(values)), float(values.mean())
        found[cell] = Interval(centre, sd, len(values), centre - half, centre + half)
    return found
