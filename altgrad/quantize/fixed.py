"""A constant scale: x ~ q * value, whatever the tensor holds.

modded-nanogpt casts its head so: inputs at 100/448, weights at 1.6/448, gradients at 0.75/448.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from altgrad.quantize.arithmetic import one_level
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.scaling import MAX_SCALE, MIN_SCALE, Scaling, ScalingSpec
from altgrad.quantize.traced import held


class FixedSpec(ScalingSpec):
    """One number for ever: x is divided by it, values are multiplied with it."""

    kind: ClassVar[str] = "fixed"
    value: Annotated[float, Field(ge=MIN_SCALE, le=MAX_SCALE)] = 1.0
    """The scale, as float32 has it."""
    arithmetic: Literal["divide", "reciprocal"] = "divide"
    """Whether x is divided by the scale or multiplied with its reciprocal."""

    @property
    def measures(self) -> bool:
        return False

    @property
    def power_of_two(self) -> bool:
        return math.frexp(self.value)[0] == 0.5


class Fixed(Scaling):
    spec: FixedSpec

    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        scale = torch.full((), self.spec.value, device=slabs[0].device)
        clamped = torch.zeros((), dtype=torch.int64, device=scale.device) if count else None
        return SmallScale.of(one_level(held(scale), self.spec.arithmetic), (), clamped)
