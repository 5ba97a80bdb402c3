"""Do large steps meet stiff weights? The correlation of |a| with the spacing S, a the requested update or a gradient.

Pearson on log2|a| against log2 S, and Spearman, which is Pearson on ranks. S takes a few dozen values, so ties decide:
tied elements share the mean of the ranks they occupy. With v sorted, that is

    rank(x) = (#{v < x} + #{v <= x} + 1) / 2,

two binary searches, and no dependence on how equal elements were ordered. Only elements with a != 0 and finite take
part; the others sort behind them and weigh nothing, so the shape stays fixed. A constant side has no correlation (NaN),
nor have fewer than three elements. Constancy is judged by the extremes, not by a variance that rounding leaves above 0.

It costs two sorts. For a large layer take `spread_sample` of both tensors: 2^14 elements have a standard error < 0.008.
"""

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.measures.quantiles import ascending, tally
from altgrad.measures.stiffness import stiffness_bin, stiffness_exponents
from altgrad.measures.ulp import ulps
from altgrad.quantize.grid import Scale


def log_correlation(a: Tensor, stiffness: Tensor) -> dict[str, Tensor]:
    """pearson and spearman of log2|a| and log2 S, with n, the elements they rest on: float64 scalars.

    a: any float dtype; stiffness: the same shape, positive, as `spacing` gives it. NaN if either is constant or n < 3.
    """
    size, spread = a.detach().abs().flatten(), stiffness.detach().flatten()
    used = (size > 0) & (size < torch.inf) & (spread > 0) & (spread < torch.inf)
    n = torch.count_nonzero(used)
    if a.numel() == 0:
        nothing = torch.full((), torch.nan, dtype=torch.float64, device=a.device)
        return {"pearson": nothing, "spearman": nothing.clone(), "n": n.to(torch.float64)}
    known = (n >= 3) & _varies(size, used) & _varies(spread, used)
    logs = (_logs(size, used), _logs(spread, used))
    ranks = (_ranks(size, used), _ranks(spread, used))
    return {
        "pearson": torch.where(known, _pearson(*logs, used), torch.nan),
        "spearman": torch.where(known, _pearson(*ranks, used), torch.nan),
        "n": n.to(torch.float64),
    }


def below_half_by_binade(
    requested: Tensor, weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None
) -> dict[str, Tensor]:
    """Requests smaller than S / 2, by the binade of S: below_half and attempted, int64 [len(stiffness_exponents(fmt))].

    Over finite requests other than 0. Their quotient, `share(below_half, attempted)`, is NaN for an unused binade.
    """
    index, size = stiffness_bin(weights, fmt, scale=scale), len(stiffness_exponents(fmt))
    attempted = (requested != 0) & requested.isfinite()
    below = ulps(requested, weights, fmt, scale=scale).abs() < 0.5
    return {"below_half": tally(index, attempted & below, size), "attempted": tally(index, attempted, size)}


def _logs(x: Tensor, used: Tensor) -> Tensor:
    return torch.where(used, x, 1).to(torch.float64).log2()


def _ranks(x: Tensor, used: Tensor) -> Tensor:
    """Ranks among the used elements, ties sharing their mean: float64; of no meaning for the others."""
    x = torch.where(used, x, torch.inf)
    ordered = ascending(x)
    below, through = (torch.searchsorted(ordered, x, right=right) for right in (False, True))
    return (below + through + 1).to(torch.float64) / 2


def _varies(x: Tensor, used: Tensor) -> Tensor:
    return torch.where(used, x, torch.inf).amin() < torch.where(used, x, 0).amax()


def _pearson(x: Tensor, y: Tensor, used: Tensor) -> Tensor:
    """Two passes: means first, so that a small variance about a large mean survives."""
    n = torch.count_nonzero(used)
    x, y = (torch.where(used, z - torch.where(used, z, 0).sum() / n, 0) for z in (x, y))
    return ((x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())).clamp(-1, 1)
