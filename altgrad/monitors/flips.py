"""flips: weights whose code changed; where to, how often back again, and how far they get.

    flip_rate           codes changed at this step's scale / weights; masters count by the code they round to
    sign_flip_rate      those that changed their sign
    rescale_flip_rate   weights that a new scale alone moved to another value
    reversal_average    moving average of the share of weights whose flip undid the flip before it (oscillation)
    straightness        sum |net| / sum gross rungs travelled: 1 straight on, 0 to and fro
    epoch_flip_rate     flips of the epoch so far / weights / observed steps of it

Only observed steps count, so `every: 1` sees all of them; at a slower cadence rates are samples and a reversal is one
between observed steps. Epochs are as long as the data say; without data, 100 steps. The trail of each weight costs 9
bytes: the direction of its last flip, and the rungs it has travelled, net and gross.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.measures import Trail, flip_counts, follow, oscillation_average, share, trail_start, trail_sums
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, Context, Found, MonitorSpec, Report, UpdateMonitor, Values, at
from altgrad.optim import Update
from altgrad.quantize import round_to

EPOCH = 100
"""Steps of an epoch where the data do not say."""


class Flips(MonitorSpec):
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

    def build(self, context: Context = NOTHING) -> "FlipsMonitor":
        """See MonitorSpec."""
        return FlipsMonitor(self.momentum, context.epoch or EPOCH)


class FlipsMonitor(UpdateMonitor):
    """Keeps the trail of every weight on a grid, and the last scale of masters."""

    alike: ClassVar[tuple[str, ...]] = (
        "flips", "sign_flips", "weights", "rescale_flips", "reversals", "net", "gross"
    )  # fmt: skip

    def __init__(self, momentum: float, epoch: int) -> None:
        self.momentum, self.epoch = momentum, epoch
        self.trails: dict[str, Trail] = {}
        self.scales: dict[str, Tensor] = {}
        self.averages: dict[str, float] = {}
        self.totals: dict[str, list[float]] = {}

    def measure(self, update: Update) -> Found:
        """See UpdateMonitor."""
        if update.grid is None:
            return {}
        name, fmt, scale = update.name, update.grid.format, update.grid.scale
        start = update.before if update.moved is None else update.moved
        found = flip_counts(start, update.after, fmt, scale=scale)
        trail = self.trails.get(name) or trail_start(start)
        self.trails[name], reversals = follow(trail, start, update.after, fmt, scale=scale)
        found |= trail_sums(self.trails[name])
        found["reversals"] = torch.count_nonzero(reversals)
        found["rescale_flips"] = self._rescaled(update)
        return found

    def report(self, site: str, values: Values) -> Report:
        """See Monitor."""
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
        """See Monitor."""
        trails = {f"{name}/{part}": t for name, trail in self.trails.items() for part, t in trail._asdict().items()}
        scales = {f"{name}/scale": scale for name, scale in self.scales.items()}
        return {"averages": self.averages, "totals": self.totals, **trails, **scales}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Monitor."""
        self.averages = dict(state["averages"])
        self.totals = {site: list(counts) for site, counts in state["totals"].items()}
        tensors = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
        names = [key.removesuffix("/direction") for key in tensors if key.endswith("/direction")]
        self.trails = {name: Trail(*(tensors[f"{name}/{part}"] for part in Trail._fields)) for name in names}
        self.scales = {key.removesuffix("/scale"): t for key, t in tensors.items() if key.endswith("/scale")}

    def _rescaled(self, update: Update) -> Tensor:
        """Values that a change of scale alone moved: by the storage, or for masters since the last observation."""
        assert update.grid is not None
        fmt, scale = update.grid.format, update.grid.scale
        if update.moved is not None:
            return torch.count_nonzero(update.moved != update.before)
        none = torch.zeros((), dtype=torch.int64, device=update.before.device)
        if scale is None:
            return none
        held = self.scales.get(update.name)
        self.scales[update.name] = scale.clone()
        if held is None or held.shape != scale.shape:
            return none
        now, then = (round_to(update.before, fmt, scale=each) for each in (scale, held))
        return torch.count_nonzero(now != then)
