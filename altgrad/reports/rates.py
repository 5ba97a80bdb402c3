"""The learning rate at which an arm is judged, and whether the grid of rates can be trusted.

    lr* = argmin over rates of the mean loss over the tuning seeds

on the rates that all tuning seeds were run at. A run that diverged enters with the loss of knowing nothing,
ln(vocabulary). An lr* at the end of its grid may not be the optimum: `edge` says which end, and the study extends it.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from altgrad.spec.ranking import badness

Losses = dict[float, dict[int, float]]
"""Loss by learning rate and seed."""


@dataclass(frozen=True)
class ChosenRate:
    """lr*, its mean loss over n tuning seeds, the rates compared, and the end of the grid that it lies on, if any.

    `edge` is `only` where there was one rate to choose from.
    """

    rate: float
    loss: float
    n: int
    rates: tuple[float, ...]
    edge: Literal["low", "high", "only", ""]


def choose_rate(losses: Losses, tuning: Collection[int]) -> ChosenRate | None:
    """lr* of one arm; None where none of the tuning seeds has a loss. Ties go to the smaller rate."""
    seen = {rate: {s: v for s, v in by_seed.items() if s in tuning} for rate, by_seed in sorted(losses.items())}
    most = max((len(by_seed) for by_seed in seen.values()), default=0)
    if most == 0:
        return None
    means = {rate: math.fsum(v.values()) / most for rate, v in seen.items() if len(v) == most}
    rates = tuple(means)
    best = min(rates, key=lambda rate: (badness(means[rate], "higher"), rate))
    edge: Literal["low", "high", "only", ""] = ""
    if len(rates) == 1:
        edge = "only"
    elif best in (rates[0], rates[-1]):
        edge = "low" if best == rates[0] else "high"
    return ChosenRate(best, means[best], most, rates, edge)


def best_rate(losses: Losses, tuning: Collection[int]) -> ChosenRate | None:
    """lr* by the tuning seeds, or by whatever seeds there are where none of those has a loss."""
    return choose_rate(losses, tuning) or choose_rate(losses, {seed for by_seed in losses.values() for seed in by_seed})


def split_seeds(grids: Collection[Losses]) -> tuple[set[int], set[int]]:
    """(tuning seeds, confirmation seeds), told apart by what was run in all arms together.

    Only arms that were swept count. Tuning seeds were run at the most of their rates; the others, run at lr* and
    perhaps half a decade around it, confirm. Where every seed was run alike there are no confirmation seeds apart:
    the second set is empty.
    """
    widths: dict[int, int] = {}
    swept = [losses for losses in grids if len(losses) > 1] or list(grids)
    for losses in swept:
        for by_seed in losses.values():
            for seed in by_seed:
                widths[seed] = widths.get(seed, 0) + 1
    if not widths:
        return set(), set()
    most = max(widths.values())
    tuning = {seed for seed, width in widths.items() if width > 0.75 * most}
    return tuning, {seed for losses in grids for by_seed in losses.values() for seed in by_seed} - tuning
