"""Products of cast operands: in a dtype where it holds every value of both casts, else in float32 and rounded once.

In a compiled graph a product that is rounded to bfloat16 is rounded by its bits. A compiler keeps what it fuses in
float32 and leaves a conversion there and back out, so that whatever follows in the graph would see the sum unrounded,
other numbers than an eager run's.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from altgrad.quantize.traced import named_once
from altgrad.quantize.transform import to_bfloat16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """F.linear of matrices in `dtype`, or in float32 and rounded to it."""
    inner = dtype if x.dtype == weight.dtype == dtype else torch.float32
    added = None if bias is None else bias.to(dtype).to(inner)
    with torch.autocast(x.device.type, enabled=False):
        return rounded(F.linear(x.to(inner), weight.to(inner), added), dtype)


def matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b, likewise."""
    inner = dtype if a.dtype == b.dtype == dtype else torch.float32
    with torch.autocast(a.device.type, enabled=False):
        return rounded(a.to(inner) @ b.to(inner), dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in dtype."""
    by_bits = torch.compiler.is_compiling() and x.dtype == torch.float32 and dtype == torch.bfloat16
    return (to_bfloat16(x) if by_bits else x).to(dtype)


def as_matrix(x: Tensor) -> Tensor:
    """x [..., n] as a matrix [rows, n]; the number of rows is said, since that of none cannot be found out."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix of our own making in another shape, and no view of it, so that the caller may change it in place."""
    return named_once(x) if x.shape == shape else torch.ops.aten._unsafe_view(x, shape)
