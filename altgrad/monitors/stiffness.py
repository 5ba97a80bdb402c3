"""stiffness: the field of spacings over the weights, as a snapshot by binade.

Spacing takes one value a binade, 2^(e_min - M) to 2^(max_binade - M) in grid units, so the shares of weights at each of
these *are* the field (`altgrad.measures.stiffness`); snapshots over training show weights moving between binades. In
grid units the picture is that of the format; `binade_-9_share` is the share of weights with a spacing of 2^-9 scale.
Binades without a weight are left out.
"""

import math
from typing import ClassVar

import torch

from altgrad.measures import share, stiffness_exponents, stiffness_histogram, stiffness_quantiles
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import (
    NOTHING,
    Context,
    Every,
    Found,
    MonitorSpec,
    Report,
    Values,
    Weight,
    WeightMonitor,
    at,
)  # fmt: skip

QUANTILES = {"q01_spacing": 0.01, "q50_spacing": 0.5, "q99_spacing": 0.99}


class StiffnessSpec(MonitorSpec):
    """The histogram of spacings over each parameter on a grid, by binade, with its quantiles."""

    kind: ClassVar[str] = "stiffness"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("binade_*_share", "ratio", "weights with this spacing, 2^* in grid units", "#(spacing(w) = 2^* s) / n"),
        *(Metric(name, "grid units", "spacing at the weights, quantile", "spacing(w) / s") for name in QUANTILES),
    )
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Stiffness":
        return Stiffness()


class Stiffness(WeightMonitor):
    """Counts by the exponent of the spacing."""

    alike: ClassVar[tuple[str, ...]] = ("binade_*", *QUANTILES)

    def measure(self, weight: Weight) -> Found:
        if weight.grid is None:
            return {}
        fmt = weight.grid.format
        histogram = stiffness_histogram(weight.values, fmt, scale=weight.grid.scale)
        found = dict(zip((f"binade_{e}" for e in stiffness_exponents(fmt)), histogram.unbind(), strict=True))
        spacings = stiffness_quantiles(histogram, fmt, list(QUANTILES.values()))
        return found | dict(zip(QUANTILES, torch.unbind(spacings), strict=True))

    def report(self, site: str, values: Values) -> Report:
        counts = {name: count for name, count in values.items() if name.startswith("binade_")}
        total = math.fsum(counts.values())
        shares = {f"{name}_share": share(count, total) for name, count in counts.items() if count}
        return Report(at(site, shares | {name: values[name] for name in QUANTILES}))
