"""Scales with their repetitions taken out, and how a cast uses them.

A scaling gives a scale that broadcasts with its tensor; for blocks that is a tensor of the same shape, in which every
number stands once for each element of its block. Kept are the `entries` alone and how many elements one of them spans
along each axis. It serves a scale for the tensor, for each channel, for rows of 32 and for squares alike.

Everywhere x ~ q * scale. But recipes compute x / scale and q * scale in orders of their own (`arithmetic.py`), which
differ in the last bit, and `Scales` says which:

    in grid units       x / scale        or  x * factor        or  x / divisor
    values              q * scale        or  (q * inner) * outer        or  q / factor
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.quantize.grid import in_float32, keep_infinite
from altgrad.quantize.traced import in_rows, repeated

LARGEST = (2 - 2.0**-23) * 2.0**127
"""float32's largest number."""


class Scales(NamedTuple):
    """The numbers of one cast, float32, each broadcastable with the tensor; see the head of this file."""

    scale: Tensor
    factor: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None
    """inner and outer come together, and their product, rounded, is `scale`."""
    divides: bool = False
    """Whether values are q / factor."""
    divisor: Tensor | None = None
    """What x is divided by, where that is the scale before it was rounded to its format."""

    @property
    def is_plain(self) -> bool:
        """Whether values are q * scale."""
        return self.inner is None and not self.divides

    def units(self, x: Tensor, *, zeros: bool = False) -> Tensor:
        """x in grid units, float32. zeros: scales can be 0; where one is, x is divided by 1."""
        x = in_float32(x)
        if self.factor is None:
            divisor = self.scale if self.divisor is None else self.divisor
            return x / (torch.where(divisor == 0, 1.0, divisor) if zeros else divisor)
        units = x * self.factor
        # What is finite stays so, else a monitor would take a block that is given up for one with infinities.
        return torch.where(x.abs() < math.inf, units.clamp(-LARGEST, LARGEST), units)

    def values(self, q: Tensor) -> Tensor:
        """The values of q, which is in grid units. An infinity stays one where the scale is 0."""
        if self.divides:
            assert self.factor is not None
            return q / self.factor
        values = q * self.scale if self.inner is None or self.outer is None else q * self.inner * self.outer
        return keep_infinite(q, values)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Scales":
        """The same with every number changed."""
        factor, inner, outer = (None if part is None else change(part) for part in self[1:4])
        divisor = None if self.divisor is None else change(self.divisor)
        return Scales(change(self.scale), factor, inner, outer, self.divides, divisor)


