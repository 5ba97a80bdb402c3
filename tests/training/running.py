"""What tests of runs share: when to stop one, and what two runs must have in common to be called the same."""

from collections.abc import Callable
from typing import Any

from altgrad.store import Run


def after(calls: int) -> Callable[[], bool]:
    """Asked for the `calls`-th time, says stop."""
    left = iter(range(calls - 1))
    return lambda: next(left, None) is None


def lines(run: Run) -> list[dict[str, Any]]:
    """The metrics, floats as hex, without those of the clock."""
    return [
        {key: float(value).hex() for key, value in row.items() if not key.startswith("time/")}
        for row in run.metrics()
        if any(not key.startswith("time/") for key in row if key != "step")
    ]
