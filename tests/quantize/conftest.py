"""Oracles for tensors: the points where rounding is hard, and bitwise equality."""

from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat


@pytest.fixture(scope="session")
def critical_points() -> Callable[..., Tensor]:
    """`critical_points(fmt, every=1)`: float32 values where rounding is hard, both signs, zeros included.

    Every value, every midpoint and quarter point, the same beyond the largest value, and the float32 on either side of
    each. `every` thins the values of wide formats; the first and last 300 always stay.
    """

    def build(fmt: FloatFormat, every: int = 1) -> Tensor:
        top = fmt.max_code
        rungs = [r for r in range(top + 1) if r % every == 0 or r < 300 or r > top - 300]
        values = [fmt.magnitude(r) for r in rungs]
        above = [fmt.magnitude(r + 1) if r < top else 2 * fmt.magnitude(top) for r in rungs]
        points = {
            float(low + (high - low) * Fraction(quarter, 4))
            for low, high in zip(values, above, strict=True)
            for quarter in range(4)
        }
        exact = np.array(sorted(p for p in points if p < 2.0**128), dtype=np.float32)
        with np.errstate(over="ignore", under="ignore"):
            beside = [np.nextafter(exact, np.float32(side)) for side in (-np.inf, np.inf)]
        every_point = np.unique(np.abs(np.concatenate([exact, *beside])))
        every_point = every_point[np.isfinite(every_point)]
        return torch.from_numpy(np.concatenate([every_point, -every_point]))

    return build


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[[Tensor, "Tensor | Iterable[float]", Tensor], None]:
    """`assert_same_bits(found, expected, x)`: the same float32 bit patterns, any NaN for any; x names the culprit."""

    def check(found: Tensor, expected: Tensor | Iterable[float], x: Tensor) -> None:
        found = found.to(torch.float32)
        wanted = expected if isinstance(expected, Tensor) else torch.tensor(list(expected), dtype=torch.float64)
        wanted = wanted.to(torch.float32)
        same = (found.view(torch.int32) == wanted.view(torch.int32)) | (found.isnan() & wanted.isnan())
        if not bool(same.all()):
            bad = (~same).nonzero().flatten()[:5]
            shown = [(x.flatten()[i].item(), found.flatten()[i].item(), wanted.flatten()[i].item()) for i in bad]
            pytest.fail(f"{int((~same).sum())} of {same.numel()} differ; (x, found, expected): {shown}")

    return check
