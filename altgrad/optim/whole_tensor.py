"""A gradient, or a weight, as one plain dense tensor, whatever autograd or a sharding left in its place.

`nn.Embedding(sparse=True)` leaves a sparse tensor, whose entries that nobody looked up are zeros and whose rows may be
listed several times, to be added up; FSDP2 and tensor parallelism leave a DTensor, of which each process holds a shard.
Measures are of all entries. So wherever one looks at a gradient or a weight, one looks at it through this.

What works element by element takes the part of a DTensor that this process holds (`own_part`); what needs more gathers
it, and gives every process its part of the result back (`sharded_as`).
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["is_sharded", "make_dense", "own_part", "part_as", "sharded_as", "whole_tensor"]


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


def own_part(x: Tensor) -> Tensor:
    """What of x this process holds, as a plain tensor on the same memory; of a tensor that is no DTensor all of it."""
    found = x.detach()
    return cast(Tensor, cast(Any, found).to_local()) if is_sharded(found) else found


def sharded_as(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as a DTensor that lies as `like` does; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def part_as(part: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor as the DTensor, of the shape of `like`, that all parts make; nothing is sent."""
    from torch.distributed.tensor import DTensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
