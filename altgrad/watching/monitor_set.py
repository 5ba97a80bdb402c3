"""Watch: the monitors of a run, wired to the model and the optimizer.

Every quantizer shows its casts to the watch while `watching` is on, one bool for the model, and the optimizer its
updates. All that is measured waits on the device until the step is over and comes to the host in a single transfer.
What decides about the update (is it finite?) is one bool there, which an optimizer's graphs take as a mask
(`altgrad.watching.before_update`). An optimizer whose step is no such graph, or an intervention, must have the host
know first: then `read` fetches what was measured before the update, and a step at which other monitors are due has two
transfers. Measures of one parameter share a pass (`altgrad.watching.compiled_pass`). On a step where no monitor is due
the quantizers do not look at their observers at all.

The optimizer may be one of ours, which shows requests, or any other of torch's (`altgrad.watching.changes`).

What is not finite is looked for in the gradients, at every step, for one number of each. Casts are only asked about it
where they are watched anyway, so a step at which no cast monitor is due costs what it did; but a cast that turns an
infinity into an ordinary number (`nonfinite: saturate`) hides it from gradients, and is watched at every step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from altgrad.monitors.monitor import (
    NOTHING,
    CastMonitor,
    Context,
    Found,
    GradientMonitor,
    MicroMonitor,
    Monitor,
    MonitorSpec,
    Replay,
    ReplayMonitor,
    Report,
    UpdateMonitor,
    Weight,
    WeightMonitor,
)  # fmt: skip
from altgrad.monitors.sample import Draws, SampledSpec
from altgrad.nn import ALONE, counted_sites, quantizers, weight_quantizers
from altgrad.optim import Optimizer, Update, whole_tensor
from altgrad.quantize import Grid
from altgrad.watching.before_update import BeforeUpdate, run_again
from altgrad.watching.cast_tables import CastTables, fetch, fetch_found
from altgrad.watching.changes import Changes
from altgrad.watching.compiled_pass import CompiledPass, Seen, share_out

Sort = TypeVar("Sort", bound=Monitor)


class MonitorSet:
    """The monitors at work. One step goes: `begin`, forward and backward, `look`, the update, `finish`.

    loss, norm: of the last step that was read, as numbers.
    """

    def __init__(
        self,
        specs: Sequence[MonitorSpec],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        context: Context = NOTHING,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.processes = ALONE
        """Who trains together; set by whoever does so, see `recorded`."""
        self.due_at = {spec.kind: spec.every for spec in specs}
        self.monitors: dict[str, Monitor] = {spec.kind: spec.build(context) for spec in specs}
        self.due: set[str] = set()
        self.found: dict[str, dict[str, Found]] = {}
        self.names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        given = [p for group in optimizer.param_groups for p in group["params"]]
        self.parameters = [self.names[p] for p in given if p in self.names]
        self.quantizers = quantizers(model)
        self.weights = weight_quantizers(model)
        self.of_casts = {
            kind: monitor.of_casts
            for kind, monitor in self.monitors.items()
            if isinstance(monitor, GradientMonitor) and monitor.of_casts is not None
        }
        device = next(model.parameters()).device
        sites = [quantizer.site for quantizer in self.quantizers]
        casts = {kind: monitor for kind, monitor in self.monitors.items() if isinstance(monitor, CastMonitor)}
        sampling = any(isinstance(spec, SampledSpec) and spec.sample for spec in specs)
        self.draws = Draws(context.seed, [*sites, *self.names.values()] if sampling else (), device)
        keys = self.draws.keys
        self.tables = CastTables(casts | self.of_casts, sites, device, always=list(self.of_casts), draws=keys)
        self.observers = [self.tables.observer(site) for site in sites]
        for quantizer, observer in zip(self.quantizers, self.observers, strict=True):
            quantizer.observers.append(observer)
        engines = {quantizer.engine for quantizer in self.quantizers}
        if isinstance(optimizer, Optimizer):
            engines.add(optimizer.engine)
        self.looks = CompiledPass(self.monitors, "compiled" if "compiled" in engines else "eager")
        self.seen: dict[str, Seen] = {}
        self.loss = self.norm = math.nan
        self.before: BeforeUpdate | None = None
        """What was measured before the update and is not read yet."""
        self._committing = [site for site in counted_sites(model) if site.needs_commit]
        self._casts_watched = False
        self._joined = False
        """Whether the tables are those of all processes."""
        self.changes: Changes | None = None
        self._own_names: dict[str, str] = {}
        if isinstance(optimizer, Optimizer):
            optimizer.observers.append(self._see_update)
            self._own_names = {optimizer.names[p]: name for p, name in self.names.items() if p in optimizer.names}
        else:
            trained = {p: name for p, name in self.names.items() if name in self.parameters}
            self.changes = Changes(optimizer, trained, self._see_update)

    def begin(self, step: int) -> None:
        """Open the step that will be number `step` (from 1): decides what is due and switches watching on or off."""
        self.due = {kind for kind, every in self.due_at.items() if step == 1 or step % every == 0}
        for monitor in self.monitors.values():
            monitor.step = step
        self.found = {kind: {} for kind in self.monitors if kind in self.due}
        self.seen.clear()
        self.looks.left_out()
        self.before = None
        self.tables.clear()
        self.draws.renew(step)
        self._joined = False
        self._switch(bool(self._due(CastMonitor)), hiding=self._asking())
        watches_updates = bool(self._due(UpdateMonitor) or self._due(CastMonitor))
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.watching = watches_updates
            self.optimizer.applies = None
            self.optimizer.losses.clear()
            self.optimizer.measuring = any(monitor.of_states for monitor in self._due(WeightMonitor).values())
        if self.changes is not None:
            self.changes.wanted = watches_updates

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Around the backward pass of one micro-batch: shows its own gradients to those who ask for them.

        What had been accumulated is set aside meanwhile and the new gradient added to it as autograd would have done.
        """
        if not self.wants_micro_batches:
            yield
            return
        parameters = [p for p in self.names if p.requires_grad]
        kept = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        yield
        self.add_micro_batch({self.names[p]: p.grad for p in parameters if p.grad is not None})
        for p, before in zip(parameters, kept, strict=True):
            if before is not None:
                p.grad = before if p.grad is None else before.add_(p.grad)

    @property
    def wants_micro_batches(self) -> bool:
        """Whether a monitor that looks at every micro-batch is due."""
        return bool(self._due(MicroMonitor))

    def add_micro_batch(self, gradients: Mapping[str, Tensor]) -> None:
        """Show one micro-batch's own gradients, lent for the call, to those who ask for them."""
        for monitor in self._due(MicroMonitor).values():
            monitor.add(gradients)

    def gradients(
        self, loss: Tensor, norm: Tensor, gradients: Mapping[str, Tensor], replay: Replay | None = None
    ) -> tuple[float, float, dict[str, Report]]:
        """`look` and `read`: the loss and the gradient norm as numbers, and the due gradient monitors' reports."""
        self.look(loss, norm, gradients, replay)
        reports = self.read()
        return self.loss, self.norm, reports

    def look(self, loss: Tensor, norm: Tensor, gradients: Mapping[str, Tensor], replay: Replay | None = None) -> None:
        """Measure what there is before the update, without a transfer.

        replay: the step to run again for those who need it; without one they report nothing.
        """
        self._switch(False)
        at_work = self._due(GradientMonitor)
        seen = {name: self.looks.gradient(g, tuple(at_work)) for name, g in gradients.items()} if at_work else {}
        self.before = BeforeUpdate(at_work, loss.detach(), norm, seen, self._entered(), replay)
        for kind, micro in self._due(MicroMonitor).items():
            micro.merge(self.processes)
            self.found[kind] = micro.measure()
        if replay is not None and (replays := self._due(ReplayMonitor)):
            with run_again(self.model):
                for kind, again in replays.items():
                    self.found[kind] = again.measure(replay)

    def read(self) -> dict[str, Report]:
        """The due gradient monitors' reports, after one transfer; sets `loss` and `norm`."""
        assert self.before is not None
        return self._read(self.before, fetch(self.before.tensors)[0])

    def defer(self) -> bool:
        """Leave the update to the device and all reading to `finish`, if nobody must be asked on the host before it."""
        one, before = self.optimizer, self.before
        if before is None or not before.decided or self.processes.size > 1:
            return False
        if before.applies is None:
            return True
        if not isinstance(one, Optimizer) or not one.masks:
            return False
        one.applies = before.applies
        return True

    def _read(self, before: BeforeUpdate, lists: Sequence[Sequence[float]]) -> dict[str, Report]:
        """The same for what was fetched."""
        self.before = None
        entered = lists[1 : 1 + before.casts]
        casts = {kind: dict(self.tables.rows_of(kind, *entered)) for kind in self.of_casts if entered}
        self.loss, self.norm, reports = before.read(lists, casts)
        return reports

    def recorded(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the due cast monitors gathered of this process's passes: what is to be summed over processes, and of
        what the largest counts; both are to be changed in place before `finish`.
        """
        if self.before is not None:
            self.before.keep(self._committing)
        if not self._due(CastMonitor):
            return [], []
        self.tables.settle()
        self._joined = True
        return [self.tables.sums], [self.tables.maxima]

    @torch.no_grad()
    def finish(self) -> dict[str, Report]:
        """Reports of the other monitors that are due, and of those that `read` has not given, after one transfer.

        Of an update that was left out nothing is reported. Switches watching off.
        """
        self._switch(False)
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.watching = self.optimizer.measuring = False
        if at_work := self._due(WeightMonitor):
            grids = self._grids() if any(monitor.of_grids for monitor in at_work.values()) else {}
            for name, p in self.model.named_parameters():
                weight = Weight(name, whole_tensor(p), grids.get(name), self._states(p), self._losses(p))
                for kind, monitor in at_work.items():
                    self._keep(kind, name, monitor.measure(weight))
        if not self._joined:
            self.tables.settle()
        casts = self._due(CastMonitor)
        tables = [self.tables.sums, self.tables.maxima] if casts else []
        before = self.before
        first = [] if before is None else before.tensors
        updates = [found for found, _ in self.seen.values()]
        lists, numbers = fetch_found([*first, *tables, *updates], self.found)
        reports = {} if before is None else self._read(before, lists[: len(first)])
        lists = lists[len(first) :]
        if self._deferred:
            self._close(any(report.skip for report in reports.values()))
        lists = lists[: len(tables) + len(self.seen)]
        share_out(numbers, self.seen, lists[len(tables) :])
        for kind, sites in numbers.items():
            one = self.monitors[kind]
            if isinstance(one, GradientMonitor):
                continue
            results = [one.report(site, values) for site, values in sites.items()]
            if kind in casts:
                results = [one.report(site, row) for site, row in self.tables.rows_of(kind, *lists[:2])] + results
            if isinstance(one, UpdateMonitor) and self.seen:
                results += [one.absent(name) for name in self.parameters if name not in self.seen]
            reports[kind] = _joined([*results, one.close()])
        return reports

    def close(self) -> None:
        """Look at nothing any more."""
        self._switch(False)
        for quantizer, observer in zip(self.quantizers, self.observers, strict=True):
            quantizer.observers.remove(observer)
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.watching = self.optimizer.measuring = False
            self.optimizer.observers.remove(self._see_update)
        if self.changes is not None:
            self.changes.close()

    def state(self) -> dict[str, dict[str, Any]]:
        """The monitors' state by kind: plain JSON data, and tensors at its first level."""
        return {kind: monitor.state() | self.looks.state(kind) for kind, monitor in self.monitors.items()}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `state` gave; monitors it does not know keep their own."""
        for kind, monitor in self.monitors.items():
            if kind in state:
                monitor.restore(state[kind])
                self.looks.restore(kind, state[kind])

    @property
    def _deferred(self) -> bool:
        """Whether the host does not know yet if the update may be applied."""
        return isinstance(self.optimizer, Optimizer) and self.optimizer.applies is not None

    def _close(self, skipped: bool) -> None:
        """It is known now; a later step is not held back by it."""
        assert isinstance(self.optimizer, Optimizer)
        self.optimizer.applies = None
        if skipped:
            self.seen.clear()
            self.looks.left_out()
            self.optimizer.left_out()
        else:
            self.looks.taken()

    def _due(self, sort: type[Sort]) -> dict[str, Sort]:
        return {kind: m for kind, m in self.monitors.items() if kind in self.due and isinstance(m, sort)}

    def _asking(self) -> bool:
        """Whether a due gradient monitor asks something of casts."""
        return not self.due.isdisjoint(self.of_casts)

    def _switch(self, watching: bool, *, hiding: bool = False) -> None:
        """Watch all casts, or (`hiding`) those alone that make infinities finite."""
        self.tables.whole = watching
        for quantizer in self.quantizers:
            quantizer.watching = watching or (hiding and quantizer.spec.nonfinite == "saturate")
        if watching or hiding:
            self._casts_watched = any(quantizer.watching for quantizer in self.quantizers)

    def _entered(self) -> list[Tensor]:
        """The tables of casts so far, of all processes, if anyone asks before the update and casts were watched."""
        if not (self._asking() and self._casts_watched):
            return []
        self.tables.settle()
        sums, maxima = self.tables.sums, self.tables.maxima
        if self.processes.size > 1:  # they become one at the commit, in place; until then each has its own
            sums, maxima = sums.clone(), maxima.clone()
            self.processes.join([sums], [maxima])
        return [sums, maxima]

    def _keep(self, kind: str, site: str, found: Found) -> None:
        if found:
            self.found[kind][site] = found

    def _grids(self) -> dict[str, Grid]:
        """The grid of every parameter that has one, by name: of its storage, else of its cast."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        found = {name: quantizer.grid(whole_tensor(parameters[name])) for name, quantizer in self.weights.items()}
        if isinstance(self.optimizer, Optimizer):
            found |= {self._own_names.get(name, name): grid for name, _, grid in self.optimizer.grids()}
        return found

    def _states(self, p: Tensor) -> dict[str, Tensor]:
        """The float tensors of p's shape that the optimizer keeps for it."""
        kept = self.optimizer.state.get(p, {}).items()
        found = {entry: whole_tensor(s) for entry, s in kept if isinstance(s, Tensor) and s.is_floating_point()}
        return {entry: s for entry, s in found.items() if s.shape == p.shape and s.ndim > 0}

    def _losses(self, p: Tensor) -> Mapping[str, Mapping[str, Tensor]]:
        """What rounding made of p's states in this step."""
        return self.optimizer.losses.get(p, {}) if isinstance(self.optimizer, Optimizer) else {}

    def _see_update(self, update: Update) -> None:
        name = self._own_names.get(update.name, update.name)
        update = replace(update, name=name, draw=self.draws.keys.get(name))
        if update.grid is None and update.name in self.weights:
            update = replace(update, grid=self.weights[update.name].grid(update.before))
        kinds, casts = tuple(self._due(UpdateMonitor)), tuple(self._due(CastMonitor))
        self.seen[update.name] = self.looks.update(update, kinds, casts, deferred=self._deferred)


def _joined(reports: Sequence[Report]) -> Report:
    metrics: dict[str, float] = {}
    for report in reports:
        metrics.update(report.metrics)
    alarms = [alarm for report in reports for alarm in report.alarms]
    return Report(metrics, alarms, notices=[notice for report in reports for notice in report.notices])
