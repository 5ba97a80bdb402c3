"""Gradients of losses, with no trace of the backward pass that made them.

By `.backward()`, and not by `torch.autograd.grad`: reentrant activation checkpointing refuses the latter, and torch's
DistributedDataParallel never learns of it and fails in its next forward. What `.backward()` would leave is set aside
meanwhile: each parameter's `.grad`, and what users hang on a gradient that has been accumulated, where a backward pass
that takes the optimizer's step keeps it.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def fresh_gradients(model: nn.Module, losses: Callable[[], Iterator[Tensor]]) -> dict[str, Tensor]:
    """The gradients of the sum of these losses by parameter, of those that have one; `.grad` stays what it was."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = [(p, p.grad, dict(_hooks(p))) for p in parameters.values()]
    for p, _, _ in kept:
        p.grad = None
        _hooks(p).clear()  # autograd holds this very dict
    try:
        with torch.enable_grad():
            for loss in losses():
                torch.autograd.backward(loss)
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}
    finally:
        for p, gradient, hooks in kept:
            p.grad = gradient
            _hooks(p).update(hooks)


def _hooks(p: Tensor) -> dict[int, Any]:
    found: dict[int, Any] | None = cast(Any, p)._post_accumulate_grad_hooks
    return {} if found is None else found
