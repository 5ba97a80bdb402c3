"""amax: how the range of each tensor drifts, and whether its scale keeps up.

    amax_average   a <- rho a + (1 - rho) amax, bias-corrected     (altgrad.measures.range)
    fill           amax / (largest scale * max of the format): 1 where the largest value is just reached

Delayed scaling chooses today's scale from yesterday's amaxes. A history that is not kept up, or a range that moves
faster than the history is long, shows in `fill`: above 1 the tensor saturates, far below 1 it wastes binades. Stored
weights and every scaled cast are looked at; without a scale there is nothing to go stale, and a request has no scale of
its own.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from altgrad.measures import AmaxAverage, add_amax, amax_average_start, average_amax, share
from altgrad.measures.metric import Metric
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import NOTHING, CastMonitor, Context, Found, MonitorSpec, Report, Values
from altgrad.quantize import Cast
from altgrad.quantize.scaling import finite_amax


class AmaxSpec(MonitorSpec):
    """The moving average of every cast's amax, and how much of the format's range it fills under its scale."""

    kind: ClassVar[str] = "amax"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "amax_average", "tensor's own", "moving average of the largest magnitude",
            "a <- rho a + (1 - rho) amax, over 1 - rho^k",
        ),
        Metric(
            "fill", "ratio", "largest magnitude over the largest value that the scale can represent",
            "amax / (scale * max)", "neither", "above 2 or below 2^-`binades`, `patience` times in a row",
        ),
    )  # fmt: skip
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The share of the average (0 to 1) that stays at each observation."""
    binades: Annotated[int, Field(ge=1)] = 4
    """An average amax that leaves so many binades of the range unused alarms."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Observations in a row before an alarm."""

    def build(self, context: Context = NOTHING) -> "Amax":
        return Amax(self)


class Amax(CastMonitor):
    """Keeps one average for each site."""

    sums: ClassVar[tuple[str, ...]] = ("elements",)
    maxima: ClassVar[tuple[str, ...]] = ("amax", "reach")

    def __init__(self, spec: AmaxSpec) -> None:
        self.rho, self.lowest = spec.rho, 2.0**-spec.binades
        self.averages: dict[str, AmaxAverage] = {}
        self.latch = AlarmLatch(spec.patience)

    def measure(self, cast: Cast) -> Found:
        elements = torch.full((), cast.exact.numel(), dtype=torch.float64, device=cast.exact.device)
        if cast.scale is None:
            amax = finite_amax(cast.exact)
            return {"elements": elements, "amax": amax, "reach": torch.zeros_like(amax)}
        # The largest value that the scale can represent.
        reach = cast.scale.amax() if cast.scale.numel() else cast.scale.new_zeros(())
        amax = finite_amax(cast.exact * cast.scale)
        return {"elements": elements, "amax": amax, "reach": reach * float(cast.format.max)}

    def report(self, site: str, values: Values) -> Report:
        if not values["elements"]:  # a cast of no rows leaves the average as it was
            average = float(average_amax(self.averages[site])) if site in self.averages else math.nan
            return Report({f"{site}/amax_average": average, f"{site}/fill": math.nan})
        amax = torch.tensor(values["amax"], dtype=torch.float64)
        self.averages[site] = add_amax(self.averages.get(site, amax_average_start(amax)), amax, self.rho)
        requested = site.endswith("/requested")
        fill = share(values["amax"], 0.0 if requested else values["reach"])
        metrics = {"amax_average": float(average_amax(self.averages[site])), "fill": fill}
        stale = values["amax"] > 0 and (fill > 2 or fill < self.lowest)
        alarms = []
        if self.latch.see(site, stale):
            sentence = "{site}: its amax is {value:.3g} times what its scale represents; the scale is stale."
            alarms = [self.alarm(site, "fill", fill, 2 if fill > 2 else self.lowest, sentence)]
        return Report({f"{site}/{name}": value for name, value in metrics.items()}, alarms)

    def state(self) -> dict[str, Any]:
        averages = {site: [float(part) for part in average] for site, average in self.averages.items()}
        return {"averages": averages, "latch": self.latch.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.averages = {
            site: AmaxAverage(*torch.tensor(parts, dtype=torch.float64)) for site, parts in state["averages"].items()
        }
        self.latch.restore(state["latch"])
