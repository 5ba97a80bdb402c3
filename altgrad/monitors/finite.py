"""finite: has anything become inf or NaN? If so the step is not applied, and after `patience` such steps the run ends.

It looks at the loss and at the largest magnitude of each parameter's gradient, both of which turn non-finite with any
entry they cover. A poisoned update would spread through the optimizer's moments for good, so it is skipped; a run that
ends here is a result, `diverged`, not a crash.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.monitors.monitor import GradientMonitor, MonitorSpec, Report


class Finite(MonitorSpec):
    """Stop as diverged after `patience` steps in a row with a non-finite loss or gradient."""

    kind: ClassVar[str] = "finite"
    every: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 1

    def build(self) -> "FiniteMonitor":
        """See MonitorSpec."""
        return FiniteMonitor(self.patience)


class FiniteMonitor(GradientMonitor):
    """Counts bad steps in a row and remembers what went bad first."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.bad_steps = 0

    def measure(self, loss: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        """The loss and the largest magnitude of each gradient."""
        largest = torch._foreach_norm(list(gradients.values()), math.inf)
        return torch.stack([loss.detach().to(torch.float32), *(value.to(torch.float32) for value in largest)])

    def report(self, parameters: Sequence[str], values: Sequence[float]) -> Report:
        """See GradientMonitor."""
        bad = [name for name, value in zip(["the loss", *parameters], values, strict=True) if not math.isfinite(value)]
        if not bad:
            self.bad_steps = 0
            return Report()
        self.bad_steps += 1
        # Backward runs from the loss to the input: the last bad gradient in parameter order went bad first.
        origin = "the loss" if bad[0] == "the loss" else f"the gradient of {bad[-1]}"
        what = f"{origin} is not finite" + (f", nor are {len(bad) - 1} other tensors" if len(bad) > 1 else "")
        stop = f"{what}, {self.bad_steps} steps in a row" if self.patience > 1 else what
        return Report(
            alarms=[f"{what}; the step was not applied."],
            stop=f"{stop}." if self.bad_steps >= self.patience else None,
            skip=True,
        )

    def state(self) -> dict[str, Any]:
        """See Monitor."""
        return {"bad_steps": self.bad_steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Monitor."""
        self.bad_steps = int(state["bad_steps"])
