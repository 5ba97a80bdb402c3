"""Running a model again without a trace: as it trains, or as the plain model that it quantises.

    unrecorded    casts are made with the random bits of the step's passes, from the first on, but no pass counts: no
                  amax is noted, no random bits are used up, nobody watches
    observed      passes count, so that each cast can be looked at, and every buffer comes back
    casts_off     every quantised layer is for the time the plain layer of its class, on the same Parameters

A replay happens in the middle of a step, between backward and the update, so it must leave every buffer of the model as
it was, also those that are not ours (the running statistics of a BatchNorm): they are put back. For the plain
layer the class is exchanged, as in surgery, and not a flag asked in forward: so what runs *is* nn.Linear, bit for bit.

Gradients of losses, with no trace of the backward pass that made them.

By `.backward()`, and not by `torch.autograd.grad`: reentrant activation checkpointing refuses the latter, and torch's
DistributedDataParallel never learns of it and fails in its next forward. What `.backward()` would leave is set aside
meanwhile: each parameter's `.grad`, and what users hang on a gradient that has been accumulated, where a backward pass
that takes the optimizer's step keeps it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from altgrad.nn.layers import exchanged, refuse_own_forward
from altgrad.nn.linear import QuantizedLayer
from altgrad.quantize import Cast, Quantizer
from altgrad.quantize.counted import Counted


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


@contextmanager
def unrecorded(model: nn.Module) -> Iterator[None]:
    """For the length of a block no pass counts as training, whatever mode the model is in; buffers come back.

    In training mode the forwards within repeat those of the step that is not committed yet: the same random bits.
    """
    switched: list[QuantizedLayer | Counted] = [
        module for module in model.modules() if isinstance(module, QuantizedLayer | Counted) and module.recording
    ]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module in switched:
        module.recording = False
        if isinstance(module, Counted):
            module.rewind()
    try:
        yield
    finally:
        for module in switched:
            del module.recording  # the class says True
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def observed(model: nn.Module, observe: Callable[[Cast], None]) -> Iterator[None]:
    """For the length of a block every cast of a training pass is shown to `observe`, and to nobody else.

    Buffers come back, so the pass leaves no trace: no amax, no random bits used up.
    """
    casts = [module for module in model.modules() if isinstance(module, Quantizer) and not module.is_part]
    before = [(cast, cast.watching, cast.observers) for cast in casts]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for each in casts:
        each.watching, each.observers = True, [observe]
    try:
        yield
    finally:
        for cast, watching, observers in before:
            cast.watching, cast.observers = watching, observers
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def casts_off(model: nn.Module) -> Iterator[None]:
    """For the length of a block every quantised layer computes as its plain class does, forward and backward.

    Backward must happen inside the block, too, unless forward did not: what autograd recorded stays what it is.
    """
    switched = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            refuse_own_forward(name, module)
            switched.append((module, type(module)))
    for layer, _ in switched:
        layer.__class__ = exchanged(type(layer), layer.plain)
    try:
        yield
    finally:
        for layer, quantised in switched:
            layer.__class__ = quantised
