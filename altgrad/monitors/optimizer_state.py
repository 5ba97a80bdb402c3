"""optimizer_state: would the optimizer's state fit the format its weight has?

Every float tensor of the weight's shape that the optimizer keeps (Adam's moments, a momentum buffer, a compensation) is
looked at as if it entered the weight's format at its own power-of-two amax scale, as the role `optimizer_state`.
Nothing is cast: states are float32. Second moments span many more binades than weights, so that their underflow says
what an 8-bit state would lose.

    underflow_rate    #(s != 0, Q(s) = 0) / #(s != 0)         binades    log2(amax / smallest non-zero magnitude)
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from altgrad.measures import range_counts, share
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
from altgrad.quantize import Rounding
from altgrad.quantize.grid import bound_units, grid_units, round_units
from altgrad.quantize.scaling import finite_amax, scale_of


class OptimizerStateSpec(MonitorSpec):
    """Range of the optimizer's moments and buffers, as if they were kept in the weight's format."""

    kind: ClassVar[str] = "optimizer_state"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("amax", "state's own", "largest finite magnitude", "max |s|", "higher"),
        Metric(
            "binades", "binades", "dynamic range", "log2(max |s| / min non-zero |s|)", "higher",
            elsewhere="dynamic_range, of weights, activations and gradients, not of optimizer states",
        ),
        Metric("underflow_rate", "ratio", "what the weight's format would make 0", "#(Q(s) = 0 != s) / #(s != 0)",
               "higher"),
        Metric("nonfinite_count", "count", "inf or NaN", "#(s inf or NaN)", "higher"),
    )  # fmt: skip
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "OptimizerState":
        return OptimizerState()


class OptimizerState(WeightMonitor):
    """Counts for each state of each parameter on a grid."""

    alike: ClassVar[tuple[str, ...]] = ("*/amax", "*/least", "*/nonzero", "*/underflow", "*/nonfinite")

    def measure(self, weight: Weight) -> Found:
        found: Found = {}
        if weight.grid is None:
            return found
        for entry, state in weight.states.items():
            amax = finite_amax(state)
            scale = scale_of(amax, weight.grid.format)
            exact = grid_units(state, scale)
            unbounded = round_units(exact, weight.grid.format, Rounding.nearest_even)
            counts = range_counts(exact, unbounded, bound_units(unbounded, weight.grid.format), weight.grid.format)
            found |= {f"{entry}/{name}": counts[name] for name in ("nonzero", "underflow", "nonfinite")}
            found |= {f"{entry}/amax": amax, f"{entry}/least": _least(state)}
        return found

    def report(self, site: str, values: Values) -> Report:
        metrics: dict[str, float] = {}
        for entry in dict.fromkeys(name.rpartition("/")[0] for name in values):
            amax, least = values[f"{entry}/amax"], values[f"{entry}/least"]
            known = amax > 0 and math.isfinite(least)
            metrics |= {
                f"{entry}/amax": amax,
                f"{entry}/binades": math.log2(amax) - math.log2(least) if known else math.nan,
                f"{entry}/underflow_rate": share(values[f"{entry}/underflow"], values[f"{entry}/nonzero"]),
                f"{entry}/nonfinite_count": values[f"{entry}/nonfinite"],
            }
        return Report(at(site, metrics))


def _least(state: Tensor) -> Tensor:
    """The smallest non-zero finite magnitude; inf if there is none."""
    magnitude = state.detach().to(torch.float32).abs()
    used = (magnitude > 0) & (magnitude < math.inf)
    return torch.where(used, magnitude, math.inf).amin() if state.numel() else magnitude.new_full((), math.inf)
