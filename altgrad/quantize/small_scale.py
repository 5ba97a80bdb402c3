"""Scales with their repetitions taken out.

A scaling gives a scale that broadcasts with its tensor; for blocks that is a tensor of the same shape, in which every
number stands once for each element of its block. Kept are the `entries` alone and how many elements one of them spans
along each axis. It serves a scale for the tensor, for each channel, for rows of 32 and for squares alike.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmallScale:
    """entries: float32, of as many axes as the tensor, or none. block: elements one entry spans along each axis.

    An axis along which there is one entry broadcasts; a last block may be ragged.
    """

    entries: Tensor
    block: tuple[int, ...]

    @classmethod
    def of(cls, scale: Tensor) -> "SmallScale":
        """The scale without its repetitions, which are found from its values, bit for bit.

        Along an axis, an entry stands for the longest runs that begin at multiples of one number.
        """
        scale, block = scale.to(torch.float32), []
        for axis in reversed(range(scale.ndim)):
            size = scale.shape[axis]
            bits = scale.contiguous().view(torch.int32).movedim(axis, 0).reshape(size, -1)
            changes = (bits[1:] != bits[:-1]).any(1).nonzero().flatten() + 1
            step = math.gcd(*changes.tolist()) or max(size, 1)
            block.append(step)
            scale = scale.index_select(axis, torch.arange(0, size, step))
        return cls(scale.contiguous(), tuple(reversed(block)))

    def rows(self, start: int, stop: int) -> "SmallScale":
        """The scale of the tensor's rows start to stop (exclusive); start at the beginning of a block."""
        if self.entries.ndim == 0 or len(self.entries) == 1:
            return self
        step = self.block[0]
        assert start % step == 0
        return SmallScale(self.entries[start // step : -(-stop // step)], self.block)

    def spread(self, shape: tuple[int, ...]) -> Tensor:
        """The scale as a tensor that broadcasts with one of `shape`. ValueError if it does not fit."""
        entries, block = self.entries, self.block
        if entries.ndim == 0:
            return entries
        fits = len(block) == entries.ndim == len(shape) and min(block) >= 1
        if not fits or any(
            found not in (1, -(-size // step)) for found, size, step in zip(entries.shape, shape, block, strict=True)
        ):
            raise ValueError(f"a scale of {list(entries.shape)} in blocks of {list(block)} does not fit {list(shape)}.")
        for axis, (size, step) in enumerate(zip(shape, block, strict=True)):
            if entries.shape[axis] > 1 and step > 1:
                entries = entries.repeat_interleave(step, axis).narrow(axis, 0, size)
        return entries
