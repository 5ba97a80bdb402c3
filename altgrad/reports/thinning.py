"""Fewer points of a long series, with its spikes.

The steps are cut into buckets of equal length and each keeps its smallest and its largest value, at the steps where
they stood; first and last point stay, and so does the first non-finite value. A mean by bucket, the usual way, would
hide exactly the one bad step that a report is read for.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def thin(steps: Array, values: Array, points: int) -> tuple[Array, Array]:
    """At most `points` (>= 8) of the series, in order; the series itself if it is short. NaN counts as a gap."""
    n = len(values)
    if n <= points:
        return steps, values
    edges = np.linspace(0, n, (points - 4) // 2 + 1).astype(int)
    kept = {0, n - 1}
    for start, end in itertools.pairwise(edges):
        finite = np.flatnonzero(np.isfinite(values[start:end])) + start
        if len(finite):
            kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        kept.add(int(broken[0]))
    index = np.array(sorted(kept))
    return steps[index], values[index]


def by_bucket(steps: Array, values: Array, edges: Array) -> Array:
    """The largest value between each two neighbours of `edges` (the last bucket closed); NaN where there is none."""
    found = np.full(len(edges) - 1, np.nan)
    where = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    for bucket, value in zip(where, values, strict=True):
        if np.isfinite(value) and not found[bucket] > value:
            found[bucket] = value
    return found
