"""outliers: how much of each tensor its cast leaves to another.

Of casts with `outliers` alone. What `range`, `amax` and the others say of such a cast is said of the rest, so their
counts and this one together are of the tensor.
"""

from typing import ClassVar

import torch

from altgrad.measures import share
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, CastMonitor, Context, Found, MonitorSpec, Report, Values
from altgrad.quantize import Cast


class OutlierRateSpec(MonitorSpec):
    """The share of each operand that is carried apart, where a cast has outliers."""

    kind: ClassVar[str] = "outliers"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("outlier_rate", "ratio", "elements that are carried apart", "#(outliers) / #(x)", "neither"),
    )

    def build(self, context: Context = NOTHING) -> "OutlierRate":
        return OutlierRate()


class OutlierRate(CastMonitor):
    """Counts outliers at the sites that have some."""

    sums: ClassVar[tuple[str, ...]] = ("outliers", "elements", "casts")

    def measure(self, cast: Cast) -> Found:
        casts, elements = (
            torch.full((), number, dtype=torch.float64, device=cast.exact.device)
            for number in ((0, 0) if cast.parts is None else (1, cast.exact.numel()))
        )
        return {
            "outliers": elements if cast.parts is None else cast.parts.number, "elements": elements, "casts": casts,
        }  # fmt: skip

    def report(self, site: str, values: Values) -> Report:
        if not values["casts"]:
            return Report()
        return Report({f"{site}/outlier_rate": share(values["outliers"], values["elements"])})
