"""Norms of one tensor, safe against overflow: a gradient of 1e30 has a norm, and one of 1e-30 is not zero.

L2 squares in float64, in which the squares of float32 neither overflow nor vanish; a float64 tensor, for which that is
not so, is divided by its largest magnitude first. The norm over tensors is `l2_norm` of their stacked norms.
"""

import math

import torch
from torch import Tensor


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
