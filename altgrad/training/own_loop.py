"""watch(): monitors on a loop that is not ours, around any torch optimizer and any module, quantised or not.

The optimizer tells when a step is about to happen and when it has: its step hooks are all that is needed, so the loop
stays as it is, and after `optimizer.step()` the numbers are there. Nothing else is touched. What a loop of its own
cannot be told from outside it is told by name: the loss and which step to run again come from `replay`, a backward pass
per micro-batch is marked by `with watch.micro_batch():`, and `watch.look()` before clipping shows gradients unclipped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.monitors import Context, MonitorSpec, Replay, Report, Watch
from altgrad.optim import whole_tensor
from altgrad.spec import Spec
from altgrad.training.twin import any_run

Again = Callable[[], Tensor | Iterator[Tensor]]


class Monitors(Spec):
    """The monitors to watch with."""

    monitors: tuple[MonitorSpec, ...]

    @classmethod
    def noun(cls) -> str:
        """See Spec."""
        return "watch"


class LoopWatch:
    """What `watch` returns. After each `optimizer.step()`, until the next:

    metrics: by `<kind>/<site or parameter>/<quantity>`; only of monitors that were due. alarms, notices: one line each.
    stop: why a monitor would end the run here, else None. step: how many optimizer steps were seen. looked: whether
    this step's gradients were looked at. closed: whether it watches no longer.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, specs: Iterable[MonitorSpec], context: Context,
        replay: Again | None,
    ) -> None:  # fmt: skip
        self.model, self.replay = model, replay
        self.metrics: dict[str, float] = {}
        self.alarms: list[str] = []
        self.notices: list[str] = []
        self.stop: str | None = None
        self.step = 0
        self.looked = False
        self.closed = False
        self.watch = Watch(tuple(specs), model, optimizer, context)
        self._early: dict[str, Report] = {}
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self.watch.begin(1)
        self.micro_batch = self.watch.micro_batch

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: the step, and the monitors' state (plain data, and tensors)."""
        return {"step": self.step, "monitors": self.watch.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.step = int(state["step"])
        self.watch.restore(state["monitors"])
        self.watch.begin(self.step + 1)

    def close(self) -> None:
        """Stop watching; the model and the optimizer are as if they had never been watched."""
        for handle in self._handles:
            handle.remove()
        self.watch.close()
        self.closed = True

    @torch.no_grad()
    def look(self) -> None:
        """Look at the gradients now, and not when `optimizer.step()` begins: say it before they are clipped."""
        self.looked = True
        gradients = {n: whole_tensor(p.grad) for n, p in self.model.named_parameters() if p.grad is not None}
        zero = torch.zeros((), device=next(self.model.parameters()).device)  # a DTensor's own zeros would be a DTensor
        norm = torch.nn.utils.get_total_norm(list(gradients.values())) if gradients else zero
        asked = self.replay
        again = None if asked is None else Replay(self.model, gradients, lambda: _losses(asked))
        _, _, self._early = self.watch.gradients(zero, norm, gradients, again)

    def _before_step(self, *given: Any) -> None:
        if not self.looked:
            self.look()

    def _after_step(self, *given: Any) -> None:
        reports = self._early | self.watch.finish()
        self.step += 1
        self.looked = False
        self.metrics = {
            f"{kind}/{key}": value for kind, report in reports.items() for key, value in report.metrics.items()
        }
        self.alarms = [alarm for report in reports.values() for alarm in report.alarms]
        self.notices = [notice for report in reports.values() for notice in report.notices]
        self.stop = next((report.stop for report in reports.values() if report.stop), None)
        self.watch.begin(self.step + 1)


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
) -> LoopWatch:
    """Watch a model in a loop of your own; call it after `quantize_model`, and before torch.compile.

    monitors: kinds, or mappings such as `{"kind": "stall", "every": 5}`; `altgrad kinds monitor` lists them. replay:
    computes the loss of the present batch again, or its micro-batches' one by one, for `shadow`, `dead` and `finite`,
    which without it say less; it is called inside `optimizer.step()`, or inside `look()`. epoch: optimizer steps of an
    epoch. twin: the folder of a run with the same data, for `rank`. Of an optimizer that is not from altgrad.optim the
    change it made is taken for its request. A step is not held back where `finite` raises an alarm: that is up to the
    loop. With an optimizer that takes a closure, gradients are those before the closure ran.

    SpecError for monitors that do not exist or are named twice, ValueError for a twin that is no run.
    """
    context = Context(epoch, None if twin is None else any_run(str(twin)).rows)
    return LoopWatch(model, optimizer, monitor_specs(monitors), context, replay)


def monitor_specs(monitors: Iterable[MonitorSpec | Mapping[str, Any] | str]) -> tuple[MonitorSpec, ...]:
    """The monitors meant, each once. SpecError for what is none, ValueError for one that is named twice."""
    specs = Monitors.made_from({"monitors": list(monitors)}).monitors
    kinds = [spec.kind for spec in specs]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"monitors names {', '.join(twice)} twice; one of each is enough.")
    return specs
