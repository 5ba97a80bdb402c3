"""Scales that are numbers of a format: a bfloat16 number for a row, an e4m3fn number for a block under an outer scale.

    inner = R(amax / (max outer))         R rounds to the format; outer is 1, or a real number that blocks share

Some recipes keep one scale of this kind for a tensor or a row (torchao's INT8 in bfloat16, COAT), some one for each
block (NVFP4, Jetfire). The choices about the rounding R are the same, and so is what follows from them: a scale can
be 0 where the format has nothing smaller, and it can be drawn.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, Rounding
from altgrad.quantize.arithmetic import Levels, outer_number, raised, two_levels
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.engine import nearest, numbers, serves
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.scaling import StatisticSpec
from altgrad.quantize.traced import held
from altgrad.spec import Since

SCALE_BITS = torch.tensor(0x5CA1E)  # folded with a pass's key for the random bits of scales, by the block's flat index


class ScaleFormatSpec(StatisticSpec):
    """What scalings share whose scales can be numbers of a format."""

    scale_rounding: Annotated[Literal["nearest", "up", "stochastic"], Since(2)] = "nearest"
    """How a scale is rounded to its format."""
    least: Annotated[float, Field(ge=0, le=1e30), Since(2)] = 0.0
    """The least scale of a format."""
    zero_becomes: Annotated[float, Field(ge=0, le=1e30), Since(2)] = 0.0
    """What a scale that is rounded to 0 becomes."""

    of_formats: ClassVar[dict[str, Any]] = {"scale_rounding": "nearest", "least": 0.0, "zero_becomes": 0.0}
    """The fields that are about scales of a format, and what they are for others."""

    @model_validator(mode="after")
    def _has_format(self) -> Self:
        for name, default in self.of_formats.items():
            if not self.in_format and (value := getattr(self, name)) != default:
                raise ValueError(f"{name}: {value} needs scales of a format, such as scale: e4m3fn, not {self.scale}.")
        if isinstance(self.scale, NumberFormat) and not self.in_format:
            raise ValueError(f"scale: {self.scale} is a table of values; scales have an ExMy format, such as bf16.")
        if self.in_format and self.statistic == "std":
            raise ValueError(f"statistic: std takes scale: power_of_two, e8m0 or real, not {self.scale}.")
        return self

    @property
    def in_format(self) -> bool:
        """Whether scales are numbers of a format."""
        return isinstance(self.scale, FloatFormat)

    @property
    def chosen(self) -> dict[str, Any]:
        own = self.in_format and self.scale != type(self).model_fields["scale"].default
        return {"scale": self.tree()["scale"], **super().chosen} if own else super().chosen

    @property
    def zero_scales(self) -> bool:
        return self.in_format and not (self.least or self.zero_becomes)

    @property
    def draws(self) -> bool:
        return self.scale_rounding == "stochastic"

    @property
    def is_plain(self) -> bool:
        return self.in_format or super().is_plain

    def rounded(self, wanted: Tensor, key: Tensor | None) -> Tensor:
        """Scales on the grid of their format. key: of the pass's random bits; without one none are drawn."""
        fmt = self.scale
        assert isinstance(fmt, FloatFormat)
        if self.least:
            wanted = wanted.clamp(min=self.least)
        if self.scale_rounding == "up":
            found = bound_units(round_units(wanted, fmt, Rounding.toward_positive), fmt)
        elif self.scale_rounding == "stochastic" and key is not None:
            bits = counted_bits(wanted.shape, fold(key, SCALE_BITS), device=wanted.device)
            found = bound_units(round_units(wanted, fmt, Rounding.stochastic, bits), fmt)
        else:
            found = to_nearest(wanted, fmt)
        return torch.where(found == 0, self.zero_becomes, found) if self.zero_becomes else found

    def small_in_format(
        self, statistic: Tensor, fmt: NumberFormat, block: tuple[int, ...], count: bool, key: Tensor | None, *,
        outer: Tensor | None = None, bound: float = 1.0, candidate: float | None = None, keeps_outer: bool = False,
    ) -> SmallScale:  # fmt: skip
        """`small` for scales of a format. outer, bound, candidate: as `Levels` has them. keeps_outer: as `Scaling`."""
        top = self.top(fmt) * 2.0**-self.margin
        amax = raised(statistic, self.floor)
        levels = Levels(amax, outer, top, bound, lambda wanted: self.rounded(wanted, key), candidate)
        scales = two_levels(levels, self.arithmetic)
        if keeps_outer and scales.outer is None:
            scales = scales._replace(outer=outer_number(levels, self.arithmetic))
        assert isinstance(self.scale, FloatFormat)
        clamped = levels.clamped(float(self.scale.max), scales.scale) if count else None
        return SmallScale.of(scales.each(held), block, clamped)


def to_nearest(x: Tensor, fmt: NumberFormat) -> Tensor:
    """x, float32 in grid units, at the nearest values of a format, saturated."""
    if serves(fmt, Rounding.nearest_even):
        return nearest(x, None, None, True, numbers(fmt))
    return bound_units(round_units(x, fmt, Rounding.nearest_even), fmt)
