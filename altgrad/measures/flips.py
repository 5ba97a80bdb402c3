"""Flips: weights whose code changed at a fixed scale, where their codes travel, and how many should have changed.

A flip compares *codes*: the grid values that weights round to under this step's scale, so +0 and -0 are one and weights
off the grid (float32 masters) count by their nearest. How far a flip went is counted in rungs. What a new scale does to
resting weights is a rescale flip and is kept apart: codes of the old weights under the old scale, then under the new
one, then those of the new weights; each comparison changes one thing. A sign flip goes from one sign to the other in a
single step; a code that stops at zero has no sign.

How many flips chance allows, for a request delta and a weight w:

    stochastic storage   P = min(1, |delta| / gap(w, sign delta))     w on the grid
    master weights       P = min(1, |delta| / cell width)             w uniform in its rounding cell

The first is the probability of rounding up in value space; a longer step always passes its neighbour. The second: x
leaves its cell [a, b] by a step delta > 0 iff x > b - delta, a share delta / (b - a) of the cell. A cell ends halfway
to each neighbour, so its width is the mean of the gaps inward and outward:

    zero, a sub-normal, the smallest normal   one spacing (at zero half of it on either side)
    2^k above the smallest normal             1/4 + 1/2 = 3/4 spacing: the binade below is twice as fine
    any other value                           one spacing
    the largest value                         the same, its outer end where the next value would have rounded up

What lies beyond that outer end saturates and is in no cell. Outward from the largest value there is no neighbour, and
P is 0: the storage saturates. A request of NaN makes the code NaN and is a certain flip; a weight that is not finite
has a code that no request changes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding, parse_format
from altgrad.measures.share import count
from altgrad.quantize import gap, round_to, rung
from altgrad.quantize.grid import NO_RUNG, Scale, bound_units, grid_units, round_units


def flipped(before: Tensor, after: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """Whether each code changed: bool, of the weights' shape. Both are float32, bf16 or fp16, under one scale."""
    fmt = _parsed(fmt)
    return _differ(_landed(before, fmt, scale), _landed(after, fmt, scale))


def _landed(x: Tensor, fmt: NumberFormat, scale: Scale) -> Tensor:
    """The grid value nearest to each element, in grid units: tells codes apart as rungs do, in half the time."""
    fmt.require_tensor_domain()
    return bound_units(round_units(grid_units(x, scale), fmt, Rounding.nearest_even), fmt)


def _differ(old: Tensor, new: Tensor) -> Tensor:
    """Whether two grid values are of two codes; all NaN are of one."""
    return (old != new) & ((old == old) | (new == new))


