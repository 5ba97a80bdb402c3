"""updates: does what the optimizer asks for reach the weights?

    attempted_share          #(requested != 0) / n
    zero_update_fraction     #(stored after == stored before) / n
    effective_update_ratio   <requested, realised> / |requested|^2, realised = change of the weight the forward uses:
                             1 where storage applied it, 0 where nothing moved
    flips, updates           totals of the observed steps, and over them  stall_ratio = 1 - flips / updates,
                             flips counted on the attempted

Two alarms, both after `patience` observations in a row. Nearest storage *loses* updates if of all that was attempted
more than 90 % left no trace and less than 10 % of the request was realised, sums taken over those observations: steps
below half a gap, as in a LayerNorm kept in 8 bits. (Under stochastic storage the ratio is 1 on average, and far from it
in a small tensor; kahan and eco make up later for what they lose.) A parameter is *frozen* if no weight of it changed
and storage is not to blame, or if the optimizer passed it over while it updated others. Under `sample` all this is of
the weights drawn, others at each observation.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.measures import effective_update_sums, share, stall_counts, zero_update_counts
from altgrad.measures.metric import Metric
from altgrad.measures.share import count
from altgrad.monitors.alarm import Alarm, AlarmLatch
from altgrad.monitors.monitor import NOTHING, Context, Found, Report, UpdateMonitor, Values, at
from altgrad.monitors.sample import ERROR, Errors, SampledSpec, drawn_update
from altgrad.optim import Update
from altgrad.quantize import round_to
from altgrad.symptoms import APPLIED, LOST, is_stalled

ROUNDED_AWAY = "{site}: {lost:.1%} of updates are rounded away; {value:.1%} of the requested change is applied."
UNCHANGED = "{site}: no weight has changed in {times} observations."
NO_GRADIENT = "{site}: no gradient and so no update, {times} times in a row."


class UpdatesSpec(SampledSpec):
    """Attempted and realised updates of each parameter, zero updates, and totals of updates and flips."""

    kind: ClassVar[str] = "updates"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("attempted_share", "ratio", "weights that the optimizer asked to move", "#(requested != 0) / n"),
        Metric(
            "zero_update_fraction", "ratio", "weights whose stored value stayed", "#(after == before) / n", "higher",
            "1, `patience` times in a row, of masters or without a request: the parameter is frozen",
        ),
        Metric(
            "effective_update_ratio", "ratio", "how much of the request the forward pass sees",
            "<requested, realised> / |requested|^2", "lower",
            f"below {APPLIED} with a stall ratio above {LOST} over `patience` observations of nearest storage",
        ),
        Metric("update_count", "count", "updates attempted in the observed steps so far", "sum #(requested != 0)"),
        Metric("flip_count", "count", "codes that these changed", "sum #(attempted, code changed)"),
        Metric(
            "stall_ratio", "ratio", "over the observed steps so far", "1 - flips / updates", "higher",
            "see effective_update_ratio",
        ),
        ERROR,
    )  # fmt: skip
    patience: Annotated[int, Field(ge=1)] = 3
    """Observations in a row before an alarm."""

    def build(self, context: Context = NOTHING) -> "Updates":
        return Updates(self.patience, sampled=self.sample is not None)


class Updates(UpdateMonitor):
    """Counts and inner products of each step; totals by parameter."""

    alike: ClassVar[tuple[str, ...]] = (
        "attempted", "stalls", "unchanged", "weights", "overlap", "energy", "gridded", "nearest", "master"
    )  # fmt: skip

    def __init__(self, patience: int, *, sampled: bool) -> None:
        self.patience = patience
        self.errors = Errors() if sampled else None
        self.frozen, self.lossy = AlarmLatch(patience), AlarmLatch()
        self.totals: dict[str, list[float]] = {}
        self.lately: dict[str, list[list[float]]] = {}

    def measure(self, update: Update, kept: Found) -> Found:
        times = 1
        if self.errors is not None:
            update, times = drawn_update(update, update.draw)
        zero = zero_update_counts(update.before, update.after)
        found = zero | effective_update_sums(update.requested, _realised(update))
        found["attempted"] = count(update.requested != 0)
        if update.grid is not None:
            found |= stall_counts(
                update.start, update.after, update.requested, update.grid.format, scale=update.grid.scale
            )
        if times > 1:
            found = {name: times * number for name, number in found.items()}
        found["gridded"] = zero["weights"].new_full((), update.grid is not None)
        found["master"] = zero["weights"].new_full((), update.storage == "master")
        found["nearest"] = zero["weights"].new_full((), update.storage == "nearest")
        return found

    def report(self, site: str, values: Values) -> Report:
        metrics = {
            "attempted_share": share(values["attempted"], values["weights"]),
            "zero_update_fraction": share(values["unchanged"], values["weights"]),
            "effective_update_ratio": share(values["overlap"], values["energy"]),
        }
        if self.errors is not None:
            metrics |= self.errors.see(site, metrics)
        alarms = []
        if values["gridded"]:
            totals = self.totals.setdefault(site, [0.0, 0.0])
            totals[0] += values["attempted"]
            totals[1] += values["attempted"] - values["stalls"]
            stalled = 1 - share(totals[1], totals[0])
            metrics |= {"update_count": totals[0], "flip_count": totals[1], "stall_ratio": stalled}
        if values["nearest"]:
            names = ("attempted", "stalls", "overlap", "energy")
            window = [*self.lately.get(site, []), [values[name] for name in names]][-self.patience :]
            self.lately[site] = window
            attempted, stalls, overlap, energy = map(sum, zip(*window, strict=True))
            lost, applied = share(stalls, attempted), share(overlap, energy)
            if self.lossy.see(site, len(window) == self.patience and is_stalled(lost, applied)):
                name, applied = "effective_update_ratio", max(0.0, applied)
                alarms.append(self.alarm(site, name, applied, APPLIED, ROUNDED_AWAY, lost=lost))
        still = values["weights"] > 0 and values["unchanged"] == values["weights"]
        if self.frozen.see(site, bool(still and (values["master"] or not values["attempted"]))):
            alarms.append(self._frozen(site, UNCHANGED))
        return Report(at(site, metrics), alarms)

    def absent(self, parameter: str) -> Report:
        return Report(alarms=[self._frozen(parameter, NO_GRADIENT)] if self.frozen.see(parameter, True) else [])

    def state(self) -> dict[str, Any]:
        errors = {} if self.errors is None else {"errors": self.errors.state()}
        return {
            "totals": self.totals, "lately": self.lately, "frozen": self.frozen.state(), "lossy": self.lossy.state(),
            **errors,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self.totals = {site: list(counts) for site, counts in state["totals"].items()}
        self.lately = {site: [list(row) for row in window] for site, window in state["lately"].items()}
        self.frozen.restore(state["frozen"])
        self.lossy.restore(state["lossy"])
        if self.errors is not None:
            self.errors.restore(state.get("errors", {}))

    def _frozen(self, site: str, sentence: str) -> Alarm:
        return self.alarm(site, "zero_update_fraction", 1, 1, sentence, times=self.patience)


def _realised(update: Update) -> Tensor:
    """The change of the weight as the forward pass uses it: of its cast, for masters that are cast."""
    if update.grid is None or update.storage != "master":
        return update.after - update.before
    fmt, scale = update.grid.format, update.grid.scale
    return round_to(update.after, fmt, scale=scale) - round_to(update.before, fmt, scale=scale)
