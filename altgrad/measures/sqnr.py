"""Signal to quantisation noise ratio: how much larger a tensor is than what its cast changed in it.

    SQNR = 10 log10( sum x^2 / sum (x - Q(x))^2 )  dB

A cast that changes nothing has an infinite SQNR; a signal of zero has none (NaN). Both sums are kept in float64 and can
be added up over the pieces of a tensor, or over tensors, before the logarithm: `energies` gives them, `decibels` ends.

Norms of one tensor, safe against overflow: a gradient of 1e30 has a norm, and one of 1e-30 is not zero.

L2 squares in float64, in which the squares of float32 neither overflow nor vanish; a float64 tensor, for which that is
not so, is divided by its largest magnitude first. The norm over tensors is `l2_norm` of their stacked norms.
"""

import math

import torch
from torch import Tensor


def energies(x: Tensor, cast: Tensor) -> tuple[Tensor, Tensor]:
    """sum x^2 and sum (x - cast)^2, float64 scalars; x and cast of one shape and any float dtype; 0 and 0 if empty."""
    exact = x.detach().to(torch.float64)
    error = exact - cast.detach().to(torch.float64)
    return exact.square().sum(), error.square_().sum()


def decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """10 log10(signal / noise), elementwise; inf where noise is 0, NaN where signal is 0 or either is not finite."""
    ratio = 10 * torch.log10(signal / noise)
    known = (signal > 0) & signal.isfinite() & noise.isfinite()
    return torch.where(known, ratio, torch.nan)


def sqnr(x: Tensor, cast: Tensor) -> Tensor:
    """SQNR of a tensor and its cast in dB: a float64 scalar; inf, NaN as `decibels`. inf or NaN in x gives NaN."""
    return decibels(*energies(x, cast))


def l2_norm(x: Tensor) -> Tensor:
    """sqrt(sum x^2): a float64 scalar; 0 if empty, NaN or inf where x has one. x: any shape, any float dtype."""
    exact = x.detach().to(torch.float64)
    if x.dtype is not torch.float64:
        return exact.square().sum().sqrt()
    top = linf_norm(exact)
    safe = torch.where((top > 0) & top.isfinite(), top, 1.0)
    return (exact / safe).square().sum().sqrt() * safe


def linf_norm(x: Tensor) -> Tensor:
    """max |x|: a float64 scalar; 0 if empty, NaN or inf where x has one. x: any shape, any float dtype."""
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=x.device)
    largest: Tensor = torch.linalg.vector_norm(x.detach(), math.inf)
    return largest.to(torch.float64)
