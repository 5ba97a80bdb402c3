"""Worst and best of values that may be NaN: one order for every table that names either.

min, max and sorted give whatever they please where a NaN is among the values, since it is neither less nor more than
anything. A measure that came out as NaN because its tensor holds one is worse than any number, and never the best. (A
share of nothing is NaN too. Whoever knows that a NaN means "nothing there" leaves it out before asking.)
"""

from typing import Literal

__all__ = ["badness"]


def badness(value: float, worse: Literal["lower", "higher"]) -> tuple[bool, float]:
    """A key by which max gives the worst and min the best; worse: the direction to worry about."""
    if value != value:
        return True, 0.0
    return False, -value if worse == "lower" else value
