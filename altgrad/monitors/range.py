"""range: do the values fit the format they enter? Underflow, saturation, sub-normals, non-finite entries, amax, scales.

For every cast of the model: forward (weight, input), backward (grad_output), and for the optimizer the requested
update and the stored weight on the weight's own grid. Definitions in `altgrad.measures.range`. A rate without
anything to be a share of is NaN, as is the sub-normal rate of a format without normals. `clamped_scale_count` is how
many scales (of the tensor, its channels or blocks; summed over micro-batches) an amax would have had beyond the range
of scales. It belongs to the cast that finds the scale; requested updates and stored weights are looked at under a
scale that is given, so there it is 0.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from altgrad.measures.range import range_counts
from altgrad.monitors.monitor import CastMonitor, MonitorSpec, Report
from altgrad.quantize import Cast
from altgrad.quantize.scaling import finite_amax


class Range(MonitorSpec):
    """Underflow, saturation, sub-normals, non-finite entries, amax and clamped scales of every cast."""

    kind: ClassVar[str] = "range"

    def build(self) -> "RangeMonitor":
        """See MonitorSpec."""
        return RangeMonitor()


class RangeMonitor(CastMonitor):
    """Counts of `range_counts` and of clamped scales, and the largest finite magnitude in the tensor's own units."""

    sums: ClassVar[tuple[str, ...]] = (
        "finite", "nonzero", "underflow", "subnormal", "saturated", "nonfinite", "clamped"
    )  # fmt: skip
    maxima: ClassVar[tuple[str, ...]] = ("amax",)

    def measure(self, cast: Cast) -> dict[str, Tensor]:
        """See CastMonitor."""
        found = range_counts(cast.exact, cast.unbounded, cast.rounded, cast.format)
        found["clamped"] = found["finite"].new_zeros(()) if cast.clamped is None else cast.clamped
        found["amax"] = finite_amax(cast.exact if cast.scale is None else cast.exact * cast.scale)
        return found

    def report(self, site: str, values: Mapping[str, float]) -> Report:
        """See CastMonitor."""
        metrics = {
            f"{site}/underflow_rate": _share(values["underflow"], values["nonzero"]),
            f"{site}/saturation_rate": _share(values["saturated"], values["finite"]),
            f"{site}/subnormal_rate": _share(values["subnormal"], values["nonzero"]),
            f"{site}/nonfinite_count": values["nonfinite"],
            f"{site}/amax": values["amax"],
            f"{site}/clamped_scale_count": values["clamped"],
        }
        return Report(metrics)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
