"""Where the values of a tensor fall relative to the range of the format they enter.

With u the exact value in grid units, Q(u) its cast and n the numbers they are shares of:

    underflow    u != 0 finite, Q(u) = 0          of finite non-zero u
    subnormal    0 < |Q(u)| < smallest normal     of finite non-zero u
    saturation   |round(u)| > max, rounding as if the grid went on     of finite u
    non-finite   u is inf or NaN                  a count

Of a stored weight u is w~, what the step asks for, before storage bounds it: afterwards nothing is beyond max. Two more
numbers of it, over all n weights, say what a scale that is too small does in the long run, when requests are small and
w~ rounds to max and not beyond:

    pinned       the stored weight is +-max
    clipped      |u| > max, by however little

Saturation is judged on the *rounded* value: 450 rounds to 448 in e4m3fn and has not overflowed. (Transformer Engine
counts it, and divides both counts by all elements, zeros included; ours asks what became of the values there were.)

The moving average of a tensor's amax: how its range drifts, smoothed over steps.

    a <- rho a + (1 - rho) amax,    reported: a / (1 - rho^k) after k observations

Without the correction the average would start at 0 and climb for 1 / (1 - rho) steps, a drift that is not there. The
weight 1 - rho^k runs along as a number of its own, so an observation can be skipped: an amax that is 0 or not finite,
which says nothing about the range, moves neither. (Scales are kept in the same case.)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.measures.share import count, share
from altgrad.quantize.grid import beyond


def range_counts(exact: Tensor, unbounded: Tensor, rounded: Tensor, fmt: NumberFormat) -> dict[str, Tensor]:
    """Counts, as int64 scalars: finite, nonzero (finite and not 0), underflow, subnormal, saturated, nonfinite.

    exact, unbounded (rounded before the overflow rule) and rounded are float32 of one shape, in grid units. For E = 0,
    which has no normals, subnormal is 0.
    """
    magnitude = exact.abs()
    finite = magnitude < math.inf
    nonzero = finite & (exact != 0)
    size = rounded.abs()
    lowest = 0.0 if fmt.min_normal is None else float(fmt.min_normal)
    counts = {
        "finite": finite,
        "nonzero": nonzero,
        "underflow": nonzero & (rounded == 0),
        "subnormal": nonzero & (size > 0) & (size < lowest),
        "saturated": finite & beyond(unbounded, fmt),
    }
    found = {name: count(mask) for name, mask in counts.items()}
    found["nonfinite"] = exact.numel() - found["finite"]
    return found


def pinned_counts(exact: Tensor, rounded: Tensor, fmt: NumberFormat) -> dict[str, Tensor]:
    """Counts of a stored weight, as int64 scalars: pinned, clipped, weights. exact: w~, in grid units as `rounded`."""
    ends = (rounded <= float(fmt.lowest)) | (rounded >= float(fmt.highest))
    found = {"pinned": count(ends), "clipped": count(beyond(exact, fmt) & (exact.abs() < math.inf))}
    return found | {"weights": found["pinned"].new_full((), exact.numel())}


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
