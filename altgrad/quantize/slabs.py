"""Casting a tensor that is large, a slab of rows at a time.

A cast makes half a dozen temporaries of its tensor's size. In slabs their size is fixed, so what a cast of a whole
weight needs beside the weight is next to nothing. Only the scale may depend on the whole tensor: it is found first, by
the scaling itself, and slab by slab too where the scaling says of itself that rows (or groups of them) do not see one
another. Bits of stochastic rounding are counted by the flat index in the whole tensor. So the slabs together are, bit
for bit, what `Quantizer.cast` makes of the tensor in its first pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.quantize.block import Block, Mx
from altgrad.quantize.grid import bound_units, grid_units, round_units
from altgrad.quantize.mse import Mse
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.quantizer import Cast, Quantizer
from altgrad.quantize.scaling import Current, ScalingSpec
from altgrad.quantize.small_scale import SmallScale

ELEMENTS = 1 << 18
"""Elements of a slab: 1 MiB of float32, so the temporaries stay in a core's cache."""


def whole_scale(x: Tensor, quantizer: Quantizer) -> SmallScale | None:
    """The scale under which the quantizer casts the whole of x, or None for none. x: 2-D. Nothing is recorded."""
    if x.numel() == 0:
        return None
    block = None if quantizer.reduced == "first" else _independent_blocks(quantizer.spec.scaling)
    if block is None:
        scale = _scale(x, quantizer)
        return None if scale is None else SmallScale.of(scale)
    rows, columns = block
    parts = []
    for start, stop in _ranges(x, rows):
        scale = _scale(x[start:stop], quantizer)
        assert scale is not None
        parts.append(scale[::rows, ::columns].clone())  # a view would keep the whole of it
    return SmallScale(torch.cat(parts), block)


def cast_in_slabs(x: Tensor, quantizer: Quantizer, whole: SmallScale | None) -> Iterator[tuple[Tensor, Cast]]:
    """Each slab of x with its cast, in order; `whole` from `whole_scale`. Nothing is recorded or shown to observers.

    x: 2-D float32, bf16 or fp16. Where a scale is 0 (a block that NVFP4 gives up) the rounded values are zeros, too.
    """
    spec = quantizer.spec
    key = fold(quantizer.key, 0)
    group = 1 if whole is None or whole.entries.ndim == 0 or len(whole.entries) == 1 else whole.block[0]
    for start, stop in _ranges(x, group):
        slab = x[start:stop]
        scale = None if whole is None else whole.rows(start, stop).spread(tuple(slab.shape))
        zero = scale == 0 if scale is not None and spec.scaling.zero_scales else None
        exact = grid_units(slab, scale if scale is None or zero is None else torch.where(zero, 1.0, scale))
        noise = None
        if spec.rounding is Rounding.stochastic:
            noise = counted_bits(exact.shape, key, offset=start * x.shape[1], device=x.device)
        unbounded = round_units(exact, spec.format, spec.rounding, noise, spec.random_bits)
        if zero is not None:
            unbounded = torch.where(zero & unbounded.isfinite(), torch.zeros_like(unbounded).copysign(exact), unbounded)
        rounded = bound_units(unbounded, spec.format, spec.overflow)
        yield slab, Cast(quantizer.site, quantizer.role, spec.format, scale, exact, unbounded, rounded)


def _scale(x: Tensor, quantizer: Quantizer) -> Tensor | None:
    if quantizer.reduced == "last":
        return quantizer.scaling.scale(x, live=False)
    scale = quantizer.scaling.scale(x.mT, live=False)
    return scale.mT if scale is not None and scale.ndim > 1 else scale


def _independent_blocks(scaling: ScalingSpec) -> tuple[int, int] | None:
    """Rows and columns of the blocks of a scaling whose rows of blocks do not see one another; None for any other."""
    if isinstance(scaling, Block):
        return (scaling.size if scaling.shape == "square" else 1), scaling.size
    if isinstance(scaling, Mx):
        return 1, scaling.size
    return (1, 1) if isinstance(scaling, Current | Mse) and scaling.granularity == "channel" else None


def _ranges(x: Tensor, group: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of each slab; slabs but the last are a multiple of `group` rows."""
    rows = max(1, ELEMENTS // max(1, x.shape[1]) // group) * group
    for start in range(0, len(x), rows):
        yield start, min(start + rows, len(x))
