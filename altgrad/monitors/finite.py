"""finite: has anything become inf or NaN? If so the step is not applied, and after `patience` such steps the run ends.

It looks at the loss and at the largest magnitude of each parameter's gradient, both of which turn non-finite with any
entry they cover. A poisoned update would spread through the optimizer's moments for good, so it is skipped; a run that
ends here is a result, `diverged`, not a crash.

An infinity that enters a cast need not reach either: a cast can hide it, and so can a clamp behind it or a parameter
that is not trained. So casts count what is not finite as it enters, wherever they are watched anyway, and at every step
where they hide it (see `altgrad.watching.monitor_set`); the first such entry of each site is an alarm that names it. It
skips no step, since gradients decide about that.

By then everything is NaN, and what matters is where it began. So the bad step is run again, in eager, and every
module's output is looked at in the order of the forward pass, then the gradients of those outputs in the order of the
backward pass: the first that is not finite is put on record. Watching each step that closely would cost a transfer a
module; a second look at one that failed costs nothing until then.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple, cast

from pydantic import Field
from torch import Tensor, nn

from altgrad.measures import linf_norm
from altgrad.measures.share import count
from altgrad.monitors.alarm import Alarm, AlarmLatch
from altgrad.monitors.monitor import (
    NO_CASTS,
    NOTHING,
    CastMonitor,
    Context,
    Every,
    Found,
    GradientMonitor,
    MonitorSpec,
    Replay,
    Report,
    Values,
)  # fmt: skip
from altgrad.monitors.shadow import replayed_gradients
from altgrad.optim import whole_tensor
from altgrad.quantize import Cast
from altgrad.symptoms import Phase

NOT_FINITE = "{what} is not finite{others}.{began}"
ENTERED = "{site}: {some} inf or NaN entered the cast{hidden}."


class FiniteSpec(MonitorSpec):
    """Stop as diverged after `patience` steps in a row with a non-finite loss or gradient; says where it began."""

    kind: ClassVar[str] = "finite"
    every: Every = 1
    patience: Annotated[int, Field(ge=1)] = 1
    """Steps in a row that are not applied before the run ends."""

    def build(self, context: Context = NOTHING) -> "Finite":
        return Finite(self.patience)


class Entering(CastMonitor):
    """How many values that are not finite enter each cast, and how many more than leave it.

    Said as `altgrad.measures.range` says it, so that a graph with both counts once. (`isfinite` takes four times as
    long in eager on a CPU.)
    """

    sums: ClassVar[tuple[str, ...]] = ("nonfinite", "hidden")

    def measure(self, cast: Cast) -> Found:
        entering, leaving = (x.numel() - count(x.abs() < math.inf) for x in (cast.exact, cast.rounded))
        return {"nonfinite": entering, "hidden": (entering - leaving).clamp(min=0)}


class Origin(NamedTuple):
    """The first tensor that was not finite: in words, and as an alarm has it."""

    words: str
    site: str
    phase: Phase


class Finite(GradientMonitor):
    """Counts bad steps in a row and remembers what went bad first."""

    phases: ClassVar[Mapping[str, Phase]] = {"loss": "training"}

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.of_casts = Entering()
        self.latch = AlarmLatch()
        self.bad_steps = 0
        self.first: dict[str, Any] | None = None
        """The step and the tensor that went bad first in the run."""

    def measure(self, gradient: Tensor) -> Found:
        return {"linf": linf_norm(gradient)}

    def applies(self, loss: Tensor, found: Mapping[str, Tensor]) -> Tensor:
        whole = loss.isfinite()
        return whole & found["linf"].isfinite().all() if found else whole

    def report_all(self, loss: float, found: Mapping[str, Values], casts: Mapping[str, Values] = NO_CASTS) -> Report:
        bad = {site: values for site, values in casts.items() if values["nonfinite"]}
        entered = [self._entered(site, values) for site, values in bad.items() if self.latch.see(site, True)]
        report = self._judge(loss, found)
        return replace(report, alarms=[*report.alarms, *entered])

    def _judge(self, loss: float, found: Mapping[str, Values]) -> Report:
        bad = [(name, values["linf"]) for name, values in found.items() if not math.isfinite(values["linf"])]
        number = len(bad) + (not math.isfinite(loss))
        if not number:
            self.bad_steps = 0
            return Report()
        self.bad_steps += 1
        if not math.isfinite(loss):
            site, quantity, value, origin = "loss", "loss", loss, "the loss"
        else:
            # Backward runs from the loss to the input: the last bad gradient in parameter order went bad first.
            (site, value), quantity = bad[-1], "linf"
            origin = f"the gradient of {site}"
        self.first = self.first or {"step": self.step, "tensor": origin}
        others = ("", ", nor is one other tensor", f", nor are {number - 1} other tensors")[min(number, 3) - 1]
        alarm = self.alarm(site, quantity, value, math.inf, NOT_FINITE, what=origin, others=others, began="")
        lasting = f", {self.bad_steps} steps in a row" if self.patience > 1 else ""
        stop = f"{origin} is not finite{others}{lasting}." if self.bad_steps >= self.patience else None
        return Report(alarms=[alarm], stop=stop, skip=True)

    def explain(self, report: Report, replay: Replay) -> Report:
        origin = first_nonfinite(replay)
        if origin is None:
            return report
        if self.first is not None and self.first["step"] == self.step:
            self.first = {"step": self.step, "tensor": origin.words}
        began = f" It began in {origin.words}."
        alarm, *others = report.alarms
        alarm = replace(alarm, site=origin.site, phase=origin.phase, details={**alarm.details, "began": began})
        return replace(report, alarms=[alarm, *others], stop=None if report.stop is None else report.stop + began)

    def state(self) -> dict[str, Any]:
        entered = {"entered": self.latch.state()} if self.latch.raised else {}
        return {"bad_steps": self.bad_steps, "first": self.first, **entered}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.bad_steps, self.first = int(state["bad_steps"]), state["first"]
        if "entered" in state:  # only once something did
            self.latch.restore(state["entered"])

    def _entered(self, site: str, values: Values) -> Alarm:
        some = f"{values['nonfinite']:.0f} values that are" if values["nonfinite"] > 1 else "a value that is"
        hidden = " and left it as ordinary numbers, which hides them" if values["hidden"] else ""
        return self.alarm(site, "nonfinite_count", values["nonfinite"], 0, ENTERED, some=some, hidden=hidden)


def first_nonfinite(replay: Replay) -> Origin | None:
    """The first tensor of a step run again that is not finite, parameters before all; None for none."""
    for name, p in replay.model.named_parameters():
        if not _finite(p):
            return Origin(f"the weights {name}", name, "optimizer")
    seen: list[Origin] = []
    names = {module: name or "the model" for name, module in replay.model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            if not _finite(tensor):
                seen.append(Origin(f"the output of {names[module]}", names[module], "forward"))
            elif tensor.requires_grad:
                name = names[module]
                cast(Any, tensor).register_hook(lambda g, name=name: look_back(g, name, f"the output of {name}"))

    def look_back(gradient: Tensor, name: str, of: str) -> None:
        if not _finite(gradient):
            seen.append(Origin(f"the gradient of {of}", name, "backward"))

    handles = [module.register_forward_hook(look) for module in names]
    for name, p in replay.model.named_parameters():
        if p.requires_grad:
            handles.append(cast(Any, p).register_hook(lambda g, name=name: look_back(g, name, name)))
    try:
        replayed_gradients(replay)
    finally:
        for handle in handles:
            handle.remove()
    # All processes run it again, and the first that saw something speaks for all.
    return next(filter(None, replay.processes.words(seen[0] if seen else None)), None)


def _finite(tensor: Tensor) -> bool:
    return bool(whole_tensor(tensor).isfinite().all())
