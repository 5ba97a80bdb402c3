"""A curve that forgets nothing sharp, however many steps it has.

A run has more steps than a window has columns. Averaging or skipping points hides what a person watches for: the
one step where the loss jumped, the first NaN. So a point is an interval of steps with the lowest and the highest
value in it and whether any was not finite, and merging two points takes the lower low, the higher high and either's
flaw. Memory is bounded: beyond `CAPACITY` points neighbours are merged, and the picture merges again down to one
column each.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

CAPACITY = 1024


class Extent(NamedTuple):
    """What a curve did between two steps: its lowest and highest finite value, and whether any value was not finite.

    Without any finite value `low` is inf and `high` -inf, so that joining needs no case for it.
    """

    first: int
    last: int
    low: float
    high: float
    broken: bool = False

    def join(self, other: Extent) -> Extent:
        """Both intervals as one; `other` is the later."""
        low = self.low if self.low < other.low else other.low
        high = self.high if self.high > other.high else other.high
        return Extent(self.first, other.last, low, high, self.broken or other.broken)

    @property
    def middle(self) -> float | None:
        """Halfway between lowest and highest, None without a finite value."""
        return self.low / 2 + self.high / 2 if self.low <= self.high else None


class KeptCurve:
    """Values over steps, in bounded memory; `last` is the latest value as it came, None before any."""

    def __init__(self) -> None:
        self.points: list[Extent] = []
        self.last: float | None = None
        self._grain = 1  # steps to a point: the same for old and new, so that the past stays as sharp as the present

    def add(self, step: int, value: float) -> None:
        """One value; what was told of this step or of later ones before (a run was resumed) gives way to it."""
        self.last = value
        while self.points and self.points[-1].last >= step:
            self.points.pop()
        finite = math.isfinite(value)
        self._append(Extent(step, step, value if finite else math.inf, value if finite else -math.inf, not finite))
        while len(self.points) > CAPACITY:
            self._grain *= 2
            sharp, self.points = self.points, []
            for point in sharp:
                self._append(point)

    def _append(self, point: Extent) -> None:
        if self.points and self.points[-1].first // self._grain == point.first // self._grain:
            self.points[-1] = self.points[-1].join(point)
        else:
            self.points.append(point)

    def columns(self, count: int, first: int | None = None, last: int | None = None) -> list[Extent | None]:
        """The curve from step `first` to step `last` (its own where left out) as `count` intervals of equal length.

        An interval without a point of its own (validation is rare) lies on the straight line between its neighbours,
        and is None before the first point and after the last. Empty without any point.
        """
        if not self.points or count < 1:
            return []
        start = self.points[0].first if first is None else first
        end = self.points[-1].last if last is None else last
        buckets: list[Extent | None] = [None] * count
        for point in self.points:
            if start <= point.last <= end:
                at = round((point.last - start) / max(1, end - start) * (count - 1))
                present = buckets[at]
                buckets[at] = point if present is None else present.join(point)
        known = [i for i, bucket in enumerate(buckets) if bucket is not None]
        alone = len(self.points) == 1  # a single point is a level line
        return [
            bucket or (_between(buckets, known, i) if known and (alone or known[0] <= i <= known[-1]) else None)
            for i, bucket in enumerate(buckets)
        ]


def _between(buckets: Sequence[Extent | None], known: Sequence[int], index: int) -> Extent:
    """A bucket without points, on the line between the middles of its neighbours; level where a neighbour is broken."""
    at = bisect_left(known, index)
    before, after = known[max(0, at - 1)], known[min(at, len(known) - 1)]
    left, right = buckets[before], buckets[after]
    assert left is not None
    assert right is not None
    start, end = left.middle, right.middle
    if start is None or end is None:
        value = end if start is None else start
        return Extent(left.last, right.first, *(math.inf, -math.inf) if value is None else (value, value))
    share = (index - before) / max(1, after - before)
    value = min(
        max(start * (1 - share) + end * share, min(start, end)), max(start, end)
    )  # equal ends: no rounding noise
    return Extent(left.last, right.first, value, value)


def extremes(columns: Sequence[Extent | None]) -> tuple[float, float] | None:
    """Lowest and highest finite value on show, or None."""
    low = min((column.low for column in columns if column is not None), default=math.inf)
    high = max((column.high for column in columns if column is not None), default=-math.inf)
    return (low, high) if low <= high else None


def logarithmic(low: float, high: float) -> bool:
    """Whether the picture needs a logarithmic axis: all positive, and a spike would flatten all the rest (20 times)."""
    return low > 0 and high / low > 20
