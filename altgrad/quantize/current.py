"""A scale from this very tensor: one number for all of it, or one for each of its rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import model_validator
from torch import Tensor

from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.scale_format import ScaleFormatSpec
from altgrad.quantize.scaling import Granularity, Scaling, statistic_of
from altgrad.spec import Format


class CurrentSpec(ScaleFormatSpec):
    """The scale comes from this tensor's own amax; `channel` takes one for each row."""

    kind: ClassVar[str] = "current"
    scale: Literal["power_of_two", "real"] | Format = "power_of_two"
    """Whether scales are powers of two, any float32, or of a format."""
    granularity: Granularity = "tensor"
    """A scale for the tensor, or one for each row."""

    @model_validator(mode="after")
    def _not_of_blocks(self) -> Self:
        if str(self.scale) == "e8m0":
            raise ValueError("scale: e8m0 is of blocks, as scaling: mx has it; use scale: power_of_two.")
        return self


class Current(Scaling):
    spec: CurrentSpec

    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        found, spec = statistic_of(slabs, self.spec.statistic, self.spec.granularity), self.spec
        block = (1,) * found.ndim
        if spec.in_format:
            return spec.small_in_format(found, self.format, block, count, key)
        return spec.small(found, self.format, block, count)
