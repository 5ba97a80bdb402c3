"""optimizer_state: does the optimizer's state fit its format, or would it fit the one its weight has?

Every float tensor of the weight's shape that the optimizer keeps (Adam's moments, a momentum buffer, a compensation) is
looked at as if it entered the weight's format at its own power-of-two amax scale, as the role `optimizer_state`. Second
moments span many more binades than weights, so that their underflow says what an 8-bit state would lose.

    underflow_rate    #(s != 0, Q(s) = 0) / #(s != 0)         binades    log2(amax / smallest non-zero magnitude)

A state that *is* cast (`optimizer.states`) has, too, what its own rounding made of it in this step. A second moment
that rounding moves up or down as a whole (`drift`) changes every step's size, and one that becomes 0 where the first is
not makes the step m / eps, the way in which an 8-bit Adam diverges (`unguarded_rate`).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from altgrad.measures import range_counts, share
from altgrad.measures.metric import Metric
from altgrad.measures.sqnr import decibels
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
from altgrad.optim.states import NEVER_NEGATIVE
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
        Metric("sqnr_db", "dB", "of a state that is cast: signal over rounding noise",
               "10 log10(sum s^2 / sum (s - Q)^2)", "lower"),
        Metric("zeroed_rate", "ratio", "of a state that is cast: what its format made 0",
               "#(Q(s) = 0 != s) / #(s != 0)", "higher"),
        Metric("drift", "ratio", "of a second moment that is cast: what rounding adds to its sum",
               "sum (Q(v) - v) / sum v"),
        Metric("unguarded_rate", "ratio", "of a second moment that is cast: stored as 0 where the first moment is not",
               "#(v = 0, m != 0) / #(m != 0)", "higher"),
    )  # fmt: skip
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "OptimizerState":
        return OptimizerState()


class OptimizerState(WeightMonitor):
    """Counts for each state of each parameter on a grid."""

    of_states = True
    alike: ClassVar[tuple[str, ...]] = (
        "*/amax", "*/least", "*/nonzero", "*/underflow", "*/nonfinite",
        "*/signal", "*/noise", "*/sum", "*/kept", "*/used", "*/zeroed", "*/moving", "*/unguarded",
    )  # fmt: skip

    def measure(self, weight: Weight) -> Found:
        found: Found = {f"{entry}/{n}": x for entry, sums in weight.losses.items() for n, x in sums.items()}
        moving, squares = weight.states.get("exp_avg"), weight.states.get("exp_avg_sq")
        if "exp_avg_sq" in weight.losses and moving is not None and squares is not None:
            found["exp_avg_sq/moving"] = torch.count_nonzero(moving)
            found["exp_avg_sq/unguarded"] = torch.count_nonzero((moving != 0) & (squares == 0))
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
            if f"{entry}/signal" in values:
                metrics |= self._of_cast(entry, values)
            if f"{entry}/amax" not in values:
                continue
            amax, least = values[f"{entry}/amax"], values[f"{entry}/least"]
            known = amax > 0 and math.isfinite(least)
            metrics |= {
                f"{entry}/amax": amax,
                f"{entry}/binades": math.log2(amax) - math.log2(least) if known else math.nan,
                f"{entry}/underflow_rate": share(values[f"{entry}/underflow"], values[f"{entry}/nonzero"]),
                f"{entry}/nonfinite_count": values[f"{entry}/nonfinite"],
            }
        return Report(at(site, metrics))

    def _of_cast(self, entry: str, values: Values) -> dict[str, float]:
        """What rounding made of a state."""
        signal, noise = (torch.tensor(values[f"{entry}/{name}"], dtype=torch.float64) for name in ("signal", "noise"))
        found = {
            f"{entry}/sqnr_db": decibels(signal, noise).item(),
            f"{entry}/zeroed_rate": share(values[f"{entry}/zeroed"], values[f"{entry}/used"]),
        }
        if entry in NEVER_NEGATIVE:
            found[f"{entry}/drift"] = share(values[f"{entry}/kept"] - values[f"{entry}/sum"], values[f"{entry}/sum"])
        if f"{entry}/moving" in values:
            found[f"{entry}/unguarded_rate"] = share(values[f"{entry}/unguarded"], values[f"{entry}/moving"])
        return found


def _least(state: Tensor) -> Tensor:
    """The smallest non-zero finite magnitude; inf if there is none."""
    magnitude = state.detach().to(torch.float32).abs()
    used = (magnitude > 0) & (magnitude < math.inf)
    return torch.where(used, magnitude, math.inf).amin() if state.numel() else magnitude.new_full((), math.inf)
