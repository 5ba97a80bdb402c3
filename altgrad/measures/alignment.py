"""Grid alignment: how far weights lie from the grid, in spacings.

    offset = |w - Q(w)| / spacing(w), in [0, 1/2];   aligned: w = Q(w)

Stored weights are aligned, all of them; masters uniform in their cells have a mean offset near 1/4, and masters that
gather on the grid or halfway between its values say that training feels it. Beyond the reach of the format, where
rounding would pass the largest value, there is no grid to be aligned with: such weights are left out, as are inf and
NaN, and the number of those that were inside is part of the result.
"""

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding, parse_format
from altgrad.measures.share import count, share
from altgrad.quantize.grid import Scale, grid_units, inside, round_units, spacing_units


def grid_offset(weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """|w - Q(w)| / spacing(w): float32, same shape, in [0, 1/2]; NaN beyond the reach of the format.

    weights: float32, bf16 or fp16. 0 only where w is on the grid, but for float32 sub-normals so far below a smallest
    gap above 1 that the quotient leaves float32.
    """
    return _offset(weights, fmt, scale)[0]


def alignment_sums(weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> dict[str, Tensor]:
    """Scalars: offset (float64 sum), aligned (int64, exactly on the grid), inside (int64, what both are shares of)."""
    offset, aligned = _offset(weights, fmt, scale)
    return {
        "offset": offset.nansum(dtype=torch.float64),
        "aligned": count(aligned),
        "inside": count(~offset.isnan()),
    }


def alignment(weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> dict[str, Tensor]:
    """Of one tensor: mean_offset and aligned_share, float64 scalars; NaN if no weight is inside the format's reach."""
    sums = alignment_sums(weights, fmt, scale=scale)
    return {
        "mean_offset": share(sums["offset"], sums["inside"]),
        "aligned_share": share(sums["aligned"], sums["inside"]),
    }


def _offset(weights: Tensor, fmt: NumberFormat | str, scale: Scale) -> tuple[Tensor, Tensor]:
    """The offset, and whether it is exactly none."""
    fmt = parse_format(fmt) if isinstance(fmt, str) else fmt
    fmt.require_tensor_domain()
    u = grid_units(weights, scale)
    q = round_units(u, fmt, Rounding.nearest_even)
    reached = inside(q, fmt)
    offset = torch.where(reached, (u - q).abs() / spacing_units(u, fmt), torch.nan)
    return offset, reached & (u == q)
