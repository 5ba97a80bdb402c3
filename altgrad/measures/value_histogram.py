"""A tensor as a histogram that every format can be judged on: one pass over the elements, then none.

A bin holds the values that share sign, exponent and the first ten bits of the mantissa: the upper 19 bits of float32.
Of each bin two numbers are kept, how many values n it holds and their sum; beside them stand the energy sum x^2 and the
amax of the whole. Casting the *bins* instead of the elements then answers for any format and scale:

    noise = sum over bins of n (mean - Q(mean))^2  +  V,        V = sum x^2 - sum over bins of n mean^2

V, what varies inside the bins, is the same for every cast that treats a bin as one. And under a power-of-two scale a
format of up to nine mantissa bits does: the points where its rounding changes its mind, midpoints of neighbouring grid
values, sub-normals and the end of the range included, need one bit more than its mantissa and so lie between bins. SQNR
and every count are then those of the cast itself. Only a value that lies exactly on such a midpoint, in a bin where
others lie as well, may be counted with the others: a tie, whose squared error is the same on either side. (Values of
bf16 and fp16 have a bin each, ties among them.)

Under other scales, and for ten mantissa bits or more, a midpoint cuts through a bin: what follows is an *estimate*. A
bin goes as a whole where its mean goes, which overstates the noise by (bin / cell)^2 at most; and where a cell is less
than nine bins wide its noise is taken as gap^2 / 12, that of values spread evenly. Within 0.02 dB of the cast on
smooth distributions. (If V is 0, every bin holds one value, and all of this is exact again.)

Roads not taken: exponents alone with a density assumed inside the binade, as published format searches do (off by
decibels on weights that were rounded before); sorting, which `best_scale` does (ten times a pass, and 32 bytes an
element).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding
from altgrad.measures.best_scale import Magnitudes, best_power_of_two, best_real
from altgrad.measures.code_utilisation import code_utilisation
from altgrad.measures.format_fit import CastFit, FormatFit
from altgrad.measures.sqnr import decibels
from altgrad.quantize.codes import to_codes
from altgrad.quantize.grid import beyond, bound_units, grid_units, in_float32, inside, round_units, spacing_units
from altgrad.quantize.scaling import scale_of
from altgrad.quantize.traced import binade

LEADING_BITS = 10
"""Mantissa bits that tell bins apart."""
_SHIFT = 23 - LEADING_BITS
_BINS = 1 << (9 + LEADING_BITS)
_NOT_FINITE = 255 << LEADING_BITS
_SIGN = 1 << (8 + LEADING_BITS)
_PIECE = 1 << 21
_SAME = 1e-13  # of the energy: float64's own rounding


class Bins(NamedTuple):
    """means: float64 [n]. counts: float64 [n]. within: the energy that the means leave out, V above."""

    means: Tensor
    counts: Tensor
    within: float


class ValueHistogram:
    """Counts and sums of everything `add`ed, 8 MB whatever the number of elements. inf and NaN are only counted."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.sums = torch.zeros(_BINS, dtype=torch.float64)
        self.energy, self.amax = 0.0, 0.0
        self.zeros = torch.zeros(2, dtype=torch.int64)  # +0 and -0
        self.nonfinite = 0
        self._bins: Bins | None = None

    def add(self, x: Tensor) -> None:
        """Count the elements of x: any shape and device, float32, bf16 or fp16; TypeError for others."""
        self._bins = None
        flat = in_float32(x).cpu().flatten()
        for start in range(0, flat.numel(), _PIECE):
            part = flat[start : start + _PIECE]
            bins = _bin_of(part)
            counts = torch.bincount(bins, minlength=_BINS)
            if strange := int(_not_finite(counts).sum()):
                self.nonfinite += strange
                part = part[part.isfinite()]
                bins = _bin_of(part)
                counts = torch.bincount(bins, minlength=_BINS)
            if not part.numel():
                continue
            exact = part.to(torch.float64)
            self.counts += counts
            self.sums += torch.bincount(bins, weights=exact, minlength=_BINS)
            self.energy += float(exact.dot(exact))
            self.amax = max(self.amax, float(part.max()), -float(part.min()))
            if counts[0] or counts[_SIGN]:
                self.zeros += torch.stack([((part == 0) & (part.signbit() == sign)).sum() for sign in (False, True)])

    @property
    def count(self) -> int:
        """Finite elements."""
        return int(self.counts.sum())

    def bins(self) -> "Bins":
        """What holds something. Zeros of either sign have bins of their own beside what is smaller than 2^-136."""
        if self._bins is None:
            counts, sums = torch.cat((self.counts, self.zeros)), torch.cat((self.sums, torch.tensor([0.0, -0.0])))
            counts[[0, _SIGN]] -= self.zeros
            used = counts.nonzero().flatten()
            number = counts[used].to(torch.float64)
            means = sums[used] / number
            within = self.energy - float((number * means.square()).sum())
            self._bins = Bins(means, number, 0.0 if within < _SAME * self.energy else within)
        return self._bins

    def is_exact(self, fmt: NumberFormat, scale: float) -> bool:
        """Whether `fit` under this scale is the cast's own figure and not an estimate."""
        return self.bins().within == 0 or (fmt.midpoint_bits <= LEADING_BITS and math.frexp(scale)[0] == 0.5)

    def _noise(self, units: Tensor, cast: Tensor, scale: float, fmt: NumberFormat) -> float:
        """Sum of squared errors, from the bins in grid units (float32) and where they go (float64, in x's units)."""
        means, counts, within = self.bins()
        noise = counts * (means - cast).square()
        if self.is_exact(fmt, scale):
            return float(noise.sum()) + within
        width = binade(means.float(), 0.0, math.inf).double() * 2.0**-LEADING_BITS
        gaps = spacing_units(units, fmt).double() * scale
        fine = inside(units, fmt) & (gaps < 9 * width)
        share = counts * width.square()
        left = within * float(share[~fine].sum() / share.sum())
        return float(torch.where(fine, counts * gaps.square() / 12, noise).sum()) + left

    def magnitudes(self, *, signed: bool = False) -> Magnitudes:
        """The bins' means, for the search of a scale."""
        means, counts, _ = self.bins()
        means = means if signed else means.abs()
        order = means.argsort()
        return Magnitudes(means[order], counts[order], signed=signed)

    def fit(self, fmt: NumberFormat, scale: float) -> CastFit:
        """What a cast to `fmt` under `scale` keeps, to nearest even, saturated: see the head for where it is exact."""
        means, counts, _ = self.bins()
        values = means.float()
        units = grid_units(values, scale)
        unbounded = round_units(units, fmt, Rounding.nearest_even)
        rounded = bound_units(unbounded, fmt)
        noise = self._noise(units, rounded.double() * scale, scale, fmt)
        nonzero = values != 0
        lost = float(counts[nonzero & (rounded == 0)].sum())
        clipped = float(counts[beyond(unbounded, fmt)].sum())
        histogram = torch.bincount(to_codes(rounded, fmt), weights=counts, minlength=1 << fmt.bits)
        return CastFit(
            scale,
            float(decibels(torch.tensor(self.energy).double(), torch.tensor(noise).double())),
            lost / (float(counts[nonzero].sum()) or math.nan),
            clipped / (float(counts.sum()) or math.nan),
            float(code_utilisation(histogram, fmt)["utilisation"]),
        )


