"""Block scales: one for every k neighbours along the reduced axis of a product, or for every k x k square.

    block    scale from the block's amax, power of two or real (as in DeepSeek-V3, arXiv 2412.19437)
    mx       OCP Microscaling v1.0: k = 32, scale an e8m0 power of two, e_max = floor(log2 max)
               floor  2^(floor(log2 amax) - e_max), which can saturate (the standard's own rule)
               rceil  the smallest power of two that does not
               even   floor, of amax rounded to the format's mantissa bits
    nvfp4    k = 16, two levels: s_t = amax_t / (448 max), s_b = e4m3fn(amax_b / (max s_t)), scale = s_b s_t

Scalings see tensors with the reduced axis last; the quantizer turns them if it is the first. A last block that is not
full is a smaller block. Rows of blocks do not see one another, but for the one number that NVFP4 takes from the whole.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from altgrad.formats import FloatFormat, NumberFormat
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.engine import nearest, numbers
from altgrad.quantize.scaling import AmaxScalingSpec, Scaling, ScalingSpec, finite_magnitude, split_amax
from altgrad.quantize.traced import held

Size = Annotated[int, Field(ge=1, le=65_536)]
Mode = Literal["floor", "rceil", "even"]
MX_MIN_EXPONENT, MX_MAX_EXPONENT = -127, 127
E4M3FN = FloatFormat.parse("e4m3fn")  # here, since torch 2.11 cannot trace the parsing of a name


def block_amax(magnitude: Tensor, size: int) -> Tensor:
    """The largest of each run of `size` along the last axis: [..., c] gives [..., ceil(c / size)].

    magnitude: float32, >= 0; a NaN fills its block.
    """
    columns = magnitude.shape[-1]
    whole = magnitude if columns % size == 0 else functional.pad(magnitude, (0, -columns % size))
    return whole.view(*whole.shape[:-1], -(-columns // size), size).amax(-1)


def _joined(slabs: Sequence[Tensor]) -> Tensor:
    return slabs[0] if len(slabs) == 1 else torch.cat(list(slabs))


def _row(x: Tensor, size: int) -> tuple[int, ...]:
    """The elements of a block along every axis of x."""
    return (*(1,) * (x.ndim - 1), size)


class BlockSpec(AmaxScalingSpec):
    """A scale for each block, from its amax: runs of `size` along the last axis, or `size` x `size` squares."""

    kind: ClassVar[str] = "block"
    size: Size = 128
    """Elements along a side of a block."""
    shape: Literal["row", "square"] = "row"
    """Runs along the reduced axis, or squares."""


class Block(Scaling):
    spec: BlockSpec

    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        size, axes = self.spec.size, slabs[0].ndim
        amax = _joined([block_amax(finite_magnitude(slab), size) for slab in slabs])
        if self.spec.shape == "row":
            return self.spec.small(amax, self.format, _row(slabs[0], size), count)
        if axes < 2:
            raise ValueError(f"square blocks need two axes; this tensor has {axes}. Use shape: row.")
        return self.spec.small(block_amax(amax.mT, size).mT, self.format, (*(1,) * (axes - 2), size, size), count)


class MxSpec(ScalingSpec):
    """OCP Microscaling: blocks along the product's inner axis, scales that are powers of two from 2^-127 to 2^127.

    A block of zeros has scale 2^-127; one that holds a NaN is NaN throughout.
    """

    kind: ClassVar[str] = "mx"
    size: Size = 32
    """Elements of a block."""
    mode: Mode = "floor"
    """How a block's amax becomes a power of two; floor is the standard's."""


class Mx(Scaling):
    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        amax = _joined([block_amax(_magnitude(slab), self.spec.size) for slab in slabs])
        clamped = None
        if count:
            wanted = _mx_exponent(amax, self.format, self.spec.mode)
            outside = (wanted < MX_MIN_EXPONENT) | (wanted > MX_MAX_EXPONENT)
            clamped = torch.count_nonzero(outside & (amax > 0))
        return SmallScale(held(mx_scale(amax, self.format, self.spec.mode)), _row(slabs[0], self.spec.size), clamped)


def _magnitude(x: Tensor) -> Tensor:
    """|x| as float32, same shape, with inf as 0; NaN stays."""
    magnitude = x.detach().to(torch.float32).abs()
    return torch.where(magnitude == math.inf, 0, magnitude)


def _mx_exponent(amax: Tensor, fmt: NumberFormat, mode: Mode) -> Tensor:
    """The exponent of the scale as the rule has it, int32; whatever for 0 and NaN."""
    mantissa, exponent = split_amax(amax, least=2 - fmt.max_binade)
    if mode == "even":
        # Rounding amax to M bits can only matter where it carries into the next power of two: from there on upwards,
        # since the tie below a power of two goes to it.
        exponent = exponent + (mantissa >= 1 - 2.0 ** -(fmt.mantissa_bits + 2)).to(torch.int32)
    if mode == "rceil":
        top, top_exponent = math.frexp(float(fmt.max))
        return exponent - top_exponent + (mantissa > top).to(torch.int32)
    return exponent - 1 - fmt.max_binade


def mx_scale(amax: Tensor, fmt: NumberFormat, mode: Mode) -> Tensor:
    """The e8m0 scale of blocks with these amaxes, float32, same shape."""
    wanted = _mx_exponent(amax, fmt, mode).clamp(MX_MIN_EXPONENT, MX_MAX_EXPONENT)
    found = torch.where(amax == 0, MX_MIN_EXPONENT, wanted)
    # Two factors: 2^-127 is below float32's normal range, so it has no exponent field of its own.
    scale = ((found + 1 + 127) << 23).clamp(max=254 << 23).to(torch.int32).view(torch.float32) * 0.5
    scale = torch.where(found == 127, 2.0**127, scale)
    return torch.where(amax == amax, scale, torch.nan)


class Nvfp4Spec(ScalingSpec):
    """Two-level scales of NVFP4: one real number for the tensor, an e4m3fn number for every block of 16."""

    kind: ClassVar[str] = "nvfp4"
    size: Size = 16
    """Elements of a block."""

    @property
    def power_of_two(self) -> bool:
        return False

    @property
    def zero_scales(self) -> bool:
        return True


class Nvfp4(Scaling):
    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        amax = _joined([block_amax(finite_magnitude(slab), self.spec.size) for slab in slabs])
        whole, top = amax.amax() if amax.numel() else amax.new_zeros(()), float(self.format.max)
        # One division, as torchao and Transformer Engine have it; two where 448 max is beyond float32. By tensors,
        # since CUDA multiplies with the reciprocal of a number.
        if 448.0 * top < 2.0**128:
            tensor = whole / torch.full_like(whole, 448.0 * top)
        else:
            tensor = whole / torch.full_like(whole, top) / torch.full_like(whole, 448.0)
        # One too small for float32 becomes 1, under which every block is 0; so it counts as clamped.
        clamped = torch.count_nonzero((whole > 0) & (tensor == 0)) if count else None
        tensor = held(torch.where(tensor > 0, tensor, 1.0))
        # A block scale that rounds to 0 makes its block 0: the quantizer divides by 1 there and multiplies by 0.
        entries = held(nearest(amax / (tensor * top), None, None, True, numbers(E4M3FN)) * tensor)
        return SmallScale(entries, _row(slabs[0], self.spec.size), clamped)
