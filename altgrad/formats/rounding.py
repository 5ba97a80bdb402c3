"""The rounding modes, by name.

Rounding to a grid is rounding an integer: t = x / spacing(x), and every mode below is a mode of rounding t. The names
are those of IEEE 754-2019 section 4.3 in words; `stochastic` rounds in *value* space, P(up) = t - floor(t), so that
E[Q(x)] = x inside the range. Members are strings, so YAML, JSON and `rounding == "nearest_even"` need no conversion.

Two ties that IEEE lacks are those of vendors' FP4: towards zero (DeepGEMM, Quartet), and up (MS-AMP's, torch twins of
kernels). `toward_average` is TetraJet's Q-EMA (arXiv 2502.20853): a weight that wavers about a midpoint would be
another value every few steps, so its moving average decides instead. As there, the gap is [lo, hi) going away from
zero, and of hi and lo it is the one nearer the average, hi if both are; 0 stays 0.
"""

from enum import StrEnum
from typing import Self

from altgrad.formats.meant import meant


class Rounding(StrEnum):
    """How a value between two neighbouring grid values picks one of them."""

    def __new__(cls, name: str, summary: str = "") -> Self:
        """A member that is its name, with a sentence as its docstring."""
        member = str.__new__(cls, name)
        member._value_, member.__doc__ = name, summary
        return member

    nearest_even = (
        "nearest_even",
        "The nearer; of a tie the one of even code (for M >= 1 an even multiple of the gap).",
    )
    nearest_away = "nearest_away", "The nearer; of a tie the one away from zero."
    nearest_ties_to_zero = "nearest_ties_to_zero", "The nearer; of a tie the one towards zero."
    nearest_ties_up = "nearest_ties_up", "The nearer; of a tie the larger one."
    toward_zero = "toward_zero", "The one of smaller magnitude (truncation)."
    toward_positive = "toward_positive", "The larger one (ceiling)."
    toward_negative = "toward_negative", "The smaller one (floor)."
    stochastic = "stochastic", "The farther from zero with a probability of the distance passed, in units of the gap."
    toward_average = "toward_average", "The one nearer the moving average of the value; for weights."

    @property
    def is_nearest(self) -> bool:
        """Whether the error is at most half a gap."""
        return self.name.startswith("nearest_")

    @property
    def by_value(self) -> bool:
        """Whether the value alone decides: not a draw, nor an average."""
        return self not in (Rounding.stochastic, Rounding.toward_average)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The member called `name`; ValueError naming the alternatives when there is none."""
        try:
            return cls(name)
        except ValueError:
            close = meant(name, list(cls))
            remedy = f"Did you mean '{close}'?" if close else f"Choose one of {', '.join(cls)}."
            raise ValueError(f"'{name}' is not a rounding. {remedy}") from None