def fit_histogram(histogram: ValueHistogram, formats: Sequence[NumberFormat]) -> dict[str, FormatFit]:
    """As `fit_formats` of the tensor behind the histogram: each format under the four scales, by name.

    ValueError for a histogram without finite values, and for a format outside the tensor domain.
    """
    for fmt in formats:
        fmt.require_tensor_domain()
    if histogram.count == 0:
        raise ValueError("a tensor without finite values fits every format alike; give one that has some.")
    magnitudes = functools.cache(lambda signed: histogram.magnitudes(signed=signed))
    amax = torch.tensor(histogram.amax, dtype=torch.float32)
    return {str(fmt): _fit(histogram, magnitudes(not fmt.is_symmetric), amax, fmt) for fmt in formats}


def _fit(histogram: ValueHistogram, magnitudes: Magnitudes, amax: Tensor, fmt: NumberFormat) -> FormatFit:
    fit = functools.cache(lambda scale: histogram.fit(fmt, scale))
    snug, snug_real = (fit(float(scale_of(amax, fmt, power_of_two=power))) for power in (True, False))
    # The mean of the top bin is a little below amax, and its scale may be one binade lower.
    best = max((fit(best_power_of_two(magnitudes, fmt)), snug), key=_decibels)
    found = (best, snug_real, snug, fit(best_real(magnitudes, fmt)))
    return FormatFit(snug, snug_real, best, max(found, key=_decibels))


def _decibels(fit: CastFit) -> float:
    return fit.sqnr_db


def _bin_of(x: Tensor) -> Tensor:
    return (x.view(torch.int32) >> _SHIFT).bitwise_and_(_BINS - 1)


def _not_finite(counts: Tensor) -> Tensor:
    return torch.stack((counts[_NOT_FINITE:_SIGN].sum(), counts[_SIGN + _NOT_FINITE :].sum()))
