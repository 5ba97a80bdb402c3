"""An operand as a sum: outliers, carried apart, and the rest, which is what the cast itself takes.

    x = rest + outliers        what enters a product is  Q(rest) + C(outliers),  C another cast, or none

Everything that a cast reports (saturation, underflow, amax, its scale) is the rest's: to take the outliers out is to
let the scale fit what is left. How many there are is reported by the monitor `outliers`. The sum is formed in float32
and enters the product as it is: where the compute dtype does not hold it, the product runs in float32.

This file says what a kind of outliers is; the kinds are in `altgrad.quantize.outliers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from altgrad.quantize.cast_state import CastState
from altgrad.spec import Kind

Axis = Literal["last", "first"]


class Parts(NamedTuple):
    """A tensor in two parts of its shape. chosen: bool, broadcastable: where `apart` counts.

    apart: what the outliers are carried as, float32; there it is added to the rest, or, if not `added`, stands for it.
    """

    rest: Tensor
    apart: Tensor
    chosen: Tensor
    added: bool

    def whole(self, rest: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum, in dtype, with what the rest became, float32; what is finite stays finite in float16."""
        apart = rest + self.apart if self.added else self.apart
        values = torch.where(self.chosen, apart, rest)
        if dtype == torch.float16:
            top = torch.finfo(dtype).max
            values = torch.where(values.isinf(), values, values.clamp(-top, top))
        return values.to(dtype)

    @property
    def number(self) -> Tensor:
        """How many elements are outliers, an int64 scalar."""
        return torch.count_nonzero(self.chosen.expand_as(self.rest))


class Place(NamedTuple):
    """Where a cast is: what its Quantizer was told, for the one that carries its outliers.

    features: how many columns its tensors have, and the axis across which they lie; None where that varies. leader:
    what splits its layer's input, as forward casts it.
    """

    site: str
    role: Any
    seed: int
    rows: int | None
    reduced: Axis
    features: tuple[int, Axis] | None = None
    leader: "Outliers | None" = None


class OutliersSpec(Kind, family="outliers", package="altgrad.quantize"):
    """What part of a tensor is carried apart from its cast."""

    def build(self, place: Place) -> "Outliers":
        """What splits the tensors at one site. ValueError for a site that it does not go with."""
        made: Outliers = self.product()(self, place)
        return made

    def check_beside(self, spec: Any) -> None:
        """ValueError, naming both fields, for a cast whose outliers these cannot be."""

    @property
    def of_columns(self) -> bool:
        """Whether whole columns are outliers, which a transform across them would mix."""
        return False

    @property
    def follows(self) -> bool:
        """Whether they are those of the layer's input."""
        return False

    @property
    def leads(self) -> bool:
        """Whether others can follow these."""
        return False

    @property
    def splits(self) -> bool:
        """Whether they meet grad_output in a product of their own."""
        return False

    @property
    def text(self) -> str:
        """In a few characters, for tables."""
        return self.kind


class Outliers(CastState, ABC):
    """Splits the tensors of one site, and keeps what that needs."""

    @abstractmethod
    def split(self, x: Tensor, live: bool) -> Parts:
        """x in two parts; x float32, bf16 or fp16, seen by a cast. live: a training pass, to be recorded."""

    @property
    def needs_commit(self) -> bool:
        """Whether passes go wrong unless each step is closed by `commit`."""
        return False

    def commit(self) -> None:
        """Close an optimizer step."""

    def sums(self) -> Sequence[Tensor]:
        """What live passes recorded since the last commit that adds up over processes, in place."""
        return ()

    def maxima(self) -> Sequence[Tensor]:
        """The same of which the largest counts."""
        return ()
