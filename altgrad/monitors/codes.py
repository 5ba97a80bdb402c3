"""codes: how much of the format its weights use.

    utilisation    entropy of the histogram of codes / log2(number of finite codes), in [0, 1]
    unused_share   finite codes that no weight has        top_share, zero_share   weights at +-max and at +-0

Of the stored weight, or of the codes that masters round to (`altgrad.measures.code_utilisation`). A parameter whose
values lie close together, as those of a LayerNorm around 1, occupies a handful of codes whatever its scale; the alarm
says that an 8-bit grid is the wrong place to keep it.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.measures import code_utilisation
from altgrad.measures.metric import Metric
from altgrad.measures.quantiles import tally
from altgrad.monitors.alarm import AlarmLatch
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
from altgrad.quantize import Grid
from altgrad.quantize.codes import finite_codes
from altgrad.symptoms import Phase


class CodesSpec(MonitorSpec):
    """The entropy of each gridded parameter's codes, unused codes, and the mass at the top code and at zero."""

    kind: ClassVar[str] = "codes"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "utilisation", "ratio", "entropy of the codes over that of an even use", "H / log2(finite codes)", "lower",
            "below `lowest`, twice in a row",
        ),
        Metric("unused_share", "ratio", "finite codes that no weight has", "unused / finite codes", "higher"),
        Metric("top_share", "ratio", "weights at the largest value", "#(|Q(w)| = max) / n", "higher"),
        Metric("zero_share", "ratio", "weights at zero", "#(Q(w) = 0) / n", "higher"),
    )  # fmt: skip
    every: Every = 100
    lowest: Annotated[float, Field(ge=0, le=1)] = 0.15
    """The utilisation (0 to 1) below which it alarms."""

    def build(self, context: Context = NOTHING) -> "Codes":
        return Codes(self.lowest)


class Codes(WeightMonitor):
    """The measures of a histogram of codes."""

    phase: ClassVar[Phase] = "forward"

    alike: ClassVar[tuple[str, ...]] = ("utilisation", "unused_share", "top_share", "zero_share")

    def __init__(self, lowest: float) -> None:
        self.lowest, self.latch = lowest, AlarmLatch(2)

    def measure(self, weight: Weight) -> Found:
        if weight.grid is None:
            return {}
        return code_utilisation(_histogram(weight.values, weight.grid), weight.grid.format)

    def report(self, site: str, values: Values) -> Report:
        alarms = []
        if self.latch.see(site, values["utilisation"] < self.lowest):
            sentence = "{site}: its values use {value:.1%} of the format; keep it in a wider one."
            alarms = [self.alarm(site, "utilisation", values["utilisation"], self.lowest, sentence)]
        return Report(at(site, values), alarms)


def _histogram(weights: Tensor, grid: Grid) -> Tensor:
    """How often each code occurs among the finite weights, as `to_codes` would give them, but without a host sync."""
    codes = finite_codes(weights, grid.format, grid.scale)
    return tally(codes.clamp(min=0), weights.isfinite(), 1 << grid.format.bits)
