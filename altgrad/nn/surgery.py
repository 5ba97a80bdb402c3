"""Quantising a model in place, and taking it back.

The very `nn.Linear` objects of the model become `QuantizedLinear` by change of class, and back: parameters, their
names, hooks, optimizers and references held elsewhere all stay what they were. (Building new modules would lose hooks
and every reference to the old ones.) Only plain `nn.Linear` is touched; a subclass may compute something else.
"""

from typing import cast

import torch
from torch import nn

from altgrad.nn.linear import QuantizedLinear
from altgrad.nn.policy import PrecisionPolicy
from altgrad.quantize import Quantizer


def quantize_model(model: nn.Module, policy: PrecisionPolicy, *, seed: int = 0) -> nn.Module:
    """Give every Linear that the policy decides its casts, in place; returns the model.

    seed keys the random bits of stochastic rounding. A Linear with all six slots empty is left alone. Everything is
    checked before anything is changed. Raises LocatedError for a rule that decides nothing, ValueError for a matched
    Linear that is a subclass, is quantised already, or cannot take its casts.
    """
    chosen = [(d.name, d.precision) for d in policy.decide(model) if d.precision is not None and d.precision.casts()]
    for name, precision in chosen:
        module = model.get_submodule(name)
        if type(module) is not nn.Linear:
            state = "is quantised already" if isinstance(module, QuantizedLinear) else f"is a {type(module).__name__}"
            raise ValueError(
                f"{name} {state}; only a plain nn.Linear can be quantised. Change the rule that matches it."
            )
        with torch.device("meta"):
            QuantizedLinear(module.in_features, module.out_features, precision=precision, site=name)
    for name, precision in chosen:
        linear = model.get_submodule(name)
        linear.__class__ = QuantizedLinear
        cast(QuantizedLinear, linear).attach(precision, name, seed)
    return model


def dequantize_model(model: nn.Module) -> nn.Module:
    """Make every QuantizedLinear a plain Linear on the same Parameters again, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            del module.casts, module.precision, module.slot_casts
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Every Quantizer of the model, in module order."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The cast of the forward weight, by parameter name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and ("forward", "weight") in module.slot_casts:
            found[f"{name}.weight" if name else "weight"] = module.slot_casts["forward", "weight"]
    return found


def commit(model: nn.Module) -> None:
    """Close an optimizer step for every Quantizer: call once after `optimizer.step()`."""
    for quantizer in quantizers(model):
        quantizer.commit()
