"""Putting casts where they belong besides layers, and taking them off again; see `altgrad.nn.targets`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from altgrad.nn import output_casts, weight_casts
from altgrad.nn.attention import QuantizedAttention
from altgrad.nn.attention_reach import check_reach, leave, reach
from altgrad.nn.attention_slots import AttentionSpec
from altgrad.nn.layers import exchanged
from altgrad.nn.output_casts import OutputsSpec, QuantizedOutputs
from altgrad.nn.targets import Target
from altgrad.nn.weight_casts import QuantizedWeight


def check_target(model: nn.Module, target: Target, seed: int) -> None:
    """ValueError for a module that cannot have the casts decided for it."""
    module = model.get_submodule(target.name)
    if isinstance(target.spec, AttentionSpec):
        check_reach(model, target.name)
    with torch.device("meta"):
        if isinstance(target.spec, AttentionSpec):
            QuantizedAttention(target.spec, target.name, seed)
        elif isinstance(target.spec, OutputsSpec):
            output_casts.check_outputs(module, target.spec, target.name, seed)
        else:
            weight_casts.weight_cast(module, target.spec, target.name, seed)


def install_target(model: nn.Module, target: Target, seed: int) -> None:
    """Give a module its casts, in place."""
    module = model.get_submodule(target.name)
    if isinstance(target.spec, AttentionSpec):
        reach(model, target.name, target.spec, seed)
    elif isinstance(target.spec, OutputsSpec):
        output_casts.install_outputs(module, output_casts.check_outputs(module, target.spec, target.name, seed))
    else:
        weight_casts.install_weight_cast(module, weight_casts.weight_cast(module, target.spec, target.name, seed))


def take_targets_off(model: nn.Module) -> None:
    """Undo `install_target` everywhere."""
    leave(model)
    for module in list(model.modules()):
        if isinstance(module._modules.get(output_casts.CHILD), QuantizedOutputs):
            output_casts.take_outputs_off(module)
        if isinstance(module, QuantizedWeight):
            weight_casts.take_weight_cast_off(module)


@contextmanager
def targets_off(model: nn.Module) -> Iterator[None]:
    """For the length of a block nothing is cast besides operands of layers."""
    inner = [module for module in model.modules() if isinstance(module, QuantizedAttention | QuantizedOutputs)]
    weights = [(module, type(module)) for module in model.modules() if isinstance(module, QuantizedWeight)]
    for each in inner:
        each.off = True
    for module, _ in weights:
        module.__class__ = exchanged(type(module), module.plain)
    try:
        yield
    finally:
        for each in inner:
            del each.off  # the class says False
        for module, quantised in weights:
            module.__class__ = quantised
