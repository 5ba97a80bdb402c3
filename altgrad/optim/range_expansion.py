"""Dynamic range expansion of COAT (Xi et al., arXiv 2410.19313): a group's range is stretched to that of the format.

    u = sign(x) (|x| / c)^k        c = sqrt(max) sqrt(min)        k = floor(16 log2(M^2 / 2) / log2(max / min)) / 16

max and min are those of a group's magnitudes, each plus 1e-30, and M is the format's largest value. u is what is cast;
what comes back is sign(q) |q|^(1/k) c. e4m3fn spans 17 binades and the moments of a group seldom more than 8, so that
k is 2 and more for first moments, and their codes are spread over the whole format.

The smallest magnitude is found as the authors' kernel finds it (`fp8_adamw_expand_cuda_kernel.cu`), halves onto one
another: first of runs of 32, then of what is left. A zero that is *received* there is skipped and one's own is not, so
a zero in the first place of a pair hides the other. A group of one magnitude would have no end of k; it is 2^10.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.formats import NumberFormat
from altgrad.quantize.block import block_amax
from altgrad.quantize.scaling import finite_magnitude

STEPS = 16.0
"""The exponent is a multiple of the inverse of this."""
_TINY, _MOST = 1e-30, 2.0**10
_RUN = 32


class RangeExpansion(NamedTuple):
    """The centre c and the exponent k of each group of `size` elements of a flat tensor."""

    centre: Tensor
    exponent: Tensor
    size: int

    @classmethod
    def of(cls, x: Tensor, size: int, fmt: NumberFormat) -> "RangeExpansion":
        """That of a tensor with one axis."""
        magnitude = finite_magnitude(x)
        largest = block_amax(magnitude, size) + _TINY
        smallest = _smallest(functional.pad(magnitude, (0, -x.numel() % size), value=math.inf), size) + _TINY
        bound = torch.full_like(largest, float(fmt.max) ** 2 / 2)
        exponent = (torch.log2(bound) / torch.log2(largest / smallest) * STEPS).floor() / STEPS
        return cls(largest.sqrt() * smallest.sqrt(), exponent.clamp(1 / STEPS, _MOST), size)

    def stretched(self, x: Tensor) -> Tensor:
        """u for x."""
        centre, exponent = self._each(x)
        return (x.abs() / centre).pow(exponent).copysign(x)

    def back(self, q: Tensor) -> Tensor:
        """What u stands for."""
        centre, exponent = self._each(q)
        return (q.abs().pow(1 / exponent) * centre).copysign(q)

    def _each(self, x: Tensor) -> list[Tensor]:
        if x.numel() % self.size == 0 and not torch.compiler.is_compiling():
            return [part.repeat_interleave(self.size) for part in self[:2]]
        return [part[:, None].expand(-1, self.size).reshape(-1)[: x.numel()] for part in self[:2]]


def _smallest(magnitude: Tensor, size: int) -> Tensor:
    """The smallest magnitude of each group, found as the head of this file has it."""
    groups = magnitude.view(-1, size)
    lanes = functional.pad(groups, (0, -size % _RUN), value=math.inf).view(len(groups), -1, _RUN)
    return _halved(_halved(lanes))


def _halved(x: Tensor) -> Tensor:
    """The last axis folded to one element, which skips zeros that come from the second half."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = functional.pad(x, (0, width - x.shape[-1]), value=math.inf)
    while width > 1:
        width //= 2
        own, received = x[..., :width], x[..., width : 2 * width]
        x = torch.where(received > 0, torch.minimum(own, received), own)
    return x[..., 0]
