"""stiffness: the field of spacings over the weights, as a snapshot by binade.

Spacing takes one value a binade, 2^(e_min - M) to 2^(max_binade - M) in grid units, so the shares of weights at each of
these *are* the field (`altgrad.measures.stiffness`); snapshots over training show weights moving between binades. In
grid units the picture is that of the format; `binade_-9_share` is the share of weights with a spacing of 2^-9 scale.
Binades without a weight are left out.

Two numbers say whether a format shows the geometry that it is named for. `beta_over_rms`: how large the smallest normal
is beside the weights; from 1 on most weights lie where the grid is even. `spacing_cv`: the coefficient of variation of
the spacings, 0 on an even grid. With the floor of a geometry-aware optimizer, max(|w|, kappa rms(w)), it is that of
max(spacing, spacing(kappa rms)), so histogram and rms give it for every kappa.
"""

import math
from collections.abc import Mapping
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
from altgrad.quantize.grid import grid_units

QUANTILES = {"q01_spacing": 0.01, "q50_spacing": 0.5, "q99_spacing": 0.99}


class StiffnessSpec(MonitorSpec):
    """The histogram of spacings over each parameter on a grid, by binade, with its quantiles."""

    kind: ClassVar[str] = "stiffness"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("binade_*_share", "ratio", "weights with this spacing, 2^* in grid units", "#(spacing(w) = 2^* s) / n"),
        *(Metric(name, "grid units", "spacing at the weights, quantile", "spacing(w) / s") for name in QUANTILES),
        Metric("spacing_cv", "ratio", "how unequal the spacings are; 0 on an even grid", "sd(spacing(w)) / mean"),
        Metric(
            "beta_over_rms",
            "ratio",
            "where the grid becomes even, in units of the weights; not of formats without normals",
            "smallest normal / rms(w / s)",
        ),
    )
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Stiffness":
        return Stiffness()


class Stiffness(WeightMonitor):
    """Counts by the exponent of the spacing."""

    alike: ClassVar[tuple[str, ...]] = ("binade_*", *QUANTILES, "rms", "normal")

    def measure(self, weight: Weight) -> Found:
        if weight.grid is None:
            return {}
        fmt = weight.grid.format
        histogram = stiffness_histogram(weight.values, fmt, scale=weight.grid.scale)
        found = dict(zip((f"binade_{e}" for e in stiffness_exponents(fmt)), histogram.unbind(), strict=True))
        spacings = stiffness_quantiles(histogram, fmt, list(QUANTILES.values()))
        found |= dict(zip(QUANTILES, torch.unbind(spacings), strict=True))
        if fmt.min_normal is not None:
            units = grid_units(weight.values.detach(), weight.grid.scale).to(torch.float64)
            found["rms"] = units.square().mean().sqrt()
            found["normal"] = torch.full_like(found["rms"], float(fmt.min_normal))
        return found

    def report(self, site: str, values: Values) -> Report:
        counts = {name: count for name, count in values.items() if name.startswith("binade_")}
        total = math.fsum(counts.values())
        shares = {f"{name}_share": share(count, total) for name, count in counts.items() if count}
        found = shares | {name: values[name] for name in QUANTILES} | {"spacing_cv": _spread(counts, total)}
        if "rms" in values:
            found["beta_over_rms"] = share(values["normal"], values["rms"])
        return Report(at(site, found))


def _spread(counts: Mapping[str, float], total: float) -> float:
    """The coefficient of variation of spacings that are counted by exponent; NaN for none."""
    if not total:
        return math.nan
    held = {int(name.removeprefix("binade_")): count for name, count in counts.items() if count}
    top = max(held)  # ratios of spacings are all that counts, and those of wide formats leave a float's range
    mean = math.fsum(count * 2.0 ** (e - top) for e, count in held.items()) / total
    square = math.fsum(count * 4.0 ** (e - top) for e, count in held.items()) / total
    return math.sqrt(max(square / mean**2 - 1, 0.0))
