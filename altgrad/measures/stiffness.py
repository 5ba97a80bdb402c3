"""The stiffness field: the spacing of the format over the weights, one ulp each, as a histogram by binade.

Spacing takes one value a binade, 2^(e_min - M) to 2^(max_binade - M) in grid units, so a histogram over those exponents
*is* the field, its shape a matter of the format alone; snapshots of it over training show weights moving between
binades. Sub-normals and zeros share the smallest spacing, and everything beyond the largest value has that of the
largest. With a scale s the field in the units of the weights is s times as large: under one scale per tensor that
shifts the exponents; under one per channel take `log_histogram(spacing(w, fmt, scale=s), LogBins(split=0))`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, parse_format
from altgrad.measures.quantiles import tally
from altgrad.quantize.grid import Scale, grid_units, spacing_units


def stiffness_exponents(fmt: NumberFormat | str) -> range:
    """log2 of the spacings that the format has, in grid units, ascending: e_min - M to max_binade - M.

    A table's spacings are any numbers; they are counted by their binade.
    """
    fmt = parse_format(fmt) if isinstance(fmt, str) else fmt
    return fmt.spacing_binades


def stiffness_bin(weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """The place of each weight's spacing in `stiffness_exponents`: int32, same shape; NaN and inf get the last."""
    fmt = parse_format(fmt) if isinstance(fmt, str) else fmt
    fmt.require_tensor_domain()
    gaps = spacing_units(grid_units(weights, scale), fmt)  # frexp, since the smallest gap may be a float32 sub-normal
    return torch.frexp(gaps).exponent - (1 + stiffness_exponents(fmt)[0])


def stiffness_histogram(weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """How many finite weights have each spacing: int64 [len(stiffness_exponents(fmt))]; adds up over pieces."""
    index = stiffness_bin(weights, fmt, scale=scale)
    return tally(index, weights.isfinite(), len(stiffness_exponents(fmt)))


def stiffness_quantiles(histogram: Tensor, fmt: NumberFormat | str, shares: Sequence[float]) -> Tensor:
    """Quantiles of the spacing in grid units: float64 [len(shares)]; NaN for an empty histogram.

    Exact: the smallest spacing that a share q of the weights does not exceed (NumPy's `inverted_cdf`); of a table the
    binade of that spacing.
    """
    through = histogram.cumsum(0)
    total = through[-1].to(torch.float64)
    wanted = torch.tensor(shares, dtype=torch.float64, device=histogram.device) * total
    index = torch.searchsorted(through.to(torch.float64), wanted.clamp(min=1)).clamp(max=len(histogram) - 1)
    values = torch.tensor([2.0**e for e in stiffness_exponents(fmt)], dtype=torch.float64, device=histogram.device)
    return torch.where(total > 0, values[index], torch.nan)
