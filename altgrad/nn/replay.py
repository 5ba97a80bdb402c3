"""Running a model again without a trace: as it trains, or as the plain model that it quantises.

    unrecorded    casts are made with the random bits of the step's passes, from the first on, but no pass counts: no
                  amax is noted, no random bits are used up, nobody watches
    observed      passes count, so that each cast can be looked at, and every buffer comes back
    compared      every product of a quantised layer is shown beside the one that its uncast operands make
    casts_off     every quantised layer is for the time the plain layer of its class, on the same Parameters; nothing
                  else is cast either

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

from altgrad.nn.attention import QuantizedAttention
from altgrad.nn.layers import exchanged, is_turned, refuse_own_forward
from altgrad.nn.linear import QuantizedLayer
from altgrad.nn.products import as_matrix, linear, matmul
from altgrad.nn.slots import Product
from altgrad.nn.target_surgery import targets_off
from altgrad.quantize import Cast, Quantizer
from altgrad.quantize.counted import Counted

Shown = Callable[[str, Product, Tensor, Tensor], None]
"""A layer's name, the product, what its cast operands made of it, and what the uncast ones make, in float32."""


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
    switched: list[QuantizedLayer | QuantizedAttention | Counted] = [
        module
        for module in model.modules()
        if isinstance(module, QuantizedLayer | QuantizedAttention | Counted) and module.recording
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
    """For the length of a block every quantised layer computes as its plain class does, forward and backward, and so do
    attention, norms, tables and outputs.

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
        with targets_off(model):
            yield
    finally:
        for layer, quantised in switched:
            layer.__class__ = quantised


@contextmanager
def compared(model: nn.Module, show: Shown) -> Iterator[None]:
    """For the length of a block every product that a quantised layer makes, forward and backward, is shown.

    Both are made of the same input, weight and gradient, those that arrive there: an error made further up is in both.
    Draws the random bits of the step's passes, from the first one on. For use inside `unrecorded`.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    for name, layer in layers.items():
        refuse_own_forward(name, layer)
    _rewind(model)
    for name, layer in layers.items():
        vars(layer)["forward"] = _comparing(name, layer, show)
    try:
        yield
    finally:
        for layer in layers.values():
            del vars(layer)["forward"]
        _rewind(model)


def _comparing(name: str, layer: QuantizedLayer, show: Shown) -> Callable[[Tensor], Tensor]:
    """The layer's forward, which shows its products.

    Input and weight pass through views, so that the gradients of these are the layer's own, and not also those of
    whoever else uses them. What backward needs is copied, since nothing keeps a caller from changing its input in
    place: a quantised layer keeps casts of it alone.
    """

    def forward(input: Tensor) -> Tensor:
        seen = as_matrix(input.detach()).float().clone()
        weight, bias = layer.weight, cast(Tensor | None, layer.bias)
        own, arrived = weight.view_as(weight), input.view_as(input)
        y = layer.products(arrived, own, bias)
        plain = weight.detach().float()
        plain = plain.mT if is_turned(layer) else plain
        exact = linear(seen, plain, None if bias is None else bias.detach().float(), torch.float32)
        show(name, "forward", as_matrix(y.detach()), exact)
        gradient: list[Tensor] = []

        def grad_input(dx: Tensor) -> None:
            show(name, "grad_input", as_matrix(dx), matmul(gradient[-1], plain, torch.float32))

        def grad_weight(dw: Tensor) -> None:
            made = dw.mT if is_turned(layer) else dw
            show(name, "grad_weight", made, matmul(gradient[-1].T, seen, torch.float32))

        if y.requires_grad:
            cast(Any, y).register_hook(lambda g: gradient.append(as_matrix(g.detach()).float()))
        for operand, hook in ((arrived, grad_input), (own, grad_weight)):
            if operand.requires_grad:
                cast(Any, operand).register_hook(hook)
        return y

    return forward


def _rewind(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Counted):
            module.rewind()
