"""Block scales: one for every run of `size` along the reduced axis of a product, or for every `size` x `size` square.

    block    scale from the block's amax, power of two or real (as in DeepSeek-V3, arXiv 2412.19437)
    mx       block with size 32 and scale e8m0: OCP Microscaling v1.0, powers of two from 2^-127 to 2^127
    nvfp4    block with size 16, scale e4m3fn and outer tensor (arXiv 2509.25149)

A power of two comes from amax by a `mode`, e_max = floor(log2 max):

    floor    2^(floor(log2 amax) - e_max), which can saturate (the OCP standard's own rule)
    ceil     2^(ceil(log2 amax) - e_max)
    rceil    the smallest that does not saturate
    even     floor, of amax rounded to the format's mantissa bits

A scale in a format is one of two levels: inner scales on the grid of the format, under a real `outer` one for the
tensor, a row or k elements, which takes the outer amax to `scale_max` times the format's largest value. Without `outer`
that is 1. What blocks of zeros and of NaN do follows the scale's format: under e8m0 the standard says 2^-127, and NaN
throughout; elsewhere zeros are zeros and a NaN is its own.

`choose` takes each block to several grid values in turn and keeps the one of least error, the first of equals; how they
are summed is the arithmetic's. Judged are values rounded to nearest or, with `trial_rounding: stochastic`, those that
the cast draws: all candidates meet the same random bits, and then the cast does, as in fouroversix's kernels.

Scalings see tensors with the reduced axis last; the quantizer turns them if it is the first. A last block that is not
full is a smaller block. Rows of blocks do not see one another, but for an outer scale.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from altgrad.formats import FloatFormat, NumberFormat, Rounding
from altgrad.quantize.arithmetic import TWO_STEPS, added, candidate_values, even_bits, halved, powers, raised
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.noise import counted_bits
from altgrad.quantize.scale_format import ScaleFormatSpec, to_nearest
from altgrad.quantize.scaling import (
    Scaling,
    finite_magnitude,
    from_sums,
    power_of_two_scale,
    scale_exponent,
    split_amax,
    std_scale,
    sums,
)
from altgrad.quantize.traced import held, repeated
from altgrad.spec import Format, Since

Size = Annotated[int, Field(ge=1, le=65_536)]
Mode = Literal["floor", "ceil", "rceil", "even"]
LOWEST, HIGHEST = -127, 127  # exponents of e8m0
BY_FACTOR = ("encode", "te", "torchao", "fouroversix")
WIDEST = 2.0**64
"""The largest inner scale that an outer amax can go to."""
E4M3FN = FloatFormat.parse("e4m3fn")


def block_amax(magnitude: Tensor, size: int) -> Tensor:
    """The largest of each run of `size` along the last axis: [..., c] gives [..., ceil(c / size)].

    magnitude: float32, >= 0; a NaN fills its block.
    """
    return _blocks(magnitude, size).amax(-1)


def _blocks(x: Tensor, size: int) -> Tensor:
    """x [..., c] as [..., ceil(c / size), size], filled up with zeros."""
    columns = x.shape[-1]
    whole = x if columns % size == 0 else functional.pad(x, (0, -columns % size))
    return whole.view(*whole.shape[:-1], -(-columns // size), size)


def _joined(slabs: Sequence[Tensor]) -> Tensor:
    return slabs[0] if len(slabs) == 1 else torch.cat(list(slabs))


class BlockSpec(ScaleFormatSpec):
    """A scale for each block, from its amax: runs of `size` along the last axis, or `size` x `size` squares."""

    kind: ClassVar[str] = "block"
    size: Size = 128
    """Elements along a side of a block."""
    shape: Literal["row", "square"] = "row"
    """Runs along the reduced axis, or squares."""
    mode: Annotated[Mode, Since(2)] = "rceil"
    """How amax becomes a power of two; rceil is the smallest that does not saturate."""
    outer: Annotated[Literal["none", "tensor", "row"] | Size, Since(2)] = "none"
    """What shares a real scale over scales of a format: nothing, the tensor, a row, or so many elements of it."""
    scale_max: Annotated[Annotated[float, Field(gt=0, le=1e30)] | None, Since(2)] = None
    """The inner scale that the outer amax goes to; the format's largest unless given."""
    choose: Annotated[tuple[Annotated[float, Field(gt=0, le=1e30)], ...], Field(max_length=8), Since(2)] = ()
    """Grid values to one of which a block's amax goes, tried in turn; the largest is that of the outer scale."""
    by: Annotated[Literal["mse", "mae", "amax"], Since(2)] = "mse"
    """The error that chooses: squared, absolute, or the largest."""
    trial_rounding: Annotated[Literal["nearest", "stochastic"], Since(2)] = "nearest"
    """How values are rounded whose errors choose: to nearest, or as a stochastic cast draws them."""

    of_formats: ClassVar[dict[str, Any]] = {"outer": "none", "scale_max": None, **ScaleFormatSpec.of_formats}

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not self.scales_by_powers and self.mode != "rceil":
            raise ValueError(f"mode: {self.mode} makes powers of two; scale: {self.scale} has others.")
        if self.scale_max is not None and self.outer == "none":
            raise ValueError(f"scale_max: {self.scale_max} is where an outer amax goes, and outer is none.")
        self._fit_outer()
        self._fit_choices()
        return self

    def _fit_outer(self) -> None:
        if self.outer != "none" and isinstance(self.scale, FloatFormat) and self.bound > WIDEST:
            raise ValueError(
                f"outer: {self.outer} over scale: {self.scale} would take an amax to {self.bound:.3g}, beyond what "
                "float32 divides by; give scale_max, such as 448, or use outer: none."
            )
        if isinstance(self.outer, int) and self.outer % self.size:
            raise ValueError(f"outer: {self.outer} is not a multiple of size: {self.size}.")
        if self.shape == "square" and self.outer not in ("none", "tensor"):
            raise ValueError(f"outer: {self.outer} cuts rows, and shape: square spans several; use outer: tensor.")

    def _fit_choices(self) -> None:
        for field, usual in (("by", "mse"), ("trial_rounding", "nearest")):
            if len(self.choose) < 2 and (said := getattr(self, field)) != usual:
                raise ValueError(f"{field}: {said} has nothing to choose from; give choose, such as [6, 4].")
        if not self.choose:
            return
        for name, default in (("target", 1), ("statistic", "amax"), ("margin", 0)):
            if (value := getattr(self, name)) != default:
                raise ValueError(f"choose says where a block's amax goes, and so does {name}: {value}; leave out one.")
        if self.scales_by_powers and self.mode != "rceil":
            raise ValueError(f"choose needs a scale that depends on the grid value; mode: {self.mode} has none.")

    def build(self, fmt: NumberFormat, rows: int | None) -> Scaling:
        """Raises ValueError for a format whose largest value float32 cannot multiply by an outer factor's bound."""
        found = self.bound * self.top(fmt)
        if self.outer != "none" and found >= 2.0**128 and self.arithmetic in BY_FACTOR:
            raise ValueError(
                f"arithmetic: {self.arithmetic} multiplies format {fmt}'s largest value by {self.bound:.3g}, which is "
                "beyond float32; use arithmetic: divide."
            )
        return super().build(fmt, rows)

    @property
    def is_plain(self) -> bool:
        if not self.in_format:
            return super().is_plain
        return self.outer == "none" or self.arithmetic not in TWO_STEPS

    @property
    def bound(self) -> float:
        """The inner scale that an outer amax goes to."""
        if self.scale_max is not None:
            return self.scale_max
        return float(self.scale.max) if isinstance(self.scale, FloatFormat) else 1.0

    def top(self, fmt: NumberFormat) -> float:
        return max(self.choose) if self.choose else super().top(fmt)


