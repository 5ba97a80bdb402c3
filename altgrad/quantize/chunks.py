"""Casting a tensor that is large, a slab of rows at a time.

A cast makes half a dozen temporaries of its tensor's size. In slabs their size is fixed, so what a cast of a whole
weight needs beside the weight is next to nothing. Only the scale may depend on the whole tensor: it is found first,
by the scaling itself, from the same slabs in one pass over them or two. Bits of stochastic rounding are counted by
the flat index in the whole tensor. So the slabs together are, bit for bit, what `Quantizer.cast` makes of the tensor
in its next pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.cast import Cast
from altgrad.quantize.grid import bound_units, in_float32, keep_infinite, round_units
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.quantizer import Quantizer

ELEMENTS = 1 << 18
"""Elements of a slab: 1 MiB of float32, so the temporaries stay in a core's cache."""


def in_slabs(x: Tensor) -> list[Tensor]:
    """x in slabs: views of its rows, some to each.

    Whole it stays where slabs gain nothing: on a GPU, in a graph that is being compiled, and with fewer than two axes.
    """
    if x.ndim < 2 or x.numel() <= ELEMENTS or x.device.type != "cpu" or torch.compiler.is_compiling():
        return [x]
    return [x[start:stop] for start, stop in _ranges(x)]


def whole_scale(x: Tensor, quantizer: Quantizer) -> SmallScale | None:
    """The scale under which the quantizer casts the whole of x, or None for none. x: 2-D. Nothing is recorded.

    It says how many of its entries were clamped.
    """
    if x.numel() == 0:
        return None
    turned = quantizer.reduced == "first"
    key = fold(quantizer.key, getattr(quantizer, "counter", 0)) if quantizer.spec.draws else None
    found = quantizer.scaling.find(in_slabs(x.mT if turned else x), count=True, key=key)
    return found.turned if found is not None and turned else found


def cast_in_slabs(x: Tensor, quantizer: Quantizer, whole: SmallScale | None) -> Iterator[tuple[Tensor, Cast]]:
    """Each slab of x with its cast, in order; `whole` from `whole_scale`. Nothing is recorded or shown to observers.

    x: 2-D float32, bf16 or fp16. Where a scale is 0 (a block that NVFP4 gives up) the rounded values are zeros, too.
    """
    spec = quantizer.spec
    key = fold(quantizer.key, getattr(quantizer, "counter", 0))
    for start, stop in _ranges(x):
        slab = x[start:stop]
        scales = None if whole is None else whole.rows(start, stop).spread_all(tuple(slab.shape))
        scale = None if scales is None else scales.scale
        exact = in_float32(slab) if scales is None else scales.units(slab, zeros=spec.scaling.zero_scales)
        noise = None
        if spec.rounding is Rounding.stochastic:
            noise = counted_bits(exact.shape, key, offset=start * x.shape[1], device=x.device)
        goal = None if quantizer.average is None else quantizer.average.goal(slab, False, slice(start, stop))
        if goal is not None and scales is not None:
            goal = scales.units(goal, zeros=spec.scaling.zero_scales)
        unbounded = round_units(exact, spec.format, spec.rounding, noise, spec.random_bits, goal)
        if scale is not None and spec.scaling.zero_scales:
            zeros = torch.zeros_like(unbounded).copysign(exact)
            unbounded = torch.where((scale == 0) & unbounded.isfinite(), zeros, unbounded)
        rounded = bound_units(unbounded, spec.format, spec.overflow)
        rounded = rounded if spec.nonfinite == "saturate" else keep_infinite(in_float32(slab), rounded)
        yield slab, Cast(quantizer.site, quantizer.role, spec.format, scale, exact, unbounded, rounded, None, scales)


def _ranges(x: Tensor) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of each slab."""
    rows = max(1, ELEMENTS * len(x) // max(1, x.numel()))
    for start in range(0, len(x), rows):
        yield start, min(start + rows, len(x))
