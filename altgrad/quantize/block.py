"""Block scales: one for every k neighbours along the reduced axis of a product, or for every k x k square.

    block    scale from the block's amax, power of two or real (as in DeepSeek-V3, arXiv 2412.19437)
    mx       OCP Microscaling v1.0: k = 32, scale an e8m0 power of two, e_max = floor(log2 max)
               floor  2^(floor(log2 amax) - e_max), which can saturate (the standard's own rule)
               rceil  the smallest power of two that does not
               even   floor, of amax rounded to the format's mantissa bits
    nvfp4    k = 16, two levels: s_t = amax_t / (448 max), s_b = e4m3fn(amax_b / (max s_t)), scale = s_b s_t

Scalings see tensors with the reduced axis last; the quantizer turns them if it is the first. A last block that is not
full is a smaller block. Scales come back expanded to the tensor's shape, since that is what elementwise casting needs.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from altgrad.formats import FloatFormat
from altgrad.quantize.grid import round_to
from altgrad.quantize.scaling import Amax, Scaling, ScalingSpec, finite_magnitude

Size = Annotated[int, Field(ge=1, le=65_536)]
MX_MIN_EXPONENT = -127


def block_amax(magnitude: Tensor, size: int, *, square: bool = False) -> Tensor:
    """The largest of each block, expanded to the shape of `magnitude` (float32, >= 0; NaN fills its block).

    Blocks are runs of `size` along the last axis or, with `square`, size x size over the last two.
    """
    if square and magnitude.ndim < 2:
        raise ValueError(f"square blocks need two axes; this tensor has {magnitude.ndim}. Use shape: row.")
    if magnitude.numel() == 0:
        return magnitude
    columns = magnitude.shape[-1]
    padded = functional.pad(magnitude, (0, -columns % size))
    found = padded.view(*padded.shape[:-1], -1, size).amax(-1)
    if square:
        return block_amax(found.mT, size).mT.repeat_interleave(size, -1)[..., :columns]
    return found.repeat_interleave(size, -1)[..., :columns]


class Block(Amax):
    """A scale for each block, from its amax: runs of `size` along the last axis, or `size` x `size` squares."""

    kind: ClassVar[str] = "block"
    size: Size = 128
    shape: Literal["row", "square"] = "row"

    def build(self, fmt: FloatFormat, rows: int | None) -> Scaling:
        """See ScalingSpec."""
        return _BlockScale(self, fmt)


class _BlockScale(Scaling):
    def __init__(self, spec: Block, fmt: FloatFormat) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    def scale(self, x: Tensor, live: bool) -> Tensor | None:
        amax = block_amax(finite_magnitude(x), self.spec.size, square=self.spec.shape == "square")
        return self.spec.scale_of(amax, self.format)


class Mx(ScalingSpec):
    """OCP Microscaling: blocks along the product's inner axis, scales that are powers of two from 2^-127 to 2^127.

    A block of zeros has scale 2^-127; one that holds a NaN is NaN throughout.
    """

    kind: ClassVar[str] = "mx"
    size: Size = 32
    mode: Literal["floor", "rceil", "even"] = "floor"

    def build(self, fmt: FloatFormat, rows: int | None) -> Scaling:
        """See ScalingSpec."""
        return _MxScale(self, fmt)


class _MxScale(Scaling):
    def __init__(self, spec: Mx, fmt: FloatFormat) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    def scale(self, x: Tensor, live: bool) -> Tensor | None:
        magnitude = torch.where(x.isnan(), torch.nan, finite_magnitude(x))
        amax = block_amax(magnitude, self.spec.size)
        return mx_scale(amax, self.format, self.spec.mode)


def mx_scale(amax: Tensor, fmt: FloatFormat, mode: Literal["floor", "rceil", "even"]) -> Tensor:
    """The e8m0 scale of blocks with these amaxes, float32, same shape."""
    mantissa, exponent = torch.frexp(amax)
    if mode == "even":
        # Rounding amax to M bits can only matter where it carries into the next power of two: from there on upwards,
        # since the tie below a power of two goes to it.
        exponent = exponent + (mantissa >= 1 - 2.0 ** -(fmt.mantissa_bits + 2)).to(torch.int32)
    if mode == "rceil":
        top = torch.frexp(torch.tensor(float(fmt.max)))
        found = exponent - top.exponent + (mantissa > top.mantissa).to(torch.int32)
    else:
        found = exponent - 1 - fmt.max_binade
    found = torch.where(amax == 0, MX_MIN_EXPONENT, found.clamp(MX_MIN_EXPONENT, 127))
    # Two factors: 2^-127 is below float32's normal range, so it has no exponent field of its own.
    scale = ((found + 1 + 127) << 23).clamp(max=254 << 23).to(torch.int32).view(torch.float32) * 0.5
    scale = torch.where(found == 127, 2.0**127, scale)
    return torch.where(amax.isnan(), torch.nan, scale)


class Nvfp4(ScalingSpec):
    """Two-level scales of NVFP4: one real number for the tensor, an e4m3fn number for every block of 16."""

    kind: ClassVar[str] = "nvfp4"
    size: Size = 16

    @property
    def power_of_two(self) -> bool:
        """See ScalingSpec."""
        return False

    @property
    def zero_scales(self) -> bool:
        """See ScalingSpec."""
        return True

    def build(self, fmt: FloatFormat, rows: int | None) -> Scaling:
        """See ScalingSpec."""
        return _Nvfp4Scale(self, fmt)


class _Nvfp4Scale(Scaling):
    def __init__(self, spec: Nvfp4, fmt: FloatFormat) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    def scale(self, x: Tensor, live: bool) -> Tensor | None:
        magnitude = finite_magnitude(x)
        whole = magnitude.amax() if x.numel() else magnitude.new_zeros(())
        # Divided twice, since 448 max can be beyond float32, and by tensors, since CUDA multiplies with the reciprocal
        # of a number.
        tensor = whole / torch.full_like(whole, float(self.format.max)) / torch.full_like(whole, 448.0)
        tensor = torch.where(tensor > 0, tensor, 1.0)
        amax = block_amax(magnitude, self.spec.size)
        # A block scale that rounds to 0 makes its block 0: the quantizer divides by 1 there and multiplies by 0.
        return round_to(amax / (tensor * float(self.format.max)), "e4m3fn") * tensor
