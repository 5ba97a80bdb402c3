"""watch(): monitors on a loop that is not ours, around any torch optimizer and any module, quantised or not.

The optimizer tells when a step is about to happen and when it has: its step hooks are all that is needed, so the loop
stays as it is, and after `optimizer.step()` the numbers are there. Nothing else is touched.

    micro-batch     a backward pass, and what it runs again within itself is none: gradients accumulate as in any loop
    closure         `optimizer.step(closure)` is backward and then step: gradients, loss and casts are those of the
                    first evaluation, from which the step begins; updates are those of the whole step
    loss scaler     a step that it leaves out has not been seen, nor have its casts

What a loop cannot be asked from outside it is told by name: the loss and which step to run again come from `replay`,
several backward passes that are one micro-batch are marked by `with watch.micro_batch():`, and `watch.look()` before
clipping shows gradients unclipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from altgrad.monitors import Alarm, Context, MicroMonitor, MonitorSpec, Replay, Report
from altgrad.nn import add_listener, closure_of, follow_steps, never_committed, remove_listener, with_closure
from altgrad.optim import whole_tensor
from altgrad.quantize.counted import Counted
from altgrad.spec import Spec
from altgrad.store import Run
from altgrad.watching.changes import left_out
from altgrad.watching.monitor_set import MonitorSet
from altgrad.watching.own_gradients import OwnGradients

Again = Callable[[], Tensor | Iterator[Tensor]]


class Monitors(Spec):
    """The monitors to watch with."""

    monitors: tuple[MonitorSpec, ...]

    noun: ClassVar[str] = "watch"


class LoopWatch:
    """What `watch` returns. After each `optimizer.step()`, until the next:

    metrics: by `<kind>/<site or parameter>/<quantity>`; only of monitors that were due. alarms: data that print as
    sentences. notices: one line each. stop: why a monitor would end the run here, else None. step: how many optimizer
    steps were seen. looked: whether this step's gradients were looked at. closed: whether it watches no longer.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, specs: Iterable[MonitorSpec], context: Context,
        replay: Again | None, scaler: Any,
    ) -> None:  # fmt: skip
        self.model, self.replay = model, replay
        self.metrics: dict[str, float] = {}
        self.alarms: list[Alarm] = []
        self.notices: list[str] = []
        self.stop: str | None = None
        self.step = 0
        self.looked = False
        self.closed = False
        follow_steps(model)
        self.watch = MonitorSet(tuple(specs), model, optimizer, context)
        self.own = OwnGradients(model, self.watch.names, self.watch.add_micro_batch)
        self.micro_batch = self.own.marked
        self._early: dict[str, Report] = {}
        self._left_out = False
        self._steps_seen = 0
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._own_casts = set(self.watch.quantizers)
        self._steps_at_commit = self._steps_at_update = 0
        self._scaler = scaler
        if scaler is not None:
            self._update = scaler.update
            self._undo = vars(scaler).get("update")
            self._scaler.update = self._scaler_updates
        add_listener(self)
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: the step, and the monitors' state (plain data, and tensors)."""
        return {"step": self.step, "monitors": self.watch.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.step = int(state["step"])
        self.watch.restore(state["monitors"])
        self._begin()

    def close(self) -> None:
        """Stop watching; the model and the optimizer are as if they had never been watched."""
        for handle in self._handles:
            handle.remove()
        if self._scaler is not None:
            if self._undo is None:
                del self._scaler.update
            else:
                self._scaler.update = self._undo
        remove_listener(self)
        self.own.forget()
        self.own.stop()
        self.watch.close()
        self.closed = True

    def look(self) -> None:
        """Look at the gradients now, and not when `optimizer.step()` begins: say it before they are clipped.

        With a loss scaler, after `scaler.unscale_(optimizer)`.
        """
        self._look(None)

    @torch.no_grad()
    def _look(self, loss: Tensor | None, unscale: Tensor | None = None) -> None:
        self.looked = True
        self.own.stop()
        gradients: Mapping[str, Tensor] = {
            n: whole_tensor(p.grad) for n, p in self.model.named_parameters() if p.grad is not None
        }
        zero = torch.zeros((), device=next(self.model.parameters()).device)  # a DTensor's own zeros would be a DTensor
        norm = torch.nn.utils.get_total_norm(list(gradients.values())) if gradients else zero
        if unscale is not None:
            norm, gradients = norm / unscale, _Unscaled(gradients, unscale)
        asked = self.replay
        again = None if asked is None else Replay(self.model, gradients, lambda: _losses(asked))
        known = zero if loss is None else loss.detach().reshape(()).to(zero.device)
        self.watch.look(known, norm, gradients, again)
        if again is not None:  # what explains a bad step runs it again, with the weights of before it
            self._early = self.watch.read()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._left_out = left_out(optimizer)
        if self._left_out:
            return None
        closure = closure_of(args, named)
        if closure is None:
            if not self.looked:
                self._look(None, getattr(optimizer, "grad_scale", None))
            return None

        def evaluate() -> Any:
            loss = closure()
            if not self.looked:
                self._look(loss if isinstance(loss, Tensor) and loss.numel() == 1 else None)
            return loss

        return with_closure(args, named, evaluate)

    def _after_step(self, *given: Any) -> None:
        if self._left_out:
            self._forget()
            return
        if not self.looked:  # a closure that was not evaluated
            self._look(None)
        reports = self._early | self.watch.finish()
        self.step += 1
        self._steps_seen += 1
        self.metrics = {
            f"{kind}/{key}": value for kind, report in reports.items() for key, value in report.metrics.items()
        }
        self.alarms = [alarm for report in reports.values() for alarm in report.alarms]
        self.notices = [notice for report in reports.values() for notice in report.notices]
        if self._steps_seen == 2 and (line := never_committed(self.watch.quantizers)):
            self.notices.append(line)
        self.stop = next((report.stop for report in reports.values() if report.stop), None)
        self._begin()

    def _begin(self) -> None:
        """What comes now belongs to the next step."""
        self.looked, self._early = False, {}
        self.own.forget()
        self.own.stop()
        self.watch.begin(self.step + 1)
        if self.watch.wants_micro_batches:
            self.own.start()

    def _forget(self) -> None:
        """The step was left out: what was seen of it goes, and it begins once more."""
        for monitor in self.watch.monitors.values():
            if isinstance(monitor, MicroMonitor):
                monitor.forget()
        self._begin()

    def _scaler_updates(self, *given: Any, **named: Any) -> None:
        """In place of the scaler's `update`, with which each round of a loop ends, with a step or without."""
        self._update(*given, **named)
        if self._steps_seen == self._steps_at_update:
            self._forget()
        self._steps_at_update = self._steps_seen

    def step_closed(self, sites: Iterable[Counted]) -> None:
        """These were committed: with no step since the last commit, either one was left out or it is still to come."""
        if self._own_casts.isdisjoint(sites):
            return
        if self._steps_seen == self._steps_at_commit:
            closed = self.watch.tables.closed()
            self._forget()
            self.watch.tables.before = closed
        self._steps_at_commit = self._steps_seen


class _Unscaled(Mapping[str, Tensor]):
    """Gradients over a loss scale, one at a time: so a copy is of one of them."""

    def __init__(self, scaled: Mapping[str, Tensor], scale: Tensor) -> None:
        self.scaled, self.scale = scaled, scale

    def __getitem__(self, name: str) -> Tensor:
        return self.scaled[name] / self.scale

    def __iter__(self) -> Iterator[str]:
        return iter(self.scaled)

    def __len__(self) -> int:
        return len(self.scaled)


def _losses(asked: Again) -> Iterator[Tensor]:
    found = asked()
    return iter([found]) if isinstance(found, Tensor) else found


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    monitors: Iterable[MonitorSpec | Mapping[str, Any] | str] = ("range", "finite"),
    *,
    replay: Again | None = None,
    epoch: int | None = None,
    twin: str | Path | None = None,
    scaler: GradScaler | None = None,
) -> LoopWatch:
    """Watch a model in a loop of your own; call it after `quantize_model`, and before torch.compile.

    monitors: kinds, or mappings such as `{"kind": "stall", "every": 5}`; `altgrad kinds monitor` lists them. replay:
    computes the loss of the present batch again, or its micro-batches' one by one, for `shadow`, `dead` and `finite`,
    which without it say less; it is called inside `optimizer.step()`, or inside `look()`. epoch: optimizer steps of an
    epoch. twin: the folder of a run with the same data, for `rank`. scaler: the loop's GradScaler. A step that it
    leaves out is not looked at; without `scaler` that is known from `altgrad.commit`, and in a loop that does not call
    it the casts of such a step count with the next. Gradients are looked at unscaled.

    Of an optimizer that is not from altgrad.optim the change it made is taken for its request. A step is not held back
    where `finite` raises an alarm: that is up to the loop. Of a closure the first evaluation is looked at.

    SpecError for monitors that do not exist or are named twice, ValueError for a twin that is no run.
    """
    beside = None if twin is None else Run(Path(twin))
    if beside is not None and not beside.exists:
        raise ValueError(f"twin {twin} is not a run's folder; name one such as runs/<project>/<run id>.")
    context = Context(epoch, None if beside is None else beside.metrics)
    return LoopWatch(model, optimizer, monitor_specs(monitors), context, replay, scaler)


def monitor_specs(monitors: Iterable[MonitorSpec | Mapping[str, Any] | str]) -> tuple[MonitorSpec, ...]:
    """The monitors meant, each once. SpecError for what is none, ValueError for one that is named twice."""
    specs = Monitors.made_from({"monitors": list(monitors)}).monitors
    kinds = [spec.kind for spec in specs]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"monitors names {', '.join(twice)} twice; one of each is enough.")
    return specs
