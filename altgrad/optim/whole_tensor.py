"""A gradient, or a weight, as one plain dense tensor, whatever autograd or a sharding left in its place.

`nn.Embedding(sparse=True)` leaves a sparse tensor, whose entries that nobody looked up are zeros and whose rows may be
listed several times, to be added up; FSDP2 and tensor parallelism leave a DTensor, of which each process holds a shard.
Measures are of all entries. So wherever one looks at a gradient or a weight, one looks at it through this.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["is_sharded", "make_dense", "whole_tensor"]


def whole_tensor(x: Tensor) -> Tensor:
    """The dense tensor that x stands for, detached; itself (detached) if it is one.

    Of a DTensor the full one: its processes must ask together.
    """
    found = x.detach()
    if is_sharded(found):
        found = cast(Any, found).full_tensor()
    return found.to_dense() if found.layout is not torch.strided else found


def make_dense(parameters: Iterable[Tensor]) -> None:
    """Replace sparse gradients of these parameters by the dense ones they stand for."""
    for p in parameters:
        if p.grad is not None and p.grad.layout is not torch.strided:
            p.grad = p.grad.to_dense()


def is_sharded(x: Tensor) -> bool:
    """Whether x is a DTensor, of which this process holds a part."""
    return hasattr(x, "full_tensor")
