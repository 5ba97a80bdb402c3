"""Scales with their repetitions taken out.

A scaling gives a scale that broadcasts with its tensor; for blocks that is a tensor of the same shape, in which every
number stands once for each element of its block. Kept are the `entries` alone and how many elements one of them spans
along each axis. It serves a scale for the tensor, for each channel, for rows of 32 and for squares alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmallScale:
    """entries: float32, of as many axes as the tensor, or none. block: elements one entry spans along each axis.

    An axis along which there is one entry broadcasts; a last block may be ragged. clamped: how many entries would lie
    beyond the range of scales and were clamped to its ends, an int64 scalar; None where nobody asked.
    """

    entries: Tensor
    block: tuple[int, ...]
    clamped: Tensor | None = None

    @property
    def turned(self) -> "SmallScale":
        """The scale of the transposed tensor, whose last two axes are exchanged."""
        if self.entries.ndim < 2:
            return self
        return SmallScale(self.entries.mT, (*self.block[:-2], self.block[-1], self.block[-2]), self.clamped)

    def rows(self, start: int, stop: int) -> "SmallScale":
        """The scale of the tensor's rows start to stop (exclusive), which may begin and end within a block."""
        if self.entries.ndim == 0 or len(self.entries) == 1:
            return self
        if self.block[0] == 1:
            return SmallScale(self.entries[start:stop], self.block)
        return SmallScale(self.entries[torch.arange(start, stop) // self.block[0]], (1, *self.block[1:]))

    def meet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and the scale as two tensors that broadcast: x seen as whole blocks, or as it is where some are ragged.

        The view of x has an axis more for each that is cut into blocks, and the same elements in the same order.
        """
        entries, shape = self.entries, tuple(x.shape)
        if entries.ndim == 0:
            return x, entries
        self._require(shape)
        seen: tuple[int, ...] = ()
        repeated: tuple[int, ...] = ()
        for size, number, step in zip(shape, entries.shape, self.block, strict=True):
            if number > 1 and step > 1 and size % step:
                return x, self.spread(shape)
            seen += (number, step) if number > 1 and step > 1 else (size,)
            repeated += (number, 1) if number > 1 and step > 1 else (number,)
        return x.view(seen), entries.reshape(repeated)

    def spread(self, shape: tuple[int, ...]) -> Tensor:
        """The scale as a tensor that broadcasts with one of `shape`. ValueError if it does not fit."""
        entries, block = self.entries, self.block
        if entries.ndim == 0:
            return entries
        self._require(shape)
        for axis, (size, step) in enumerate(zip(shape, block, strict=True)):
            if entries.shape[axis] > 1 and step > 1:
                entries = entries.repeat_interleave(step, axis).narrow(axis, 0, size)
        return entries

    def _require(self, shape: tuple[int, ...]) -> None:
        entries, block = self.entries, self.block
        fits = len(block) == entries.ndim == len(shape) and min(block) >= 1
        if not fits or any(
            found not in (1, -(-size // step)) for found, size, step in zip(entries.shape, shape, block, strict=True)
        ):
            raise ValueError(f"a scale of {list(entries.shape)} in blocks of {list(block)} does not fit {list(shape)}.")
