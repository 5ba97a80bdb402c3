"""Gradient signal to noise ratio, coordinate by coordinate over the N micro-batches of a step.

    GSNR = mean^2 / variance                  (Liu et al., arXiv 2001.07384)
         ~ (m^2 - v / N) / v                  m, v the sample mean and unbiased variance over micro-batches

The square of a sample mean is too large by v / N on average, which for a true GSNR below 1 / N would be all that one
sees; it is subtracted, so estimates may be negative. |mean| / std over the *coordinates* of one gradient is no SNR.
Mean and variance run along by Welford's recurrence in float64: a coordinate that never varies keeps a variance of
exactly 0, which sums of squares would leave at a rounding error.

A constant coordinate has no GSNR (zeros: rows of an embedding that no token used). It takes part in no aggregate and
is counted. The mean over coordinates has a heavy tail at small N (1 / v), so the median stands beside it, and `pooled`,
sum(m^2 - v / N) / sum v, the ratio for the gradient as a whole.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.measures.quantiles import quantiles
from altgrad.measures.share import share

FEWEST = 4
"""Micro-batches below which there is no GSNR."""


class GradientMoments(NamedTuple):
    """Running moments of one gradient over micro-batches."""

    number: Tensor
    """Micro-batches so far: float64 scalar."""
    mean: Tensor
    """float64, of the gradient's shape."""
    deviation: Tensor
    """Sum of squared deviations from the mean: float64, of the gradient's shape."""


def moments_start(gradient: Tensor) -> GradientMoments:
    """Moments of no micro-batch yet, for gradients of this shape."""
    zeros = torch.zeros_like(gradient, dtype=torch.float64)
    return GradientMoments(zeros.new_zeros(()), zeros, zeros.clone())


def add_gradient(moments: GradientMoments, gradient: Tensor) -> GradientMoments:
    """The moments with one more micro-batch's own gradient, not the accumulated one (Welford 1962)."""
    number = moments.number + 1
    difference = gradient.detach().to(torch.float64) - moments.mean
    mean = moments.mean + difference / number
    return GradientMoments(number, mean, moments.deviation + difference * (gradient.detach() - mean))


def merge_moments(first: GradientMoments, second: GradientMoments) -> GradientMoments:
    """The moments of both sets of micro-batches together, as those of two ranks (Chan, Golub, LeVeque 1983)."""
    number = first.number + second.number
    weight = second.number / number.clamp(min=1)
    difference = second.mean - first.mean
    between = difference.square() * (first.number * weight)
    return GradientMoments(number, first.mean + difference * weight, first.deviation + second.deviation + between)


def gsnr(moments: GradientMoments) -> Tensor:
    """GSNR of each coordinate: float64, of the gradient's shape; NaN for N < 4, constant or non-finite coordinates."""
    variance = moments.deviation / (moments.number - 1)
    found = moments.mean.square() / variance - 1 / moments.number
    known = (variance > 0) & variance.isfinite() & (moments.number >= FEWEST)
    return torch.where(known, found, torch.nan)


def gsnr_summary(moments: GradientMoments) -> dict[str, Tensor]:
    """median, mean, pooled over the coordinates that vary, and constant_share: float64 scalars.

    All NaN for N < 4; the first three also if no coordinate varies. The median costs a sort.
    """
    ratios = gsnr(moments)
    varies = ~ratios.isnan()
    enough = moments.number >= FEWEST
    variance = moments.deviation / (moments.number - 1)
    signal = torch.where(varies, moments.mean.square() - variance / moments.number, 0).sum()
    elements = torch.full_like(moments.number, ratios.numel())
    constant = share((moments.deviation == 0).sum(), elements)
    return {
        "median": quantiles(ratios, (0.5,))[0],
        "mean": share(ratios.nansum(), varies.sum()),
        "pooled": share(signal, torch.where(varies, variance, 0).sum()),
        "constant_share": torch.where(enough, constant, torch.nan),
    }
