"""What one entry of a tensor into a format gives, and those who look at it.

Where float16 cannot hold such a value it becomes the largest of the grid that float16 holds: 65504 enters e4m3fn as 240
times its scale of 256, since 256 times that is 65536. To stop at 65504 would leave the grid, and inf would make a
diverged run of one large activation. float32 and bfloat16 have that edge at 2^128: there a value that rounds up to it
becomes inf, and no pass over every tensor is spent on preventing that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding
from altgrad.quantize.block_scale import Scales
from altgrad.quantize.counted import Role
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.parts import Parts


@dataclass(frozen=True)
class Cast:
    """One entry of a tensor into a format, in grid units: x ~ rounded * scale.

    exact: x / scale, float32; inf where that is beyond float32, as 2^127 over 1/4 is, which rounds as any number beyond
    the largest value does. unbounded: rounded as if the grid had no end. rounded: after the overflow rule.
    scale: None for 1, else broadcastable with x. clamped: how many scales (of the tensor, its channels or blocks) an
    amax would have beyond their range, an int64 scalar; only casts that are watched count it. site: empty in a compiled
    graph, which serves many. scales: how the scale was used, where that has an order of its own. parts: where outliers
    are carried apart, what they are; x is then the rest. clips: whether what lies beyond the largest value is gone; of
    a master it is not. draw: the key by which an observer that samples chooses elements, an int64 scalar.
    """

    site: str
    role: Role
    format: NumberFormat
    scale: Tensor | None
    exact: Tensor
    unbounded: Tensor
    rounded: Tensor
    clamped: Tensor | None = None
    scales: Scales | None = None
    parts: Parts | None = None
    clips: bool = True
    draw: Tensor | None = None

    def values(self, dtype: torch.dtype) -> Tensor:
        """rounded * scale, plus the outliers, in the given dtype."""
        values = self.rounded if self.scale is None else (self.scales or Scales(self.scale)).values(self.rounded)
        if self.parts is not None:
            return self.parts.whole(values, dtype)
        return in_dtype(values, self.format, self.scale, dtype)


@dataclass(frozen=True, eq=False)
class Observer:
    """Adds what it makes of a cast to its rows, or to what is given in their place, and leaves no other trace."""

    add: Callable[[Sequence[Tensor], Cast], None]
    rows: Sequence[Tensor]

    def __call__(self, cast: Cast) -> None:
        self.add(self.rows, cast)


def in_dtype(values: Tensor, fmt: NumberFormat, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Values of the grid `scale * fmt` (float32) in dtype; what is finite stays finite in float16."""
    if dtype != torch.float16:
        return values.to(dtype)
    top = torch.full((), torch.finfo(dtype).max, device=values.device)
    units = top if scale is None else top / scale
    low, high = (bound_units(round_units(sign * units, fmt, Rounding.toward_zero), fmt) for sign in (-1, 1))
    if scale is not None:
        low, high = low * scale, high * scale
    return torch.where(values.isinf(), values, values.clamp(low, high)).to(dtype)
