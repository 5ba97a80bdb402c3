"""gsnr: how much of a gradient is signal, coordinate by coordinate over the micro-batches of a step.

    GSNR = (m^2 - v / N) / v, N >= 4     (altgrad.measures.gsnr)

Needs `accumulate: 4` or more: with fewer micro-batches every figure is NaN. Each micro-batch's own gradient is looked
at, not the accumulated one. Costs 16 bytes a parameter during the steps at which it is due.
"""

from collections.abc import Mapping
from functools import reduce
from typing import ClassVar

from torch import Tensor

from altgrad.measures import GradientMoments, add_gradient, gsnr_summary, merge_moments, moments_start
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, Context, Every, Found, MicroMonitor, MonitorSpec, Report, Values, at
from altgrad.nn import Ranks


class Gsnr(MonitorSpec):
    """The signal-to-noise ratio of each parameter's gradient over the micro-batches of a step, unbiased."""

    kind: ClassVar[str] = "gsnr"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("median", "ratio", "median over coordinates", "median of (m^2 - v/N) / v", "lower"),
        Metric("mean", "ratio", "mean over coordinates; heavy-tailed at small N", "mean of (m^2 - v/N) / v", "lower"),
        Metric("pooled", "ratio", "of the gradient as a whole", "sum(m^2 - v/N) / sum v", "lower"),
        Metric("constant_share", "ratio", "coordinates that never varied", "#(v = 0) / n", "higher"),
    )
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "GsnrMonitor":
        """See MonitorSpec."""
        return GsnrMonitor()


class GsnrMonitor(MicroMonitor):
    """Running moments of the step's gradients. Those of ranks are merged by `merge_moments` before the summary."""

    alike: ClassVar[tuple[str, ...]] = ("median", "mean", "pooled", "constant_share")

    def __init__(self) -> None:
        self.moments: dict[str, GradientMoments] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """See MicroMonitor."""
        for name, gradient in gradients.items():
            self.moments[name] = add_gradient(self.moments.get(name) or moments_start(gradient), gradient)

    def merge(self, ranks: Ranks) -> None:
        """See MicroMonitor. Parameter by parameter, so that no more than one is held several times."""
        if ranks.size == 1:
            return
        for name, own in self.moments.items():
            parts = zip(*(ranks.gather(part) for part in own), strict=True)
            self.moments[name] = reduce(merge_moments, (GradientMoments(*part) for part in parts))

    def measure(self) -> dict[str, Found]:
        """See MicroMonitor."""
        found = {name: gsnr_summary(moments) for name, moments in self.moments.items()}
        self.moments = {}
        return found

    def report(self, site: str, values: Values) -> Report:
        """See Monitor."""
        return Report(at(site, values))
