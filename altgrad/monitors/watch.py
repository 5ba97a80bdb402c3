"""Watch: the monitors of a run, wired to the model and the optimizer.

Every quantizer shows its casts to the watch while `watching` is on. Results accumulate in place in one float64 table
per monitor, a row for each site (float64 holds counts exactly up to 2^53). `fetch` brings everything due to the host in
a single transfer. On a step where no cast monitor is due the quantizers do not look at their observers at all.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.monitors.monitor import CastMonitor, GradientMonitor, Monitor, MonitorSpec, Report
from altgrad.nn import quantizers, weight_quantizers
from altgrad.optim import Optimizer, Update
from altgrad.quantize import Cast
from altgrad.quantize.quantizer import Role


class Watch:
    """The monitors at work. One step goes: `begin`, forward and backward, `gradients`, the update, `casts`."""

    def __init__(self, specs: Sequence[MonitorSpec], model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer, self.due_at = optimizer, {spec.kind: spec.every for spec in specs}
        self.monitors: dict[str, Monitor] = {spec.kind: spec.build() for spec in specs}
        self.quantizers = quantizers(model)
        self.weights = weight_quantizers(model)
        sites = [q.site for q in self.quantizers]
        sites += [f"{name}/{role}" for name in self.weights for role in ("requested", "stored")]
        self.rows = {site: row for row, site in enumerate(sites)}
        device = next(model.parameters()).device
        self.tables = {
            kind: torch.zeros(len(sites), len(monitor.sums) + len(monitor.maxima), dtype=torch.float64, device=device)
            for kind, monitor in self.monitors.items()
            if isinstance(monitor, CastMonitor)
        }
        for quantizer in self.quantizers:
            quantizer.observers.append(self._see)
        optimizer.observers.append(self._see_update)
        self.due: set[str] = set()

    def begin(self, step: int) -> None:
        """Open the step that will be number `step` (from 1): decides what is due and switches watching on or off."""
        self.due = {kind for kind, every in self.due_at.items() if step == 1 or step % every == 0}
        watching = any(kind in self.tables for kind in self.due)
        for quantizer in self.quantizers:
            quantizer.watching = watching
        self.optimizer.watching = watching
        for table in self.tables.values():
            table.zero_()

    def gradients(
        self, loss: Tensor, norm: Tensor, gradients: Mapping[str, Tensor]
    ) -> tuple[float, float, dict[str, Report]]:
        """The loss and the gradient norm as numbers, and the due gradient monitors' reports, by way of one transfer."""
        at_work = {kind: m for kind, m in self.monitors.items() if kind in self.due and isinstance(m, GradientMonitor)}
        found = {kind: monitor.measure(loss, gradients) for kind, monitor in at_work.items()}
        (loss_now, norm_now), *values = _fetch([torch.stack([loss.detach(), norm]), *found.values()])
        names = list(gradients)
        reports = {kind: m.report(names, value) for (kind, m), value in zip(at_work.items(), values, strict=True)}
        return loss_now, norm_now, reports

    def casts(self) -> dict[str, Report]:
        """Reports of the cast monitors that are due, after one transfer; switches watching off."""
        self.optimizer.watching = False
        for quantizer in self.quantizers:
            quantizer.watching = False
        due = {kind: table for kind, table in self.tables.items() if kind in self.due}
        reports = {}
        for kind, values in zip(due, _fetch(list(due.values())), strict=True):
            monitor = self.monitors[kind]
            assert isinstance(monitor, CastMonitor)
            names = monitor.sums + monitor.maxima
            metrics: dict[str, float] = {}
            alarms: list[str] = []
            for site, row in self.rows.items():
                told = monitor.report(site, dict(zip(names, values[row * len(names) :], strict=False)))
                metrics.update(told.metrics)
                alarms += told.alarms
            reports[kind] = Report(metrics, alarms)
        return reports

    def state(self) -> dict[str, Any]:
        """The monitors' state, as plain JSON data."""
        return {kind: monitor.state() for kind, monitor in self.monitors.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; monitors it does not know keep their own."""
        for kind, monitor in self.monitors.items():
            if kind in state:
                monitor.restore(state[kind])

    def _see(self, cast: Cast) -> None:
        for kind, table in self.tables.items():
            monitor = self.monitors[kind]
            if kind not in self.due or not isinstance(monitor, CastMonitor):
                continue
            found = monitor.measure(cast)
            row = table[self.rows[cast.site]]
            sums = torch.stack([found[name].to(torch.float64) for name in monitor.sums])
            row[: len(sums)] += sums
            if monitor.maxima:
                maxima = torch.stack([found[name].to(torch.float64) for name in monitor.maxima])
                row[len(sums) :] = torch.maximum(row[len(sums) :], maxima)

    def _see_update(self, update: Update) -> None:
        """The optimizer's role: the requested update and the stored weight, on the grid of the weight's own cast."""
        quantizer = self.weights.get(update.name)
        if quantizer is None:
            return
        scale = quantizer.scaling.scale(update.before, False)
        pairs: tuple[tuple[Role, Tensor], ...] = (("requested", update.requested), ("stored", update.after))
        for role, tensor in pairs:
            self._see(quantizer.on_grid(tensor, scale, f"{update.name}/{role}", role))


def _fetch(tensors: list[Tensor]) -> list[list[float]]:
    """The values of all tensors, flattened, by way of one transfer."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1).to(torch.float64) for tensor in tensors]).tolist()
    ends = itertools.accumulate((tensor.numel() for tensor in tensors), initial=0)
    return [flat[start:end] for start, end in itertools.pairwise(ends)]
