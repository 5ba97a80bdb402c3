"""Running a model again without a trace: as it trains, or as the plain model that it quantises.

    unrecorded    casts are made, but no pass counts: no amax is noted, no random bits are used up, nobody watches
    casts_off     every quantised layer is for the time the plain layer of its class, on the same Parameters

A replay happens in the middle of a step, between backward and the update, so it must leave every buffer of the model as
it was, also those that are not ours (the running statistics of a BatchNorm): `unrecorded` puts them back. For the plain
layer the class is exchanged, as in surgery, and not a flag asked in forward: so what runs *is* nn.Linear, bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from altgrad.nn.linear import QuantizedLayer
from altgrad.quantize import Quantizer


@contextmanager
def unrecorded(model: nn.Module) -> Iterator[None]:
    """For the length of a block no pass counts as training, whatever mode the model is in; buffers come back."""
    switched: list[QuantizedLayer | Quantizer] = [
        module for module in model.modules() if isinstance(module, QuantizedLayer | Quantizer) and module.recording
    ]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module in switched:
        module.recording = False
    try:
        yield
    finally:
        for module in switched:
            del module.recording  # the class says True
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def casts_off(model: nn.Module) -> Iterator[None]:
    """For the length of a block every quantised layer computes as its plain class does, forward and backward.

    Backward must happen inside the block, too, unless forward did not: what autograd recorded stays what it is.
    """
    switched = [(module, type(module)) for module in model.modules() if isinstance(module, QuantizedLayer)]
    for layer, _ in switched:
        layer.__class__ = layer.plain  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, quantised in switched:
            layer.__class__ = quantised
