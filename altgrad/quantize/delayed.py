"""A scale from the steps before: the history of amaxes, as Transformer Engine keeps it.

What is committed after each step is the number that the arithmetic finds, a scale or a factor, since the one cannot be
had back from the other bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantize.arithmetic import ENCODES, one_level
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.scaling import Granularity, Scaling, StatisticSpec, slab_amax


class DelayedSpec(StatisticSpec):
    """The scale comes from the amaxes of the last `history` steps before this one.

    Before the first step has been committed there is no history, and the tensor's own amax is used (Transformer Engine
    starts from a scale of 1 instead). `reduce: max` takes the largest of the history, `most_recent` the last.
    """

    kind: ClassVar[str] = "delayed"
    scale: Literal["power_of_two", "real"] = "power_of_two"
    """Whether scales are powers of two or any float32."""
    granularity: Granularity = "tensor"
    """A scale for the tensor, or one for each row (weights only)."""
    history: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Steps whose amaxes are kept."""
    reduce: Literal["max", "most_recent"] = "max"
    """max: the largest of the history; most_recent: the last."""

    @model_validator(mode="after")
    def _of_amaxes(self) -> Self:
        if self.statistic != "amax":
            raise ValueError(f"delayed scaling keeps amaxes, not statistic: {self.statistic}; use scaling: current.")
        return self

    def build(self, fmt: NumberFormat, rows: int | None) -> Scaling:
        """Raises ValueError for `channel` where the number of rows varies."""
        if self.granularity == "channel" and rows is None:
            raise ValueError(
                "delayed scaling by channel needs a fixed number of rows, which only weights have; "
                "use scaling: current, or granularity: tensor."
            )
        return super().build(fmt, rows)


class Delayed(Scaling):
    amax_now: Tensor
    amax_history: Tensor
    committed: Tensor
    ready: Tensor

    def __init__(self, spec: DelayedSpec, fmt: NumberFormat, rows: int | None = None) -> None:
        super().__init__(spec, fmt)
        shape = () if spec.granularity == "tensor" else (cast(int, rows), 1)
        self.register_buffer("amax_now", torch.zeros(shape))
        self.register_buffer("amax_history", torch.zeros(spec.history, *shape))
        self.register_buffer("committed", torch.ones(shape))
        # A whole number, since averages of models (torch's AveragedModel) subtract and truncate: so what began without
        # a history stays without.
        self.register_buffer("ready", torch.zeros(shape, dtype=torch.int64))

    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        amax = slab_amax(slabs, self.spec.granularity)
        if live:
            self.amax_now.copy_(torch.maximum(self.amax_now, amax))
        top, ready, clamped = self.spec.top(self.format), self.ready > 0, None
        if count:
            # A scale kept for want of an amax is not clamped: nothing in the history asks for one beyond.
            asked = torch.where(ready, self._recorded(), amax)
            clamped = torch.count_nonzero(self.spec.clamps(asked, self.format, top))
        number = torch.where(ready, self._committed(), self.spec.number(amax, self.format, top))
        return SmallScale.of(one_level(number, self.spec.arithmetic, self.spec.prescale), (1,) * number.ndim, clamped)

    def _committed(self) -> Tensor:
        """The committed number; of an averaged model, whose may be no power of two, that of the next scale above."""
        if not self.spec.scales_by_powers:
            return self.committed
        bits = self.committed.view(torch.int32)
        return ((bits if self.spec.arithmetic in ENCODES else bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)

    def commit(self) -> None:
        self.amax_history.copy_(torch.cat((self.amax_now[None], self.amax_history[:-1])))
        self.amax_now.zero_()
        amax = self._recorded()
        known = (amax > 0) & (amax < math.inf)
        number = self.spec.number(amax, self.format, self.spec.top(self.format))
        self.committed.copy_(torch.where(known, number, self.committed))
        self.ready.copy_((self.ready > 0) | known)

    def reset_parameters(self) -> None:
        for buffer in (self.amax_now, self.amax_history, self.ready):
            buffer.zero_()
        self.committed.fill_(1.0)

    def recorded(self) -> Sequence[Tensor]:
        return (self.amax_now,)

    def _recorded(self) -> Tensor:
        """The amax that the history comes to."""
        return self.amax_history.amax(0) if self.spec.reduce == "max" else self.amax_history[0]
