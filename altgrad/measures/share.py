"""How counts become ratios: a share of nothing is NaN.

Measures return counts and sums, which add up over micro-batches, pieces and ranks; a ratio of each piece does not. So
the division comes last, and here, in float64, since a count of weights passes what float32 holds exactly.

How many are true: a scalar that adds up over pieces.

A compiled graph counts in int32 where that cannot overflow: a vector of int64 holds half as many, and counting is most
of what a fused pass over a tensor does.
"""

import math
from typing import overload

import torch
from torch import Tensor


def count(mask: Tensor) -> Tensor:
    """How many elements of a boolean tensor are true: an int64 scalar."""
    if not torch.compiler.is_compiling() or mask.numel() >= 1 << 31:
        return torch.count_nonzero(mask)
    return mask.sum(dtype=torch.int32).to(torch.int64)


@overload
def share(part: Tensor, whole: Tensor) -> Tensor: ...
@overload
def share(part: float, whole: float) -> float: ...
def share(part: Tensor | float, whole: Tensor | float) -> Tensor | float:
    """part / whole, NaN where whole is 0: float64 of the tensors' shape, elementwise, or a float of two numbers."""
    if isinstance(part, Tensor) and isinstance(whole, Tensor):
        return torch.where(whole == 0, math.nan, part.to(torch.float64) / whole)
    return part / whole if whole else math.nan
