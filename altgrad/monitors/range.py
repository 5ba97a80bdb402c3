"""range: do the values fit the format they enter? Underflow, saturation, sub-normals, non-finite entries, amax, scales.

For every cast of the model: forward (weight, input), backward (grad_output), and for the optimizer the requested update
and the stored weight, both on the weight's own grid. What is stored is looked at as it enters storage: w~, the weight
with its request, before storage bounds it to +-max; of a master it is the weight. Definitions in
`altgrad.measures.range`. A rate without anything to be a share of is NaN, as are the amax of no finite value and the
sub-normal rate of a format without normals. `clamped_scale_count` is how many scales (of the tensor, its channels or
blocks; summed over micro-batches) an amax would have had beyond the range of scales. It belongs to the cast that finds
the scale; requested updates and stored weights are looked at under a scale that is given, so there it is 0.

A scale that is far too small saturates, one that is far too large underflows, so a wrong scale in one layer raises the
alarm there. Requests are exempt: nearly all of them underflow on the grid of the weight, which is what `stall` is for.

A stored weight that has reached +-max and is asked to go on stays there, step after step, while each w~ rounds to max
and counts as no saturation. `pinned_rate` is the share of weights there, and alarms above `pinned` if any of them was
clipped: under a tracked scale, or in a format of few values, weights lie at +-max because they belong there. A master
is clipped in no storage, and what its cast clips counts as saturation there.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from altgrad.measures import share
from altgrad.measures.metric import Metric
from altgrad.measures.range import pinned_counts, range_counts
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import NOTHING, CastMonitor, Context, Found, Report, Values
from altgrad.monitors.sample import ERROR, Errors, SampledSpec, drawn_cast
from altgrad.quantize import Cast
from altgrad.quantize.scaling import finite_amax
from altgrad.spec import Since

UNFIT = "{site}: {words} {value:.0%}, above {limit:.0%}; its scale or format does not fit."
PINNED = (
    "{site}: {value:.1%} of its weights at the largest value, above {limit:.0%}, and clipped there; its scale is too "
    "small (a storage can track it: scale: tracked)."
)


class RangeSpec(SampledSpec):
    """Underflow, saturation, sub-normals, non-finite entries, amax and clamped scales of every cast."""

    kind: ClassVar[str] = "range"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "underflow_rate", "ratio", "values that became zero", "#(x != 0, Q(x) = 0) / #(x finite, x != 0)", "higher",
            "above `underflow`, `patience` times in a row; not for requests",
            "underflows%, the same count as a percentage of *all* elements, zeros included",
        ),
        Metric(
            "saturation_rate", "ratio", "values beyond the largest one",
            "#(|x rounded without bound| > max) / #(x finite)", "higher",
            "above `saturation`, `patience` times in a row; not for requests",
            "overflows%, of delayed scaling alone: percentage of all elements beyond scale * max *before* rounding, "
            "which includes what rounds back to it",
        ),
        Metric("subnormal_rate", "ratio", "values that became sub-normal", "#(0 < |Q(x)| < min normal) / #(x != 0)"),
        Metric("nonfinite_count", "count", "inf and NaN entering the cast", "#(x inf or NaN)", "higher"),
        Metric(
            "amax", "tensor's own", "largest finite magnitude", "max |x|",
            elsewhere="cur_amax, which inf and NaN enter",
        ),
        Metric(
            "clamped_scale_count", "count", "scales clamped at 2^-126 or 2^127", "#(scale out of range)", "higher",
            elsewhere="scale_inv_min and scale_inv_max are the extreme scales themselves, not a count",
        ),
        Metric(
            "pinned_rate", "ratio", "of stored weights alone: those at the largest value", "#(|stored| = max) / n",
            "higher", "above `pinned` with some w~ beyond the largest value, `patience` times in a row",
        ),
        ERROR,
    )  # fmt: skip
    saturation: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The saturation rate (0 to 1) above which it alarms."""
    underflow: Annotated[float, Field(gt=0, le=1)] = 0.75
    """The underflow rate (0 to 1) above which it alarms."""
    pinned: Annotated[float, Field(gt=0, le=1), Since(2)] = 0.01
    """Share of stored weights (0 to 1) at +-max above which storage clips too much."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Observations in a row before an alarm."""

    def build(self, context: Context = NOTHING) -> "Range":
        return Range(self)


class Range(CastMonitor):
    """Counts of `range_counts` and of clamped scales, and the largest finite magnitude in the tensor's own units."""

    sums: ClassVar[tuple[str, ...]] = (
        "finite", "nonzero", "underflow", "subnormal", "saturated", "nonfinite", "clamped"
    )  # fmt: skip
    maxima: ClassVar[tuple[str, ...]] = ("amax",)
    alike: ClassVar[tuple[str, ...]] = ("pinned", "clipped", "weights")

    def __init__(self, spec: RangeSpec) -> None:
        self.limits = {"saturation_rate": spec.saturation, "underflow_rate": spec.underflow}
        self.pinned = spec.pinned
        self.errors = Errors() if spec.sample else None
        self.latches = {name: AlarmLatch(spec.patience) for name in (*self.limits, "pinned_rate")}

    def measure(self, cast: Cast) -> Found:
        few, times = (cast, 1) if self.errors is None else drawn_cast(cast)
        found = range_counts(few.exact, few.unbounded, few.rounded, few.format)
        if cast.role == "stored":
            found |= pinned_counts(few.exact, few.rounded, few.format)
            found["clipped"] = found["clipped"] if cast.clips else torch.zeros_like(found["clipped"])
        if times > 1:
            found = {name: times * number for name, number in found.items()}
        found["clamped"] = found["finite"].new_zeros(()) if cast.clamped is None else cast.clamped
        found["amax"] = finite_amax(cast.exact if cast.scale is None else cast.exact * cast.scale)
        return found

    def report(self, site: str, values: Values) -> Report:
        rates = {
            "underflow_rate": share(values["underflow"], values["nonzero"]),
            "saturation_rate": share(values["saturated"], values["finite"]),
            "subnormal_rate": share(values["subnormal"], values["nonzero"]),
            "nonfinite_count": values["nonfinite"],
            "amax": values["amax"] if values["finite"] else math.nan,
            "clamped_scale_count": values["clamped"],
        }
        alarms = [
            self.alarm(site, name, rates[name], limit, UNFIT)
            for name, limit in self.limits.items()
            if not site.endswith("/requested") and self.latches[name].see(site, rates[name] > limit)
        ]
        if "pinned" in values:
            rates["pinned_rate"] = share(values["pinned"], values["weights"])
            clips = rates["pinned_rate"] > self.pinned and values["clipped"] > 0
            if self.latches["pinned_rate"].see(site, clips):
                alarms.append(self.alarm(site, "pinned_rate", rates["pinned_rate"], self.pinned, PINNED))
        if self.errors is not None:
            rates |= self.errors.see(site, {name: rate for name, rate in rates.items() if name.endswith("_rate")})
        return Report({f"{site}/{name}": value for name, value in rates.items()}, alarms)

    def state(self) -> dict[str, Any]:
        latches = {name: latch.state() for name, latch in self.latches.items()}
        return latches if self.errors is None else latches | {"errors": self.errors.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, latch in self.latches.items():
            if name in state:  # a first-edition state has no pinned_rate
                latch.restore(state[name])
        if self.errors is not None:
            self.errors.restore(state.get("errors", {}))
