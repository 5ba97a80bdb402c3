"""eden: what rounding to nearest took from a turned run is given back to its length, in the scales of its blocks.

    c = <u, u> / <u, q>        inner scale of each block in the run <- R(c inner)

with u the run in grid units, q what it was rounded to, and R the stochastic rounding to the format of inner scales
(none for real scales). So what a run has along itself is right in the mean, at less than half of the squared error that
stochastic rounding of the elements makes; across it, errors are unbiased only under a uniformly random rotation. Fresh
Hadamard signs in every call come near for dense runs: the bias is O(1/d), and percents for sparse ones (MS-EDEN, arXiv
2601.22813; EDEN, 2108.08842).

The inner product is one of grid units, as in the authors' code: where a run has blocks of different scales, what is
exact is not <x, c q s> but the same with each block counted by 1/s^2. Sums take halves onto one another, so that
engines agree. c is 1 where it is no number, or 0: for a run of zeros, where nothing but zeros is left of one, and where
an overflow became inf, which would take the rest of the run to 0.

Random bits come from the pass's key folded with `EDEN_BITS`, counted by the block's flat index.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize.arithmetic import halved
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.traced import repeated

EDEN_BITS = torch.tensor(0xEDE2)


def rounds_scales(scaling: Any) -> bool:
    """Whether corrected scales are rounded to a format."""
    return isinstance(getattr(scaling, "scale", None), FloatFormat)


def require_correctable(scaling: Any) -> None:
    """ValueError for a scaling without scales that a correction could go into."""
    blocks = getattr(scaling, "shape", None)
    if blocks != "row":
        have = f"scaling: {scaling.kind} has none" if blocks is None else f"shape: {blocks} spans several runs"
        raise ValueError(f"correction: eden rescales the blocks of a run, and {have}; use shape: row, such as nvfp4's.")
    if scaling.scale in ("power_of_two", "e8m0"):
        raise ValueError(
            f"correction: eden does not go with scale: {scaling.scale}, since a power of two has no room for it; use a "
            "format, such as scale: e4m3fn, or real."
        )


def require_run(scaling: Any, run: int | None) -> None:
    """ValueError where a run is not whole blocks."""
    if run is None:
        raise ValueError("correction: eden needs a transform, whose runs it corrects; this cast has none.")
    if run % scaling.size:
        raise ValueError(
            f"correction: eden needs whole blocks: scaling.size {scaling.size} does not divide transform.size {run}."
        )


def correction(u: Tensor, q: Tensor, run: int) -> Tensor:
    """<u, u> / <u, q> of each whole run along the last axis: [..., n] gives [..., n // run]."""
    whole = u.shape[-1] // run * run
    u, q = (x[..., :whole].reshape(*x.shape[:-1], -1, run) for x in (u, q))
    found = halved(u * u) / halved(u * q)
    return torch.where(found.isfinite() & (found != 0), found, 1.0)


def eden(u: Tensor, q: Tensor, found: SmallScale, scaling: Any, run: int, key: Tensor | None) -> SmallScale:
    """The scales with each run's correction. u, q: [..., n] in grid units; found: theirs, along the last axis.

    A last run that is not full was not turned, and stays as it is. key: of the pass; without one nothing is drawn and
    corrected scales are rounded to nearest.
    """
    entries = found.entries
    factor = correction(u, q, run)
    if u.shape[-1] % run:
        factor = functional.pad(factor, (0, 1), value=1.0)
    factor = repeated(factor, run // scaling.size, -1, entries.shape[-1])
    if not rounds_scales(scaling):
        return replace(found, entries=entries * factor)
    assert found.outer is not None
    inner = entries / found.outer if found.inner is None else found.inner
    inner = bound_units(round_units(inner, scaling.scale, Rounding.nearest_even), scaling.scale) * factor
    noise = None if key is None else counted_bits(inner.shape, fold(key, EDEN_BITS), device=inner.device)
    rounding = Rounding.nearest_even if noise is None else Rounding.stochastic
    inner = bound_units(round_units(inner, scaling.scale, rounding, noise), scaling.scale)
    return replace(found, entries=inner * found.outer, inner=None if found.inner is None else inner)
