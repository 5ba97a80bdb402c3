"""gsnr: how much of a gradient is signal, coordinate by coordinate over the micro-batches of a step.

    GSNR = ((N - 3) / (N - 1)) m^2 / v - 1 / N, N >= 6     (altgrad.measures.gsnr)

Needs `accumulate: 6` or more: with fewer micro-batches every figure is NaN, and a notice says so once. Each
micro-batch's own gradient is looked at, not the accumulated one; a sparse one as the dense one it stands for. Costs 16
bytes a parameter during the steps at which it is due.
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor

from altgrad.measures import GradientMoments, add_gradient, gsnr_summary, merge_moments, moments_start
from altgrad.measures.gsnr import FEWEST
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, Context, Every, Found, MicroMonitor, MonitorSpec, Report, Values, at
from altgrad.nn import Processes
from altgrad.optim import whole_tensor


class GsnrSpec(MonitorSpec):
    """The signal-to-noise ratio of each parameter's gradient over the micro-batches of a step, unbiased."""

    kind: ClassVar[str] = "gsnr"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "pooled", "ratio", "of the gradient as a whole: the headline",
            "((d - 2)/d) sum m^2 / sum v - 1/N, d = p (N - 1)", "lower",
        ),
        Metric("median", "ratio", "median over coordinates", "median of ((N - 3)/(N - 1)) m^2/v - 1/N", "lower"),
        Metric("mean", "ratio", "mean over coordinates; heavy-tailed at small N", "mean of the same", "lower"),
        Metric("constant_share", "ratio", "coordinates that never varied", "#(v = 0) / n", "higher"),
    )  # fmt: skip
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Gsnr":
        return Gsnr()


class Gsnr(MicroMonitor):
    """Running moments of the step's gradients. Those of processes are merged by `merge_moments` before the summary."""

    alike: ClassVar[tuple[str, ...]] = ("median", "mean", "pooled", "constant_share")

    def __init__(self) -> None:
        self.moments: dict[str, GradientMoments] = {}
        self.told = False
        """Whether it has said that there are too few micro-batches."""

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        for name, given in gradients.items():
            gradient = whole_tensor(given)
            self.moments[name] = add_gradient(self.moments.get(name) or moments_start(gradient), gradient)

    def merge(self, processes: Processes) -> None:
        if processes.size == 1:
            return
        for name, own in self.moments.items():  # one by one, so that no more than one is held several times
            parts = zip(*(processes.gather(part) for part in own), strict=True)
            self.moments[name] = reduce(merge_moments, (GradientMoments(*part) for part in parts))

    def measure(self) -> dict[str, Found]:
        found = {name: gsnr_summary(moments) for name, moments in self.moments.items()}
        self.moments = {}
        return found

    def report(self, site: str, values: Values) -> Report:
        return Report(at(site, values), notices=self._too_few(site, values))

    def state(self) -> dict[str, Any]:
        return {"told": self.told}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.told = bool(state.get("told", False))  # a first-edition state has none

    def _too_few(self, site: str, values: Values) -> list[str]:
        # The share of constant coordinates is known whenever there are enough micro-batches.
        if self.told or not math.isnan(values["constant_share"]):
            return []
        self.told = True
        return [f"{site}: gsnr needs {FEWEST} micro-batches a step and saw fewer; set accumulate: {FEWEST} or more."]
