"""Gradient signal to noise ratio, coordinate by coordinate over the N micro-batches of a step.

    GSNR = mean^2 / variance                             (Liu et al., arXiv 2001.07384)
         ~ ((N - 3) / (N - 1)) m^2 / v - 1 / N           m, v the sample mean and unbiased variance over micro-batches

Two biases are taken off, both exactly where gradients are normal. The square of a sample mean is too large by
variance / N on average. And the mean of 1 / v is (N - 1) / (N - 3) of 1 / variance, since v is a chi-square: without
the factor a coordinate without any signal shows 0.5 at N = 4. So estimates may be negative, and they need N >= 6: from
there on the estimate has a variance. |mean| / std over the *coordinates* of one gradient is no SNR.
Mean and variance run along by Welford's recurrence in float64: a coordinate that never varies keeps a variance of
exactly 0, which sums of squares would leave at a rounding error.

A constant coordinate has no GSNR (zeros: rows of an embedding that no token used). It takes part in no aggregate and
is counted. The headline is `pooled`, the ratio for the gradient as a whole over its p coordinates that vary,

    ((d - 2) / d) sum m^2 / sum v - 1 / N,      d = p (N - 1),

the same estimator where p = 1, and all but free of the second bias where p is large, since then sum v hardly varies.
The mean over coordinates has a heavy tail at small N, which is why a median is shown, too; half of a skewed
distribution is not its mean, so the median of a gradient without signal is a little below 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.measures.quantiles import quantiles
from altgrad.measures.share import share

FEWEST = 6
"""Micro-batches below which there is no GSNR: the estimate has a variance from here on."""


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
    """GSNR of each coordinate: float64, of the gradient's shape; NaN for N < 6, constant or non-finite coordinates."""
    variance = moments.deviation / (moments.number - 1)
    found = (moments.number - 3) / (moments.number - 1) * moments.mean.square() / variance - 1 / moments.number
    known = (variance > 0) & variance.isfinite() & (moments.number >= FEWEST)
    return torch.where(known, found, torch.nan)


def gsnr_summary(moments: GradientMoments) -> dict[str, Tensor]:
    """median, mean, pooled over the coordinates that vary, and constant_share: float64 scalars.

    All NaN for N < 6; the first three also if no coordinate varies. The median costs a sort.
    """
    ratios = gsnr(moments)
    varies = ~ratios.isnan()
    enough = moments.number >= FEWEST
    variance = moments.deviation / (moments.number - 1)
    freedom = varies.sum() * (moments.number - 1)
    squares = torch.where(varies, moments.mean.square(), 0).sum()
    whole = share(squares, torch.where(varies, variance, 0).sum())
    elements = torch.full_like(moments.number, ratios.numel())
    constant = share((moments.deviation == 0).sum(), elements)
    return {
        "median": quantiles(ratios, (0.5,))[0],
        "mean": share(ratios.nansum(), varies.sum()),
        "pooled": whole * share(freedom - 2, freedom) - 1 / moments.number,
        "constant_share": torch.where(enough, constant, torch.nan),
    }
