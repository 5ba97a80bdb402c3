"""What enters each layer's casts, as histograms: weights of a model, and with data its inputs and gradients as well.

Of a file one tensor is in memory at a time, and of a model in training no tensor is kept at all: hooks count what
passes. The step is run with all casts off, so what is counted is what each cast would be given, not what the casts
before it have left of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from altgrad.diagnosis.sites import operands_shown
from altgrad.measures.value_histogram import ValueHistogram
from altgrad.nn import casts_off, fresh_gradients, unrecorded
from altgrad.nn.layers import HEADS, is_layer
from altgrad.nn.names import matches
from altgrad.nn.slots import Operand
from altgrad.progress import progress
from altgrad.training.restore import Restored
from altgrad.training.weights import StoredTensor


@dataclass
class LayerSample:
    """The values of one layer's operands, by name."""

    layer: str
    operands: dict[Operand, ValueHistogram] = field(default_factory=dict)

    def add(self, operand: Operand, x: Tensor) -> None:
        """Count the elements of x as that operand's."""
        self.operands.setdefault(operand, ValueHistogram()).add(x)


def stored_samples(layers: Iterable[tuple[str, StoredTensor]]) -> list[LayerSample]:
    """The weights of (layer, tensor) pairs of a file, read one by one."""
    found = []
    for name, tensor in layers:
        sample = LayerSample(name)
        sample.add("weight", tensor.load())
        found.append(sample)
    return found


def trained_samples(restored: Restored, *, data: bool = True) -> list[LayerSample]:
    """The weights of a run's layers, heads left out, and with `data` what one step sends through them."""
    layers = linear_layers(restored.model)
    found = {name: LayerSample(name) for name in layers}
    for name, layer in layers.items():
        found[name].add("weight", layer.weight.detach())
    if data:
        progress("taking a step to see activations and gradients")
        model = restored.model

        def count(name: str, operand: Operand, x: Tensor) -> None:
            found[name].add(operand, x)

        with unrecorded(model), casts_off(model), operands_shown(layers, count):
            fresh_gradients(model, lambda: map(restored.micro_batches.scaled, restored.losses(model)))
    return list(found.values())


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """The model's Linear and Conv1D layers by name, output heads left out unless a rule quantises them."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_layer(module) and (hasattr(module, "slot_casts") or not matches_head(name))
    }


def matches_head(name: str) -> bool:
    """Whether a module's name is that of an output head."""
    return any(matches(pattern, [name]) for pattern in HEADS)