class MxSpec(BlockSpec):
    """OCP Microscaling: blocks along the product's inner axis, scales that are powers of two from 2^-127 to 2^127.

    A block of zeros has scale 2^-127; one that holds a NaN is NaN throughout.
    """

    kind: ClassVar[str] = "mx"
    scale: Annotated[Literal["power_of_two", "real", "e8m0"] | Format, Since(2)] = "e8m0"
    """Whether scales are powers of two, any float32, or of a format."""
    margin: Annotated[int, Field(ge=-16, le=16), Since(2)] = 0
    """Binades left free above amax."""
    size: Size = 32
    """Elements of a block."""
    shape: Annotated[Literal["row", "square"], Since(2)] = "row"
    """Runs along the reduced axis, or squares."""
    mode: Mode = "floor"
    """How a block's amax becomes a power of two; floor is the standard's."""


class Nvfp4Spec(BlockSpec):
    """Two-level scales of NVFP4: one real number for the tensor, an e4m3fn number for every block of 16."""

    kind: ClassVar[str] = "nvfp4"
    scale: Annotated[Literal["power_of_two", "real", "e8m0"] | Format, Since(2)] = E4M3FN
    """Whether scales are powers of two, any float32, or of a format."""
    margin: Annotated[int, Field(ge=-16, le=16), Since(2)] = 0
    """Binades left free above amax."""
    size: Size = 16
    """Elements of a block."""
    shape: Annotated[Literal["row", "square"], Since(2)] = "row"
    """Runs along the reduced axis, or squares."""
    outer: Annotated[Literal["none", "tensor", "row"] | Size, Since(2)] = "tensor"
    """What shares a real scale over scales of a format: nothing, the tensor, a row, or so many elements of it."""


