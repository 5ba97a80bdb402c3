"""Stalls: updates that were asked for and left no trace in the weight's code.

    attempted      requested != 0 (NaN included)
    stall          attempted, and the code unchanged at the same scale
    stall ratio    stalls / attempted, in [0, 1]; NaN if nothing was attempted
                   = 1 - flips / updates, both counted on the attempted

Flips over all weights divided by updates over some is no ratio: an attempt at it once came to -99. A stall ratio near 1
is no failure by itself: under float32 masters the request is kept all the same and the loss does not suffer.

Under nearest storage a stall can be predicted: the step ends closer to the old grid value than to its neighbour,
|delta| < gap / 2 *in its direction*, which towards zero from a power of two is a quarter of a spacing. A step of half
a gap is a tie, whose outcome the parity of the code decides; it is not predicted. Outward from the largest value every
step stalls. Beside it stand two measures that do not look at codes: the share of all weights whose stored value
stayed (zero updates), and how much of the request became real:

    effective update ratio = <requested, realised> / |requested|^2,

1 where storage applied the request, 0 where nothing moved, on average 1 under stochastic storage.
"""

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.measures.flips import flipped, gap_fraction
from altgrad.measures.share import count, share
from altgrad.quantize.grid import Scale


def stall_counts(
    before: Tensor, after: Tensor, requested: Tensor, fmt: NumberFormat | str, *, scale: Scale = None
) -> dict[str, Tensor]:
    """Counts, as int64 scalars: attempted and stalls.

    before, after, requested: one shape, float32, bf16 or fp16; weights on the grid, or masters, which count by the code
    they round to. scale: that of this step, for both.
    """
    attempted = requested != 0
    stalled = attempted & ~flipped(before, after, fmt, scale=scale)
    return {"attempted": count(attempted), "stalls": count(stalled)}


def stall_ratio(
    before: Tensor, after: Tensor, requested: Tensor, fmt: NumberFormat | str, *, scale: Scale = None
) -> Tensor:
    """stalls / attempted of one step: a float64 scalar in [0, 1]; NaN if nothing was attempted."""
    counts = stall_counts(before, after, requested, fmt, scale=scale)
    return share(counts["stalls"], counts["attempted"])


def predicted_stall_counts(
    weights: Tensor, requested: Tensor, fmt: NumberFormat | str, *, scale: Scale = None
) -> dict[str, Tensor]:
    """What nearest storage of weights + requested would stall: int64 scalars attempted and predicted_stalls.

    weights: on the grid.
    """
    attempted = requested != 0
    stalled = attempted & (gap_fraction(weights, requested, fmt, scale=scale) < 0.5)
    return {"attempted": count(attempted), "predicted_stalls": count(stalled)}


def zero_update_counts(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Stored weights of the same value after a step, over all: int64 scalars unchanged and weights.

    +0 and -0 are the same value, and NaN is none: where it stays it does not count as unchanged.
    """
    size = torch.full((), before.numel(), dtype=torch.int64, device=before.device)
    return {"unchanged": count(before == after), "weights": size}


def zero_update_fraction(before: Tensor, after: Tensor) -> Tensor:
    """unchanged / weights of one step: a float64 scalar; NaN for an empty tensor."""
    counts = zero_update_counts(before, after)
    return share(counts["unchanged"], counts["weights"])


def effective_update_sums(requested: Tensor, realised: Tensor) -> dict[str, Tensor]:
    """<requested, realised> and |requested|^2, float64 scalars called overlap and energy.

    realised: the change of the weight that the forward *uses*. The sums of float32 tensors cannot overflow.
    """
    asked = requested.detach().to(torch.float64)
    return {"overlap": (asked * realised).sum(), "energy": asked.square().sum()}


def effective_update_ratio(requested: Tensor, realised: Tensor) -> Tensor:
    """overlap / energy of one step: a float64 scalar; NaN for a request of zeros, and where either is not finite."""
    sums = effective_update_sums(requested, realised)
    ratio = share(sums["overlap"], sums["energy"])
    return torch.where(ratio.isfinite() & sums["energy"].isfinite(), ratio, torch.nan)
