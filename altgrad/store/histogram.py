"""Histograms found again in a row of numbers.

Monitors give a histogram as one share for each binade, `stiffness/<parameter>/binade_-9_share`, since a store of plain
numbers is one that anybody can read. For a service that draws histograms they are put together again: a bin is a binade
of the spacing, from its exponent to the next, and its height the share.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_BIN = re.compile(r"(.+/)binade_(-?[0-9]+)_(.+)")


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
        if found := _BIN.fullmatch(key):
            bins[f"{found[1]}binade_{found[3]}"][int(found[2])] = value
        else:
            plain[key] = value
    return plain, {key: _joined(found) for key, found in bins.items()}


def _joined(found: Mapping[int, float]) -> Histogram:
    low, high = min(found), max(found)
    return Histogram(tuple(range(low, high + 2)), tuple(found.get(exponent, 0.0) for exponent in range(low, high + 1)))
