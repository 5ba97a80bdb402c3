"""gradient: how large the gradient of each parameter is, after backward and before clipping.

    l2     sqrt(sum g^2), squared in float64, so that 1e30 has a norm and 1e-30 is not zero
    linf   max |g|

A gradient that is zero throughout, again and again, belongs to a parameter that does not learn: a layer cut off from
the loss, or one whose gradients all underflow.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.measures import l2_norm, linf_norm
from altgrad.measures.metric import Metric
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import (
    NO_CASTS,
    NOTHING,
    Context,
    Found,
    GradientMonitor,
    MonitorSpec,
    Report,
    Values,
    at,
)  # fmt: skip


class GradientSpec(MonitorSpec):
    """The Euclidean and the largest-magnitude norm of each parameter's gradient."""

    kind: ClassVar[str] = "gradient"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "l2", "gradient's own", "Euclidean norm", "sqrt(sum g^2)", "higher",
            "exactly 0, `patience` times in a row",
            "l2_norm of wgrad, over micro-batches the root of their summed squares, not the norm of their sum",
        ),
        Metric(
            "linf", "gradient's own", "largest magnitude", "max |g|", "higher",
            elsewhere="cur_amax of wgrad, the largest of any micro-batch, not of their sum",
        ),
    )  # fmt: skip
    patience: Annotated[int, Field(ge=1)] = 3
    """Observations in a row without a gradient before an alarm."""

    def build(self, context: Context = NOTHING) -> "Gradient":
        return Gradient(self.patience)


class Gradient(GradientMonitor):
    """Two norms for each parameter. Gradients are reduced over processes before they are looked at."""

    alike: ClassVar[tuple[str, ...]] = ("l2", "linf")

    def __init__(self, patience: int) -> None:
        self.latch = AlarmLatch(patience)

    def measure(self, gradient: Tensor) -> Found:
        return {"l2": l2_norm(gradient), "linf": linf_norm(gradient)}

    def applies(self, loss: Tensor, found: Mapping[str, Tensor]) -> bool:
        return True

    def report_all(self, loss: float, found: Mapping[str, Values], casts: Mapping[str, Values] = NO_CASTS) -> Report:
        metrics: dict[str, float] = {}
        alarms = []
        for name, values in found.items():
            metrics |= at(name, values)
            if self.latch.see(name, values["l2"] == 0):
                sentence = "{site}: its gradient is exactly zero, {times} times in a row."
                alarms.append(self.alarm(name, "l2", 0, 0, sentence, times=self.latch.patience))
        return Report(metrics, alarms)
