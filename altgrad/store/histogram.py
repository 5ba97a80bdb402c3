"""Histograms found again in a row of numbers.

Monitors give a histogram as one share for each binade, `stiffness/<parameter>/binade_-9_share`, since a store of plain
numbers is one that anybody can read. For a service that draws histograms they are put together again: a bin is a binade
of the spacing, from its exponent to the next, and its height the share.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altgrad.metric_keys import bin_key, split_bin


@dataclass(frozen=True)
class Histogram:
    """`heights[i]` lies between `edges[i]` and `edges[i + 1]`; edges ascend, and bins that were not told are 0."""

    edges: tuple[int, ...]
    heights: tuple[float, ...]


def split(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, Histogram]]:
    """The row without the bins of histograms, and the histograms: `<group>/<site>/binade_<quantity>`."""
    plain: dict[str, float] = {}
    bins: dict[str, dict[int, float]] = defaultdict(dict)
    for key, value in values.items():
        if found := split_bin(key):
            of, exponent, what = found
            bins[f"{of}/binade_{what}"][exponent] = value
        else:
            plain[key] = value
    return plain, {key: _joined(found) for key, found in bins.items()}


def _joined(found: Mapping[int, float]) -> Histogram:
    low, high = min(found), max(found)
    return Histogram(tuple(range(low, high + 2)), tuple(found.get(exponent, 0.0) for exponent in range(low, high + 1)))


def bins(key: str, histogram: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that `split` made a histogram of, from W&B's form of one, without those that are 0; else nothing.

    (Monitors leave binades without a weight out, and a histogram cannot tell these from a share of 0.)
    """
    group, found, quantity = key.rpartition("/binade_")
    edges, heights = histogram.get("bins"), histogram.get("values")
    if not found or not isinstance(edges, list) or not isinstance(heights, list) or len(edges) != len(heights) + 1:
        return {}
    return {
        bin_key(group, int(edge), quantity): height for edge, height in zip(edges, heights, strict=False) if height != 0
    }
