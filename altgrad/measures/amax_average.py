"""The moving average of a tensor's amax: how its range drifts, smoothed over steps.

    a <- rho a + (1 - rho) amax,    reported: a / (1 - rho^k) after k observations

Without the correction the average would start at 0 and climb for 1 / (1 - rho) steps, a drift that is not there. The
weight 1 - rho^k runs along as a number of its own, so an observation can be skipped: an amax that is 0 or not finite,
which says nothing about the range, moves neither. (Scales are kept in the same case.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.measures.share import share


class AmaxAverage(NamedTuple):
    """A running average and the weight of what went into it, float64 of one shape."""

    average: Tensor
    weight: Tensor


def amax_average_start(amax: Tensor) -> AmaxAverage:
    """The average of no observation, for amaxes of this shape."""
    zeros = torch.zeros_like(amax, dtype=torch.float64)
    return AmaxAverage(zeros, zeros.clone())


def add_amax(state: AmaxAverage, amax: Tensor, rho: float = 0.99) -> AmaxAverage:
    """The average one observation on. amax: non-negative, any float dtype and shape, elementwise; rho in [0, 1)."""
    if not 0 <= rho < 1:
        raise ValueError(f"rho={rho}; the weight of the past is in [0, 1).")
    seen = (amax > 0) & amax.isfinite()
    average = rho * state.average + (1 - rho) * torch.where(seen, amax, 0).to(torch.float64)
    weight = rho * state.weight + (1 - rho)
    return AmaxAverage(torch.where(seen, average, state.average), torch.where(seen, weight, state.weight))


def average_amax(state: AmaxAverage) -> Tensor:
    """The bias-corrected average, float64; NaN before the first observation."""
    return share(state.average, state.weight)
