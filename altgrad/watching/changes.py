"""What an optimizer that is not ours did to each weight: the change of the weight is taken for its request.

The optimizer says when a step begins and ends (torch's step hooks). In between weights are kept, of those parameters
that have a gradient; before a closure has run that cannot be known, so then all are. A step that a loss scaler lets a
fused optimizer leave out has happened to nobody: torch tells of it in `optimizer.found_inf`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.nn import closure_of
from altgrad.optim import Update, whole_tensor


class Changes:
    """Shows each step's updates while `wanted`. parameters: whose, with their names."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Mapping[Tensor, str], show: Callable[[Update], None]
    ) -> None:
        self.parameters, self.show = parameters, show
        self.wanted = False
        self._before: list[tuple[Tensor, Tensor]] = []
        before, after = optimizer.register_step_pre_hook, optimizer.register_step_post_hook
        self._handles = [before(self._keep), after(self._compare)]

    def close(self) -> None:
        """Look at no step any more."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.wanted and not left_out(optimizer):
            coming = closure_of(args, named) is not None
            given = [p for p in self.parameters if p.grad is not None or (coming and p.requires_grad)]
            self._before = [(p, whole_tensor(p).clone()) for p in given]

    @torch.no_grad()
    def _compare(self, *_: Any) -> None:
        for p, before in self._before:
            if p.grad is not None:
                after = whole_tensor(p)
                self.show(Update(self.parameters[p], before, after - before, after, gradient=whole_tensor(p.grad)))
        self._before = []


def left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a loss scaler has found an overflow, and the step that begins will change nothing."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())
