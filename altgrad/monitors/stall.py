"""stall: updates that were asked for and left the weight's code as it was; and how many chance would have left.

    stall_ratio            stalls / attempted, by the codes before and after at this step's scale
    predicted_stall_ratio  what the storage's own law says of this request:
                           nearest (kahan, eco)   |delta| < gap / 2 in its direction
                           stochastic (index)     1 - min(1, |delta| / gap)
                           master                 1 - min(1, |delta| / cell width)
    stall_ratio_without_decay   of the requests that the optimizer made beside weight decay

Under float32 masters a stall ratio near 1 is healthy, so it raises nothing by itself (see `updates`). Stochastic
storage has an exact law, though: E[stalls] and its variance sum p (1 - p). A storage that rounds to nearest where it
says stochastic is 5, 10, 100 standard errors away from it, and that is an alarm.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.measures import predicted_stall_counts, share, stall_counts
from altgrad.measures.flips import cell_fraction, gap_fraction
from altgrad.measures.metric import Metric
from altgrad.measures.share import count
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import NOTHING, Context, Found, Report, UpdateMonitor, Values, at
from altgrad.monitors.sample import ERROR, Errors, SampledSpec, drawn_update
from altgrad.optim import Update

UNLAWFUL = (
    "{site}: {stalls:.0f} of {attempted:.0f} requested updates stalled where stochastic rounding predicts "
    "{expected:.0f}; this storage does not round stochastically."
)


class StallSpec(SampledSpec):
    """The stall ratio of each parameter on a grid: real, as its storage predicts, and without weight decay."""

    kind: ClassVar[str] = "stall"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "stall_ratio", "ratio", "requests that left the code unchanged", "stalls / attempted", "higher",
            "stochastic storage, and `errors` standard errors off the prediction, `patience` times in a row",
        ),
        Metric(
            "predicted_stall_ratio", "ratio", "what the storage's law expects of these requests",
            "1 - sum min(1, |delta| / gap) / attempted; nearest: #(|delta| < gap / 2) / attempted",
        ),
        Metric(
            "stall_ratio_without_decay", "ratio", "stall ratio of requests other than decay's", "stalls / attempted",
            "higher",
        ),
        ERROR,
    )  # fmt: skip
    errors: Annotated[float, Field(gt=0)] = 6.0
    """Standard errors from the stochastic prediction beyond which it alarms."""
    patience: Annotated[int, Field(ge=1)] = 2
    """Observations in a row before an alarm."""

    def build(self, context: Context = NOTHING) -> "Stall":
        return Stall(self)


class Stall(UpdateMonitor):
    """Counts of attempts and stalls, and the law of the storage at work."""

    alike: ClassVar[tuple[str, ...]] = (
        "attempted", "stalls", "expected", "variance", "stochastic", "attempted_without_decay", "stalls_without_decay"
    )  # fmt: skip

    def __init__(self, spec: StallSpec) -> None:
        self.limit, self.latch = spec.errors, AlarmLatch(spec.patience)
        self.errors = Errors() if spec.sample else None

    def measure(self, update: Update, kept: Found) -> Found:
        if update.grid is None:
            return {}
        if self.errors is not None:  # the law is then asked of what was drawn, so counts stay as they are
            update, _ = drawn_update(update, update.draw)
        assert update.grid is not None
        fmt, scale = update.grid.format, update.grid.scale
        counts = stall_counts(update.start, update.after, update.requested, fmt, scale=scale)
        without = counts
        if update.undecayed is not None:
            without = stall_counts(update.start, update.after, update.undecayed, fmt, scale=scale)
        expected, variance = _law(update)
        stochastic = torch.full_like(expected, update.storage == "stochastic")
        return {
            **counts, "expected": expected, "variance": variance, "stochastic": stochastic,
            "attempted_without_decay": without["attempted"], "stalls_without_decay": without["stalls"],
        }  # fmt: skip

    def report(self, site: str, values: Values) -> Report:
        attempted = values["attempted"]
        metrics = {
            "stall_ratio": share(values["stalls"], attempted),
            "predicted_stall_ratio": share(values["expected"], attempted),
            "stall_ratio_without_decay": share(values["stalls_without_decay"], values["attempted_without_decay"]),
        }
        if self.errors is not None:
            metrics |= self.errors.see(site, metrics)
        off = abs(values["stalls"] - values["expected"])
        # Three more for what 24 random bits and float32 sums of weight and request leave open.
        unlawful = values["stochastic"] == 1 and off > self.limit * math.sqrt(values["variance"]) + 3
        alarms = []
        if self.latch.see(site, unlawful):
            counts = {name: values[name] for name in ("stalls", "attempted", "expected")}
            ratio, law = metrics["stall_ratio"], metrics["predicted_stall_ratio"]
            alarms = [self.alarm(site, "stall_ratio", ratio, law, UNLAWFUL, **counts)]
        return Report(at(site, metrics), alarms)

    def state(self) -> dict[str, Any]:
        return super().state() | ({} if self.errors is None else {"errors": self.errors.state()})

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if self.errors is not None:
            self.errors.restore(state.get("errors", {}))


def _law(update: Update) -> tuple[Tensor, Tensor]:
    """The expected number of stalls, #attempted - sum p, and its variance, sum p - sum p^2: float64 scalars.

    p: that of a flip. Where the scale moved, so did the request.
    """
    assert update.grid is not None
    fmt, scale, start = update.grid.format, update.grid.scale, update.start
    delta = update.requested if update.moved is None else update.requested + (update.before - start)
    attempted = update.requested != 0
    if update.storage in ("nearest", "kahan", "eco"):
        predicted = predicted_stall_counts(start, delta, fmt, scale=scale)["predicted_stalls"].to(torch.float64)
        return predicted, torch.zeros_like(predicted)
    fraction = cell_fraction if update.storage == "master" else gap_fraction
    p = torch.where(attempted, fraction(start, delta, fmt, scale=scale).clamp(max=1), 0)
    flips, squares = p.sum(dtype=torch.float64), p.to(torch.float64).square().sum()
    return count(attempted) - flips, (flips - squares).clamp(min=0)  # rounding alone may leave less
