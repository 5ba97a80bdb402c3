"""alignment: how far weights lie from the grid, in spacings.

    offset = |w - Q(w)| / spacing(w), in [0, 1/2]

Stored weights are on the grid, all of them; masters uniform in their cells have a mean offset near 1/4. Masters that
gather on grid values, or halfway between two, say that training feels the grid (`altgrad.measures.alignment`).
"""

from typing import ClassVar

from altgrad.measures import alignment_sums, share
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


class AlignmentSpec(MonitorSpec):
    """The mean distance of weights from the grid in spacings, and the share exactly on it."""

    kind: ClassVar[str] = "alignment"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mean_offset", "spacings", "distance from the nearest grid value", "mean |w - Q(w)| / spacing(w)"),
        Metric("aligned_share", "ratio", "weights exactly on the grid", "#(w = Q(w)) / #(w within the format's reach)"),
    )
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Alignment":
        return Alignment()


class Alignment(WeightMonitor):
    """Sums over each parameter on a grid."""

    alike: ClassVar[tuple[str, ...]] = ("offset", "aligned", "inside")

    def measure(self, weight: Weight) -> Found:
        if weight.grid is None:
            return {}
        return alignment_sums(weight.values, weight.grid.format, scale=weight.grid.scale)

    def report(self, site: str, values: Values) -> Report:
        metrics = {
            "mean_offset": share(values["offset"], values["inside"]),
            "aligned_share": share(values["aligned"], values["inside"]),
        }
        return Report(at(site, metrics))
