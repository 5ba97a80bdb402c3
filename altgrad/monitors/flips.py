"""flips: weights whose code changed; where to, how often back again, and how far they get.

    flip_rate           codes changed at this step's scale / weights; masters count by the code they round to
    sign_flip_rate      those that changed their sign
    rescale_flip_rate   weights that a new scale alone moved to another value
    reversal_average    moving average of the share of weights whose flip undid the flip before it (oscillation)
    straightness        sum |net| / sum gross rungs travelled: 1 straight on, 0 to and fro
    epoch_flip_rate     flips of the epoch so far / weights / observed steps of it

Only observed steps count, so `every: 1` sees all of them; at a slower cadence rates are samples and a reversal is one
between observed steps. Epochs are as long as the data say; without data, 100 steps. The trail of each weight costs 9
bytes: the direction of its last flip, and the rungs it has travelled, net and gross. Under `sample` all this is of the
weights drawn at the first look, since a trail is of the same ones.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.measures import Trail, flip_counts, follow_trail, oscillation_average, share, trail_start, trail_sums
from altgrad.measures.metric import Metric
from altgrad.measures.share import count
from altgrad.monitors.monitor import NOTHING, Context, Found, Report, UpdateMonitor, Values, at
from altgrad.monitors.sample import SampledSpec, drawn_update
from altgrad.optim import Update
from altgrad.quantize import round_to

EPOCH = 100
"""Steps of an epoch where the data do not say."""


class FlipsSpec(SampledSpec):
    """Flips, sign flips and rescale flips of each parameter on a grid, oscillation, and distance travelled."""

    kind: ClassVar[str] = "flips"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("flip_rate", "ratio", "codes that changed in the step", "flips / n"),
        Metric("sign_flip_rate", "ratio", "codes that changed their sign", "sign flips / n"),
        Metric("rescale_flip_rate", "ratio", "values that a new scale alone changed", "#(Q'(w) != Q(w)) / n", "higher"),
        Metric(
            "reversal_average", "ratio", "weights whose flip undid their last one", "f <- m r + (1 - m) f", "higher"
        ),
        Metric("net_rungs", "rungs", "distance from the start, summed over weights", "sum |net|"),
        Metric("gross_rungs", "rungs", "distance travelled, summed over weights", "sum gross"),
        Metric("straightness", "ratio", "distance from the start over distance travelled", "net / gross", "lower"),
        Metric("epoch_flip_rate", "ratio", "flips of this epoch's observed steps so far", "sum flips / (n k)"),
    )  # fmt: skip
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share (0 to 1) that an observation adds to the averages."""

    def build(self, context: Context = NOTHING) -> "Flips":
        return Flips(self.momentum, context.epoch or EPOCH, sampled=self.sample is not None)


class Flips(UpdateMonitor):
    """Follows the trail of every weight on a grid, and the scale of masters."""

    alike: ClassVar[tuple[str, ...]] = (
        "flips", "sign_flips", "weights", "rescale_flips", "reversals", "net", "gross"
    )  # fmt: skip

    def __init__(self, momentum: float, epoch: int, *, sampled: bool) -> None:
        self.momentum, self.epoch, self.sampled = momentum, epoch, sampled
        self.averages: dict[str, float] = {}
        self.totals: dict[str, list[float]] = {}

    def start(self, update: Update) -> Found:
        if update.grid is None:
            return {}
        drawn = {} if update.draw is None or not self.sampled else {"draw": update.draw.clone()}
        few, _ = drawn_update(update, drawn.get("draw"))
        assert few.grid is not None
        trail: Found = trail_start(few.before)._asdict() | drawn
        scale = few.grid.scale
        return trail if update.moved is not None or scale is None else trail | {"scale": scale.clone()}

    def measure(self, update: Update, kept: Found) -> Found:
        if update.grid is None:
            return {}
        update, times = drawn_update(update, kept.get("draw"))
        assert update.grid is not None
        fmt, scale = update.grid.format, update.grid.scale
        found = flip_counts(update.start, update.after, fmt, scale=scale)
        trail, reversals = follow_trail(
            Trail(*(kept[part] for part in Trail._fields)), update.start, update.after, fmt, scale=scale
        )
        found |= trail_sums(trail)
        found["reversals"] = count(reversals)
        found["rescale_flips"] = _rescaled(update, kept.get("scale"))
        for part, now in trail._asdict().items():
            kept[part].copy_(now)
        if scale is not None and "scale" in kept:
            kept["scale"].copy_(scale)
        return found if times == 1 else {name: times * number for name, number in found.items()}

    def report(self, site: str, values: Values) -> Report:
        weights = values["weights"]
        reversed_ = torch.tensor(share(values["reversals"], weights))
        average = oscillation_average(torch.tensor(self.averages.get(site, 0.0)), reversed_, self.momentum)
        self.averages[site] = float(average)
        number = float((self.step - 1) // self.epoch)
        epoch, flips, observed = self.totals.get(site, [number, 0.0, 0.0])
        flips, observed = (flips, observed) if epoch == number else (0.0, 0.0)
        self.totals[site] = [number, flips + values["flips"], observed + weights]
        metrics = {
            "flip_rate": share(values["flips"], weights),
            "sign_flip_rate": share(values["sign_flips"], weights),
            "rescale_flip_rate": share(values["rescale_flips"], weights),
            "reversal_average": self.averages[site],
            "net_rungs": values["net"],
            "gross_rungs": values["gross"],
            "straightness": share(values["net"], values["gross"]),
            "epoch_flip_rate": share(*self.totals[site][1:]),
        }
        return Report(at(site, metrics))

    def state(self) -> dict[str, Any]:
        return {"averages": self.averages, "totals": self.totals}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.averages = dict(state["averages"])
        self.totals = {site: list(counts) for site, counts in state["totals"].items()}


def _rescaled(update: Update, held: Tensor | None) -> Tensor:
    """Values that a change of scale alone moved: by the storage, or for masters since the last look at scale `held`."""
    assert update.grid is not None
    if update.moved is not None:
        return count(update.moved != update.before)
    fmt, scale = update.grid.format, update.grid.scale
    if scale is None or held is None:
        return torch.zeros((), dtype=torch.int64, device=update.before.device)
    now, then = (round_to(update.before, fmt, scale=each) for each in (scale, held))
    return count(now != then)
