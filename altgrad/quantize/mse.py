"""The scale of least squared error, found by trying: what calibration tools call MSE-optimal.

    s = argmin over candidates c of  sum (Q(x; c) - x)^2

The sum is float32 within a slab of rows and float64 over the slabs, and a tensor is always cut into the same slabs
(on a CPU, outside compiled graphs, which sum in an order of their own anyway). So the choice between candidates of
all but equal error, and with it every bit of the cast, is the same whether the tensor came whole or slab by slab.

Squares of small errors underflow in float32, and those of large ones overflow. So errors are taken of the tensor
brought to amax in [1/2, 1) by a power of two, which changes no rounding: 2^k x has the candidate of x, whatever k.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.chunks import in_slabs
from altgrad.quantize.grid import power_of_two, round_to
from altgrad.quantize.scaling import MIN_SCALE, AmaxScalingSpec, Granularity, Scaling, slab_amax


class MseSpec(AmaxScalingSpec):
    """The scale of least squared error among candidates at and below the amax scale, for this tensor (or each channel).

    Powers of two: `candidates` halvings. Real: as many equal steps down to a quarter of the amax scale. Of equal errors
    the largest scale wins. Rounds to nearest, whatever the cast does.
    """

    kind: ClassVar[str] = "mse"
    scale: Literal["power_of_two", "real"] = "power_of_two"
    """Whether scales are powers of two or any float32."""
    granularity: Granularity = "tensor"
    """A scale for the tensor, or one for each row."""
    candidates: Annotated[int, Field(ge=1, le=64)] = 8
    """Scales that are tried."""


class Mse(Scaling):
    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        pieces = [piece for slab in slabs for piece in in_slabs(slab)]
        amax = slab_amax(pieces, self.spec.granularity)
        largest = self.spec.scale_of(amax, self.format)
        wanted = torch.stack([largest * factor for factor in self._factors()])
        scales = wanted.clamp(min=MIN_SCALE)
        best, least = torch.zeros_like(amax, dtype=torch.int64), torch.full_like(amax, torch.inf, dtype=torch.float64)
        for number, error in enumerate(self._errors(pieces, scales, torch.frexp(amax).exponent)):
            best, least = torch.where(error < least, number, best), torch.minimum(error, least)
        clamped = None
        if count:
            # The first candidate is the amax's own scale, which has been clamped before.
            outside = torch.where(best == 0, self.spec.beyond_range(amax, self.format), _at(best, wanted) < MIN_SCALE)
            clamped = torch.count_nonzero(outside)
        return SmallScale(_at(best, scales), (1,) * amax.ndim, clamped)

    def _factors(self) -> list[float]:
        number = self.spec.candidates
        return [0.5**n if self.spec.power_of_two else 1 - 0.75 * n / number for n in range(number)]

    def _errors(self, slabs: Sequence[Tensor], scales: Tensor, exponent: Tensor) -> Tensor:
        """The squared error under each candidate, in units of 4^exponent: float64, of the shape of `scales`."""
        by_channel, found, row = self.spec.granularity == "channel", [], 0
        scales = _times_power(scales, -exponent)
        for slab in slabs:
            x = slab.detach().to(torch.float32)
            x = torch.where(x.isfinite(), x, 0)
            own = scales[:, row : row + len(x)] if by_channel else scales
            x = _times_power(x, -(exponent[row : row + len(x)] if by_channel else exponent))
            squares = (round_to(x, self.format, scale=scale).sub_(x).square_() for scale in own)
            found.append(torch.stack([s.sum(-1, keepdim=True) if by_channel else s.sum() for s in squares]))
            row += len(x)
        errors = [error.to(torch.float64) for error in found]
        return torch.cat(errors, 1) if by_channel else torch.stack(errors).sum(0)


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x 2^exponent, for an int32 exponent in -128..149 that broadcasts: in two factors, since float32 ends at 2^127."""
    half = exponent >> 1
    return x * power_of_two(half) * power_of_two(exponent - half)


def _at(number: Tensor, candidates: Tensor) -> Tensor:
    """Of the candidates (the first axis) the one with its number, element by element."""
    return candidates.gather(0, number[None])[0]
