"""Which tensors of a model hold NaN or Inf, and how many: counted in the tensors themselves, cast or not, before any
cast (in a block of MX one NaN makes 32).

Such a model can be measured, which is how one finds out: exit code 0, and the table and `--json` say what is broken. It
is not written: codes of NaN, or of an Inf that saturates to the largest weight, would be taken for weights by whoever
loads them. Tensors that no rule casts are copied as they were (masks hold -inf by right), and named all the same.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from altgrad.quantize.chunks import ELEMENTS
from altgrad.training.weights import Weights

__all__ = ["Nonfinite", "find_nonfinite", "require_finite"]


@dataclass(frozen=True)
class Nonfinite:
    """How many entries of a tensor are NaN and how many Inf."""

    nan: int = 0
    inf: int = 0
    elements: int = 0

    @classmethod
    def of(cls, x: Tensor) -> "Nonfinite":
        """Counted a piece at a time; a tensor of integers has none."""
        nan = inf = 0
        flat = x.flatten() if x.is_floating_point() else x.flatten()[:0]
        for start in range(0, len(flat), ELEMENTS):
            part = flat[start : start + ELEMENTS]
            values = part.float() if part.dtype.itemsize == 1 else part
            if not values.isfinite().all():
                nan, inf = nan + int(values.isnan().sum()), inf + int(values.isinf().sum())
        return cls(nan, inf, x.numel())

    @property
    def count(self) -> int:
        """Of both."""
        return self.nan + self.inf

    def words(self) -> str:
        """`3 of 4,096 entries are not finite (1 NaN, 2 Inf)`."""
        return f"{self.count:,} of {self.elements:,} entries are not finite ({self.nan:,} NaN, {self.inf:,} Inf)"


def find_nonfinite(weights: Weights) -> dict[str, Nonfinite]:
    """The tensors that hold some, by name. Reads every tensor once, one at a time."""
    found = {tensor.name: Nonfinite.of(tensor.load()) for tensor in weights.tensors}
    return {name: counts for name, counts in found.items() if counts.count}


def require_finite(broken: Mapping[str, Nonfinite], cast: Collection[str]) -> None:
    """ValueError, in one line, if a tensor that is to be cast is broken."""
    names = [name for name in broken if name in cast]
    if names:
        others = f", and so do {len(names) - 1} other tensors" if len(names) > 1 else ""
        raise ValueError(
            f"{names[0]} has inf or NaN, and a quantised model is written of finite weights only: "
            f"{broken[names[0]].words()}{others}; start from whole weights, or leave out --out to measure these."
        )
