"""Tensors everybody knows, to compare formats on: the quantiles of normal, Laplace and Student's t distributions.

The sample is not drawn. Its n values are the quantiles at (i + 1/2) / n, the n points whose distribution is closest to
the continuous one, so there is no seed, the figures have no sampling error, and the largest value is a function of n
alone. Counted random bits would have been as repeatable, but not as fair: the amax of 2^20 draws of t5 has a standard
deviation of 31 % of its mean (it is Frechet with exponent 5), and every figure at the amax scale would hang on the key.
What is compared works elementwise, so order is of no consequence; values ascend. All three have unit variance.

With the upper tail's probability q in (0, 1/2): normal by the inverse of its distribution function, Laplace
-log(2 q) / sqrt(2). t5 has an elementary distribution function: with t = sqrt(5) / tan(phi), phi in (0, pi/2),
q = (phi - sin phi cos phi (1 + 2/3 sin^2 phi)) / pi (Abramowitz and Stegun 26.7.3), about 8 phi^5 / (15 pi). It rises
and is convex in phi, so Newton's method converges from everywhere, and from that approximation in a few steps.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIZE = 1 << 20
"""How many values a sample has unless asked otherwise; a power of two, so that every (i + 1/2) / n is exact."""


def reference_sample(name: str, size: int = SIZE) -> Tensor:
    """`size` values of the distribution `normal`, `laplace` or `t5`, ascending, float32 [size], unit variance.

    The sample's own variance is a little less, for its tails end at the quantile 1/(2 size). ValueError for an unknown
    name or an odd or negative size.
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(f"'{name}' is not a distribution here; choose from {', '.join(DISTRIBUTIONS)}.")
    if size < 2 or size % 2:
        raise ValueError(f"size {size}; a symmetric sample has an even number of values, at least 2.")
    tail = (torch.arange(size // 2, dtype=torch.float64) + 0.5) / size  # from far out to the median
    upper = DISTRIBUTIONS[name](tail)
    return torch.cat((-upper, upper.flip(0))).float()


def _normal(tail: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(tail)
    return -quantile


def _laplace(tail: Tensor) -> Tensor:
    return (2 * tail).log() / -math.sqrt(2)


def _t5(tail: Tensor) -> Tensor:
    angle = (tail * (15 * math.pi / 8)).pow(0.2)
    for _ in range(8):
        sine, cosine = angle.sin(), angle.cos()
        square = sine.square()
        excess = (angle - sine * cosine * (1 + 2 / 3 * square)) / math.pi - tail
        angle = angle - excess / (8 / (3 * math.pi) * square.square())
    return math.sqrt(5) / angle.tan() / math.sqrt(5 / 3)


DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {"normal": _normal, "laplace": _laplace, "t5": _t5}
"""Upper-tail probability in (0, 1/2) -> the value it lies above."""