def flip_counts(before: Tensor, after: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> dict[str, Tensor]:
    """Counts, as int64 scalars: flips, sign_flips (among them), weights (all of them)."""
    fmt = _parsed(fmt)
    old, new = _landed(before, fmt, scale), _landed(after, fmt, scale)
    return {
        "flips": count(_differ(old, new)),
        "sign_flips": count(((old < 0) & (new > 0)) | ((old > 0) & (new < 0))),
        "weights": torch.full((), old.numel(), dtype=torch.int64, device=old.device),
    }


def rescale_flip_counts(
    weights: Tensor, fmt: NumberFormat | str, old_scale: Scale, new_scale: Scale
) -> dict[str, Tensor]:
    """Codes of the same weights that a new scale changed: int64 scalars rescale_flips and weights."""
    fmt = _parsed(fmt)
    changed = _differ(_landed(weights, fmt, old_scale), _landed(weights, fmt, new_scale))
    size = torch.full((), weights.numel(), dtype=torch.int64, device=weights.device)
    return {"rescale_flips": count(changed), "weights": size}


class Trail(NamedTuple):
    """Where each code has been since the trail began; tensors of the weights' shape."""

    direction: Tensor
    """int8: the sign of the last flip; 0 before the first."""
    net: Tensor
    """int32: rungs from the start to here, signed: the accumulated bit position."""
    gross: Tensor
    """int32: rungs passed, whatever their direction."""


def trail_start(weights: Tensor) -> Trail:
    """The trail of weights that have not moved yet."""
    none = torch.zeros_like(weights, dtype=torch.int32)
    return Trail(none.to(torch.int8), none, none.clone())


def follow_trail(
    trail: Trail, before: Tensor, after: Tensor, fmt: NumberFormat | str, *, scale: Scale = None
) -> tuple[Trail, Tensor]:
    """The trail one step on, and where that step's flip reversed the one before it (bool).

    A reversal is a flip in the direction opposite to the last flip, however long ago that was. Steps from or to a NaN
    have no length and no direction.
    """
    old, new = rung(before, fmt, scale=scale), rung(after, fmt, scale=scale)
    known = (old != NO_RUNG) & (new != NO_RUNG)
    step = torch.where(known, new - old, 0)
    sign, last = step.sign(), trail.direction.to(torch.int32)  # what processors compute with; bytes are for keeping
    reversed_ = sign * last < 0
    direction = torch.where(sign == 0, last, sign).to(torch.int8)
    return Trail(direction, trail.net + step, trail.gross + step.abs()), reversed_


def trail_sums(trail: Trail) -> dict[str, Tensor]:
    """Rungs travelled by all weights, as int64 scalars: net (sum of |net| over weights) and gross.

    net / gross is 1 where every weight went straight and near 0 where they went to and fro.
    """
    return {"net": trail.net.abs().sum(), "gross": trail.gross.sum()}


def oscillation_average(frequency: Tensor, reversals: Tensor, momentum: float) -> Tensor:
    """momentum * reversals + (1 - momentum) * frequency, float32: how often a weight's flips reverse, lately.

    Per weight as in Nagel et al. (arXiv 2203.11086, eq. 4), or of a tensor's share of reversals; start from zeros.
    """
    return torch.lerp(frequency, reversals.to(frequency.dtype), momentum)


def gap_fraction(weights: Tensor, delta: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """|delta| / gap(w, sign delta), float32: the step as a part of the way to the neighbouring grid value.

    weights: on the grid. 0 where there is no neighbour (outward from the largest value) and where the weight is not
    finite; inf for a request of NaN.
    """
    u, d = grid_units(weights, scale), grid_units(delta, scale)
    return _part(u, d, gap(u, fmt, d), _parsed(fmt))


def cell_fraction(masters: Tensor, delta: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """|delta| / width of the rounding cell in which each master weight lies, float32; edges as in `gap_fraction`."""
    u, d = grid_units(masters, scale), grid_units(delta, scale)
    q = round_to(u, fmt)
    ends = gap(q, fmt, q) + gap(q, fmt, -q)  # twice the width, since 3/4 of the finest gaps may leave float32
    part = _part(q, d, ends, _parsed(fmt))
    return torch.where(u.abs() < torch.inf, 2 * part, 0.0)


def expected_flips(weights: Tensor, delta: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """Flips that stochastic storage of weights + delta makes on average: a float64 scalar; weights on the grid."""
    return gap_fraction(weights, delta, fmt, scale=scale).clamp(max=1).sum(dtype=torch.float64)


def expected_master_flips(masters: Tensor, delta: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """Flips of masters + delta on average over the positions of the masters in their cells: a float64 scalar."""
    return cell_fraction(masters, delta, fmt, scale=scale).clamp(max=1).sum(dtype=torch.float64)


def _part(u: Tensor, d: Tensor, length: Tensor, fmt: NumberFormat) -> Tensor:
    """|d| / length, where u has a neighbour on the side of d."""
    outward = ((u > 0) & (d > 0)) | ((u < 0) & (d < 0))
    barred = (outward & ((u <= float(fmt.lowest)) | (u >= float(fmt.highest)))) | ~(u.abs() < torch.inf)
    part = torch.where(d == d, d.abs() / length, torch.inf)
    return torch.where(barred, 0.0, part)


def _parsed(fmt: NumberFormat | str) -> NumberFormat:
    return parse_format(fmt) if isinstance(fmt, str) else fmt
