"""How well a format fits a tensor: what one cast to it keeps, under the four scales worth comparing.

    amax_power_of_two   the smallest power of two under which nothing saturates, as `scaling: current` has it
    amax_real           amax / max
    best_power_of_two   of least squared error among the powers of two
    best_real           of least squared error

For each: SQNR, the underflow and the saturation rate, and code utilisation. All are measured on the very cast that
training does (round to nearest even, saturate); only the search for the best scales works on sorted magnitudes. A
format is judged here by one number, the squared error, which is not what training needs of it; this is where to start.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding
from altgrad.measures.best_scale import Magnitudes, best_power_of_two, best_real
from altgrad.measures.code_utilisation import code_histogram, code_utilisation
from altgrad.measures.range import range_counts
from altgrad.measures.sqnr import sqnr
from altgrad.quantize.codes import to_codes
from altgrad.quantize.grid import bound_units, grid_units, round_units
from altgrad.quantize.scaling import scale_of


class CastFit(NamedTuple):
    """What one cast under `scale` keeps. NaN where there is nothing to take a share of."""

    scale: float
    sqnr_db: float
    underflow_rate: float
    saturation_rate: float
    code_utilisation: float


class FormatFit(NamedTuple):
    """One format on one tensor, under the module's four scales."""

    amax_power_of_two: CastFit
    amax_real: CastFit
    best_power_of_two: CastFit
    best_real: CastFit


def fit_formats(x: Tensor, formats: Sequence[NumberFormat]) -> dict[str, FormatFit]:
    """Each format's fit to the finite entries of x, by name, in the order given.

    x: any shape, float32, bf16 or fp16. ValueError for a tensor without finite entries, and for a format outside the
    tensor domain. `best_real` is never worse than the other three: where the search ends in a tie, or the cast's one
    division rounds against it, the better of those takes its place.
    """
    for fmt in formats:
        fmt.require_tensor_domain()
    values = x.detach().flatten().to(torch.float32)
    values = values[values.isfinite()]
    if values.numel() == 0:
        raise ValueError("a tensor without finite values fits every format alike; give one that has some.")
    magnitudes = functools.cache(lambda signed: Magnitudes.of(values, signed=signed))
    return {str(fmt): _fit(values, magnitudes(not fmt.is_symmetric), fmt) for fmt in formats}


def fit_cast(x: Tensor, fmt: NumberFormat, scale: float) -> CastFit:
    """What the cast of x (float32, finite) to `fmt` under `scale` keeps."""
    units = grid_units(x, scale)
    unbounded = round_units(units, fmt, Rounding.nearest_even)
    rounded = bound_units(unbounded, fmt)
    counts = {name: int(count) for name, count in range_counts(units, unbounded, rounded, fmt).items()}
    nonzero, finite = counts["nonzero"] or math.nan, counts["finite"] or math.nan
    histogram = code_histogram(to_codes(rounded, fmt), fmt)
    return CastFit(
        scale,
        float(sqnr(x, rounded.double() * scale)),
        counts["underflow"] / nonzero,
        counts["saturated"] / finite,
        float(code_utilisation(histogram, fmt)["utilisation"]),
    )


def _fit(values: Tensor, magnitudes: Magnitudes, fmt: NumberFormat) -> FormatFit:
    fit = functools.cache(lambda scale: fit_cast(values, fmt, scale))  # the best scale is often that of amax
    amax, amax_real = (fit(float(scale_of(magnitudes.amax, fmt, power_of_two=power))) for power in (True, False))
    best = fit(best_power_of_two(magnitudes, fmt))
    found = (best, amax_real, amax, fit(best_real(magnitudes, fmt)))
    return FormatFit(amax, amax_real, best, max(found, key=lambda each: each.sqnr_db))
