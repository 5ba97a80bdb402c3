"""The scale of least squared error, found by trying: what calibration tools call MSE-optimal."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.quantize.grid import round_to
from altgrad.quantize.scaling import Amax, Granularity, Scaling, finite_magnitude


class Mse(Amax):
    """The scale of least squared error among candidates at and below the amax scale, for this tensor (or each channel).

    Powers of two: `candidates` halvings. Real: as many equal steps down to a quarter of the amax scale. Of equal errors
    the largest scale wins. Rounds to nearest, whatever the cast does.
    """

    kind: ClassVar[str] = "mse"
    granularity: Granularity = "tensor"
    candidates: Annotated[int, Field(ge=1, le=64)] = 8

    def build(self, fmt: FloatFormat, rows: int | None) -> Scaling:
        """See ScalingSpec."""
        return _MseScale(self, fmt)


class _MseScale(Scaling):
    def __init__(self, spec: Mse, fmt: FloatFormat) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    def scale(self, x: Tensor, live: bool) -> Tensor | None:
        x = x.detach().to(torch.float32)
        x = torch.where(x.isfinite(), x, 0)
        magnitude = finite_magnitude(x)
        by_channel = self.spec.granularity == "channel"
        amax = magnitude.amax(-1, keepdim=True) if by_channel else magnitude.amax()
        largest = best = self.spec.scale_of(amax, self.format)
        least = torch.full_like(best, torch.inf)
        for number in range(self.spec.candidates):
            factor = 0.5**number if self.spec.power_of_two else 1 - 0.75 * number / self.spec.candidates
            scale = (largest * factor).clamp(min=2.0**-126)
            square = (round_to(x, self.format, scale=scale) - x).square()
            error = square.sum(-1, keepdim=True) if by_channel else square.sum()
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return best
