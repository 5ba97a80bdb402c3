"""Series of several runs as one: means over seeds on a common axis of steps, with their intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from altgrad.reports.reading import RunRecord, Series
from altgrad.statistics.distributions import critical_value

Array = NDArray[np.float64]


def common_steps(series: Sequence[Series]) -> Array:
    """The steps that the most series share; those of the longest if they share none."""
    shared = set.intersection(*(set(steps.tolist()) for steps, _ in series)) if series else set()
    return np.array(sorted(shared)) if len(shared) > 1 else max((s for s, _ in series), key=len, default=np.array([]))


def mean_over_runs(series: Sequence[Series]) -> tuple[Array, Array, Array, Array]:
    """(steps, mean, low, high) with 95 % t intervals by step; fewer than 3 runs have low = mean = high.

    Runs are read at their own points and interpolated between them; a NaN in any run is a gap.
    """
    series = [s for s in series if len(s[0])]
    steps = common_steps(series)
    if not len(steps):
        empty = np.array([])
        return empty, empty, empty, empty
    values = np.stack([np.interp(steps, s, v, right=math.nan) for s, v in series])
    n = len(values)
    mean = values.mean(0)
    if n < 3:
        return steps, mean, mean, mean
    half = critical_value(n, 1) * values.std(0, ddof=1) / math.sqrt(n)
    return steps, mean, mean - half, mean + half


def paired_difference(first: Mapping[int, RunRecord], second: Mapping[int, RunRecord], key: str) -> list[Series]:
    """first - second by seed, on the steps of both."""
    found = []
    for seed, record in first.items():
        ours = record.series.get(key)
        theirs = second[seed].series.get(key) if seed in second else None
        if ours is not None and theirs is not None:
            steps = common_steps([ours, theirs])
            found.append((steps, np.interp(steps, *ours, right=math.nan) - np.interp(steps, *theirs, right=math.nan)))
    return found


def smooth(series: Series) -> Series:
    """A running mean over a twentieth of the points; noise of single batches cancels in pairs only in part."""
    steps, values = series
    width = max(len(values) // 20, 1)
    if not len(values):
        return series
    padded = np.convolve(np.pad(values, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
    return steps, padded


def heat(
    records: Sequence[RunRecord], monitor: str, quantity: str, buckets: int = 30, *, lowest: bool = False
) -> tuple[Array, list[str], Array]:
    """(middles of the steps, sites, z[site, step]): each bucket's largest (lowest) value, averaged over runs."""
    sited = [record.sited(monitor, quantity) for record in records]
    sites = list(dict.fromkeys(site for by_site in sited for site in by_site))
    last = max((s[0][-1] for by_site in sited for s in by_site.values() if len(s[0])), default=0.0)
    points = max((len(s[0]) for by_site in sited for s in by_site.values()), default=1)
    edges = np.linspace(0, last or 1.0, min(buckets, max(points, 1)) + 1)
    z = np.full((len(sites), len(edges) - 1), math.nan)
    for row, site in enumerate(sites):
        sign = -1.0 if lowest else 1.0
        series = [by_site[site] for by_site in sited if site in by_site]
        found = np.stack([sign * by_bucket(steps, sign * values, edges) for steps, values in series])
        present = np.isfinite(found)
        count = present.sum(0)
        z[row] = np.where(count > 0, np.where(present, found, 0).sum(0) / np.maximum(count, 1), math.nan)
    return (edges[:-1] + edges[1:]) / 2, sites, z


def by_bucket(steps: Array, values: Array, edges: Array) -> Array:
    """The largest value between each two neighbours of `edges` (the last bucket closed); NaN where there is none."""
    found = np.full(len(edges) - 1, np.nan)
    where = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, len(edges) - 2)
    for bucket, value in zip(where, values, strict=True):
        if np.isfinite(value) and not found[bucket] > value:
            found[bucket] = value
    return found


def by_seed(records: Sequence[RunRecord]) -> dict[int, RunRecord]:
    """Records by their seeds."""
    return {record.seed: record for record in records}
