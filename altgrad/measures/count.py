"""How many are true: a scalar that adds up over pieces.

A compiled graph counts in int32 where that cannot overflow: a vector of int64 holds half as many, and counting is most
of what a fused pass over a tensor does.
"""

import torch
from torch import Tensor


def count(mask: Tensor) -> Tensor:
    """How many elements of a boolean tensor are true: an int64 scalar."""
    if not torch.compiler.is_compiling() or mask.numel() >= 1 << 31:
        return torch.count_nonzero(mask)
    return mask.sum(dtype=torch.int32).to(torch.int64)