class Block(Scaling):
    spec: BlockSpec

    @property
    def either_way(self) -> bool:
        symmetric = self.spec.shape == "square" and self.spec.statistic == "amax"
        return symmetric and not self.spec.choose and self.spec.scale_rounding != "stochastic"

    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        spec, axes = self.spec, slabs[0].ndim
        if spec.shape == "square" and axes < 2:
            raise ValueError(f"square blocks need two axes; this tensor has {axes}. Use shape: row.")
        sizes = (spec.size,) * (2 if spec.shape == "square" else 1)
        block = (*(1,) * (axes - len(sizes)), *sizes)
        statistic = self._statistic(slabs)
        outer = self._outer(statistic)
        if not spec.choose:
            return self._small(statistic, outer, block, count, key)
        best = self._small(statistic, outer, block, count, key, spec.choose[0])
        if len(spec.choose) > 1:
            bits = self._bits(slabs, key)
            least = self._error(slabs, best, outer, bits)
        for candidate in spec.choose[1:]:
            other = self._small(statistic, outer, block, False, key, candidate)
            error = self._error(slabs, other, outer, bits)
            best, least = best.where(error < least, other), torch.minimum(error, least)
        return best

    def _statistic(self, slabs: Sequence[Tensor]) -> Tensor:
        """That of each block, float32."""
        size, square = self.spec.size, self.spec.shape == "square"
        if self.spec.statistic == "amax":
            magnitude = _magnitude if self.spec.scale == "e8m0" else finite_magnitude
            amax = _joined([block_amax(magnitude(slab), size) for slab in slabs])
            return block_amax(amax.mT, size).mT if square else amax
        parts = zip(*(sums(slab, self.spec.statistic) for slab in slabs), strict=True)
        totals = [_joined([_blocks(part, size).sum(-1) for part in column]) for column in parts]
        if square:
            totals = [_blocks(total.mT, size).sum(-1).mT for total in totals]
        return from_sums(totals, self.spec.statistic)

    def _outer(self, amax: Tensor) -> Tensor | None:
        """The amax that each block shares an outer scale by: of the shape of `amax`, or without axes."""
        outer = self.spec.outer
        if outer == "none":
            return None
        if outer == "tensor":
            return amax.amax() if amax.numel() else amax.new_zeros(())
        if not amax.numel():
            return amax
        if outer == "row":
            return amax.amax(-1, keepdim=True).expand(amax.shape)
        blocks = outer // self.spec.size
        return repeated(block_amax(amax, blocks), blocks, -1, amax.shape[-1])

    def _small(
        self, statistic: Tensor, outer: Tensor | None, block: tuple[int, ...], count: bool, key: Tensor | None,
        candidate: float | None = None,
    ) -> SmallScale:  # fmt: skip
        """The scales of blocks with these statistics; candidate: the grid value they go to, while several are tried."""
        spec = self.spec
        if spec.in_format:
            return spec.small_in_format(
                statistic, self.format, block, count, key,
                outer=outer, bound=spec.bound, candidate=candidate, keeps_outer=self.keeps_outer,
            )  # fmt: skip
        if spec.scale == "e8m0" or spec.mode != "rceil":
            return self._powers(statistic, block, count, candidate)
        return spec.small(statistic, self.format, block, count, candidate)

    def _powers(self, statistic: Tensor, block: tuple[int, ...], count: bool, candidate: float | None) -> SmallScale:
        spec, lowest = self.spec, LOWEST if self.spec.scale == "e8m0" else -126
        amax = raised(statistic, spec.floor)
        if spec.statistic == "std":
            wanted = split_amax(std_scale(amax, self.format), least=0)[1] - 1
        elif spec.mode == "rceil":
            top = spec.top(self.format) if candidate is None else candidate
            wanted = scale_exponent(amax, top, spec.margin, lowest)
        else:
            bits = even_bits(self.format, spec.arithmetic)
            wanted = mode_exponent(amax, self.format, spec.mode, bits) + spec.margin
        outside = (wanted < lowest) | (wanted > HIGHEST)
        clamped = torch.count_nonzero(outside & (amax > 0)) if count else None
        number = torch.where(amax > 0, power_of_two_scale(wanted.clamp(-126, HIGHEST)), 1.0)
        number = e8m0_scale(amax, wanted) if lowest == LOWEST else number
        scales = powers(number, spec.mode, spec.arithmetic, spec.prescale)
        return SmallScale.of(scales.each(held), block, clamped)

    def _bits(self, slabs: Sequence[Tensor], key: Tensor | None) -> Tensor | None:
        """The random bits that the cast will use, of the shape of the whole tensor; None to try to nearest."""
        if self.spec.trial_rounding == "nearest" or key is None:
            return None
        shape = (sum(len(slab) for slab in slabs), *slabs[0].shape[1:])
        if self.turned:
            return held(counted_bits((*shape[:-2], shape[-1], shape[-2]), key, device=slabs[0].device).mT)
        return held(counted_bits(shape, key, device=slabs[0].device))

    def _error(self, slabs: Sequence[Tensor], small: SmallScale, outer: Tensor | None, bits: Tensor | None) -> Tensor:
        """The error of each block under these scales, as `by` and the arithmetic have it."""
        spec, found, start = self.spec, [], 0
        for slab in slabs:

            def of_rows(number: Tensor, start: int = start, slab: Tensor = slab) -> Tensor:
                return self._of_rows(number, start, slab)

            scales = small.once.each(of_rows)
            x = slab.detach().to(torch.float32)
            x = _blocks(torch.where(x.isfinite(), x, 0), spec.size)
            units = scales.units(x, zeros=True)
            if bits is None:
                q = to_nearest(units, self.format)
            else:
                own = _blocks(bits[start : start + len(slab)], spec.size)
                q = bound_units(round_units(units, self.format, Rounding.stochastic, own), self.format)
            shared = None if outer is None else of_rows(outer)
            error = candidate_values(q, scales, shared, spec.top(self.format) * spec.bound, spec.arithmetic).sub(x)
            error = error * error if spec.by == "mse" else error.abs()
            found.append(error.amax(-1) if spec.by == "amax" else added(error, spec.arithmetic))
            start += len(slab)
        errors = _joined(found)
        if spec.shape == "row":
            return errors
        columns = _blocks(errors.mT, spec.size)
        return (columns.amax(-1) if spec.by == "amax" else halved(columns)).mT

    def _of_rows(self, number: Tensor, start: int, slab: Tensor) -> Tensor:
        """Numbers of blocks as they meet a slab that begins in row `start`, seen in blocks along its last axis."""
        if number.ndim == 0:
            return number
        size = self.spec.size
        if self.spec.shape == "square" and number.ndim == 2:
            number = number[torch.arange(start, start + len(slab), device=number.device) // size]
        elif number.ndim > 1:
            number = number[start : start + len(slab)]
            if self.spec.shape == "square":
                number = repeated(number, size, -2, slab.shape[-2])
        return number[..., None]


class Mx(Block):
    """Under its preset's name."""


class Nvfp4(Block):
    """Likewise."""


def _magnitude(x: Tensor) -> Tensor:
    """|x| as float32, same shape, with inf as 0; NaN stays."""
    magnitude = x.detach().to(torch.float32).abs()
    return torch.where(magnitude == math.inf, 0, magnitude)


def mode_exponent(amax: Tensor, fmt: NumberFormat, mode: Mode, bits: int) -> Tensor:
    """The exponent of the scale as the rule, not rceil, has it, int32; whatever for 0 and NaN. bits: of `even`."""
    mantissa, exponent = split_amax(amax, least=2 - fmt.max_binade)
    if mode == "even":
        # Rounding amax to the bits can only matter where it carries into the next power of two: from there on upwards,
        # since the tie below a power of two goes to it.
        exponent = exponent + (mantissa >= 1 - 2.0 ** -(bits + 2)).to(torch.int32)
    if mode == "ceil":
        exponent = exponent + (mantissa > 0.5).to(torch.int32)
    return exponent - 1 - fmt.max_binade


def e8m0_scale(amax: Tensor, wanted: Tensor) -> Tensor:
    """The powers of two with the exponents wanted, float32; the least for an amax of 0, NaN for one of NaN."""
    found = torch.where(amax == 0, LOWEST, wanted.clamp(LOWEST, HIGHEST))
    # Two factors: 2^-127 is below float32's normal range, so it has no exponent field of its own.
    scale = ((found + 1 + 127) << 23).clamp(max=254 << 23).to(torch.int32).view(torch.float32) * 0.5
    scale = torch.where(found == HIGHEST, 2.0**HIGHEST, scale)
    return torch.where(amax == amax, scale, torch.nan)