@dataclass(frozen=True)
class SmallScale:
    """entries: float32, of as many axes as the tensor, or none. block: elements one entry spans along each axis.

    An axis along which there is one entry broadcasts; a last block may be ragged. clamped: how many entries would lie
    beyond the range of scales and were clamped to its ends, an int64 scalar; None where nobody asked. factor, inner,
    outer, divides, divisor: how they are used, as `Scales` has it; of the shape of entries, `outer` also without axes.
    """

    entries: Tensor
    block: tuple[int, ...]
    clamped: Tensor | None = None
    factor: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None
    divides: bool = False
    divisor: Tensor | None = None

    @classmethod
    def of(cls, scales: Scales, block: tuple[int, ...], clamped: Tensor | None = None) -> "SmallScale":
        """The scales of blocks, each given once."""
        return cls(scales.scale, block, clamped, *scales[1:])

    @classmethod
    def stacked(cls, scales: "Sequence[SmallScale]") -> "SmallScale":
        """The scale, plain, of a stack of matrices, from those of each, which are alike but for their numbers."""
        entries = torch.stack([each.entries.view(1, 1) if each.entries.ndim == 0 else each.entries for each in scales])
        clamped = [each.clamped for each in scales if each.clamped is not None]
        return cls(entries, (1, *(scales[0].block or (1, 1))), torch.stack(clamped).sum() if clamped else None)

    @property
    def is_plain(self) -> bool:
        """Whether values are q * scale."""
        return self.inner is None and not self.divides

    @property
    def turned(self) -> "SmallScale":
        """The scale of the transposed tensor, whose last two axes are exchanged.

        A graph would walk through the tensor as the scales lie, which is across it, one number at a time.
        """
        if self.entries.ndim < 2:
            return self
        made = self._each(lambda part: in_rows(part.mT) if part.ndim else part)
        return replace(made, block=(*self.block[:-2], self.block[-1], self.block[-2]), clamped=self.clamped)

    def rows(self, start: int, stop: int) -> "SmallScale":
        """The scale of the tensor's rows start to stop (exclusive), which may begin and end within a block."""
        if self.entries.ndim == 0 or len(self.entries) == 1:
            return self
        if self.block[0] == 1:
            return self._each(lambda part: part[start:stop] if part.ndim else part)
        number = torch.arange(start, stop) // self.block[0]
        made = self._each(lambda part: part[number] if part.ndim else part)
        return replace(made, block=(1, *self.block[1:]))

    def where(self, chosen: Tensor, other: "SmallScale") -> "SmallScale":
        """The other's numbers for the blocks chosen, a mask of the shape of entries; `outer` and the rest are ours."""

        def of(mine: Tensor | None, its: Tensor | None) -> Tensor | None:
            return None if mine is None or its is None else torch.where(chosen, its, mine)

        return replace(
            self, entries=torch.where(chosen, other.entries, self.entries), factor=of(self.factor, other.factor),
            inner=of(self.inner, other.inner), divisor=of(self.divisor, other.divisor),
        )  # fmt: skip

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SmallScale":
        """The same for a part of the tensor, with every number changed."""
        return SmallScale.of(self.once.each(change), self.block)

    @property
    def once(self) -> Scales:
        """The numbers, each given once for its block."""
        return Scales(self.entries, self.factor, self.inner, self.outer, self.divides, self.divisor)

    def meet(self, x: Tensor) -> tuple[Tensor, Scales]:
        """x and the scales, which broadcast with it: x seen as whole blocks, or as it is where some are ragged.

        The view of x has an axis more for each that is cut into blocks, and the same elements in the same order.
        """
        entries, shape = self.entries, tuple(x.shape)
        if entries.ndim == 0:
            return x, self.once
        self._require(shape)
        seen: tuple[int, ...] = ()
        repeated: tuple[int, ...] = ()
        for size, number, step in zip(shape, entries.shape, self.block, strict=True):
            if number > 1 and step > 1 and size % step:
                return x, self.spread_all(shape)
            seen += (number, step) if number > 1 and step > 1 else (size,)
            repeated += (number, 1) if number > 1 and step > 1 else (number,)
        return x.view(seen), self.once.each(lambda part: part.reshape(repeated) if part.ndim else part)

    def spread(self, shape: tuple[int, ...]) -> Tensor:
        """The scale as a tensor that broadcasts with one of `shape`. ValueError if it does not fit."""
        return self._spread(self.entries, shape)

    def spread_all(self, shape: tuple[int, ...]) -> Scales:
        """The same of all numbers."""
        return self.once.each(lambda part: self._spread(part, shape))

    def _spread(self, entries: Tensor, shape: tuple[int, ...]) -> Tensor:
        if entries.ndim == 0:
            return entries
        self._require(shape)
        for axis, (size, step) in enumerate(zip(shape, self.block, strict=True)):
            if entries.shape[axis] > 1 and step > 1:
                entries = repeated(entries, step, axis, size)
        return entries

    def _require(self, shape: tuple[int, ...]) -> None:
        entries, block = self.entries, self.block
        fits = len(block) == entries.ndim == len(shape) and min(block) >= 1
        if not fits or any(
            found not in (1, -(-size // step)) for found, size, step in zip(entries.shape, shape, block, strict=True)
        ):
            raise ValueError(f"a scale of {list(entries.shape)} in blocks of {list(block)} does not fit {list(shape)}.")
