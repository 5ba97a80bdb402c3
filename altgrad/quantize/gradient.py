"""What becomes of the gradient behind a cast: the straight-through estimators.

    identity    as if nothing had been rounded
    clipped     0 where the value lay outside of the format's range
    dge         the slope of a smooth stair instead of 1: Wang et al., arXiv 2501.17116

A rounding is flat but for its jumps. `dge` takes it for the limit of k -> infinity of a curve that within each gap goes
from one end to the other as sign(2t - 1) |2t - 1|^(1/k), t being how far the value has come in its gap, and uses the
slope of that curve

    min(clamp, (1/k) |2t - 1|^(1/k - 1))        0 beyond the largest value

of x / scale, so whatever the scaling. It is 1/k on grid values, and as large as `clamp` lets it at the midpoints, where
a value is about to change. Without `clamp` its mean over a gap is 1; with 3 at k = 5 it is 0.59, so gradients come out
smaller by that much: a learning rate tuned for identity is not the one for dge.

The power is a k-th root by Newton's steps in float64, since neither torch's engines nor its devices agree on `pow`.
"""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantize.grid import inside, position_units
from altgrad.quantize.traced import cached
from altgrad.spec import Kind


class Estimator(Kind, family="gradient", package="altgrad.quantize"):
    """What becomes of the gradient behind a cast."""

    def factor(self, exact: Tensor, fmt: NumberFormat) -> Tensor | None:
        """What the gradient is multiplied with: bool or float32, of the shape of `exact`; None for 1 throughout.

        exact: what was rounded, float32 in grid units.
        """
        return None


class Identity(Estimator):
    """It passes as it is."""

    kind: ClassVar[str] = "identity"


class Clipped(Estimator):
    """It is 0 where the value was outside the range."""

    kind: ClassVar[str] = "clipped"

    def factor(self, exact: Tensor, fmt: NumberFormat) -> Tensor | None:
        return inside(exact, fmt)


class Dge(Estimator):
    """The slope of a smooth stair, 0 outside the range. With clamp 3 at k = 5 its mean is 0.59, without a clamp 1."""

    kind: ClassVar[str] = "dge"
    k: Annotated[int, Field(ge=1, le=64)] = 5
    """How sharp the stair is; 1 is a straight line, so that the gradient is clipped only."""
    clamp: Annotated[float, Field(gt=0, le=1024)] = 3.0
    """The largest slope."""

    def factor(self, exact: Tensor, fmt: NumberFormat) -> Tensor | None:
        t = position_units(exact, fmt).to(torch.float64)
        lowest = _steepest(self.k, self.clamp)
        distance = (t * 2 - 1).abs().clamp(min=lowest)
        slope: Tensor = _root(distance, self.k, _newton_steps(self.k, lowest)) / (distance * self.k)
        return torch.where(inside(exact, fmt), slope.clamp(max=self.clamp).to(torch.float32), 0.0)


def multiplied(gradient: Tensor, factor: Tensor | None) -> Tensor:
    """The gradient times a factor as `Estimator` gives it; where that is 0, whatever the gradient was, 0."""
    if factor is None:
        return gradient
    if factor.dtype == torch.bool:
        return torch.where(factor, gradient, 0)
    return torch.where(factor == 0, 0.0, gradient * factor).to(gradient.dtype)


def joined(factors: list[Tensor]) -> Tensor | None:
    """The product of factors, of which one at most is none of 0 and 1."""
    slopes = [factor for factor in factors if factor.dtype != torch.bool]
    masks = [factor for factor in factors if factor.dtype == torch.bool]
    mask = torch.stack(masks).all(0) if masks else None
    return multiplied(slopes[0], mask) if slopes else mask


def _steepest(k: int, clamp: float) -> float:
    """A distance from the midpoint at which the slope is the clamp, or hardly more."""
    if k == 1:
        return 2.0**-40
    return min(1.0, math.pow(k * clamp, -k / (k - 1))) * (1 - 2.0**-20)


def _root(z: Any, k: int, steps: int) -> Any:
    """z^(1/k) for z in (0, 1], a number or a tensor, by Newton's steps from 1, which go down to it."""
    root = z * 0 + 1
    for _ in range(steps):
        root = (root * (k - 1) + z / _power(root, k - 1)) / k
    return root


def _power(x: Any, exponent: int) -> Any:
    if exponent == 0:
        return x * 0 + 1
    half = _power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


@cached
def _newton_steps(k: int, lowest: float) -> int:
    """How many steps bring every root down to where float64 lets it go; the lowest takes the most."""
    steps = 1
    while _root(lowest, k, steps) - _root(lowest, k, steps + 1) > 2.0**-50:
        steps += 1
    return steps + 1
