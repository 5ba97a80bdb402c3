"""Quantising a model in place, and taking it back.

The very `nn.Linear` and transformers `Conv1D` objects of the model become quantised by change of class, and plain
again: parameters, their names, hooks, optimizers and references held elsewhere all stay what they were. (Building new
modules would lose hooks and every reference to the old ones.) Only these classes themselves are touched; a subclass
may compute something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from altgrad.formats import FloatFormat
from altgrad.nn.layout import is_plain
from altgrad.nn.linear import QuantizedLayer, make_casts, quantized_class
from altgrad.nn.policy import PrecisionPolicy
from altgrad.nn.ranks import ALONE, Ranks
from altgrad.nn.steps import committed, follow
from altgrad.quantize import Quantizer, Rounding


def quantize_model(model: nn.Module, policy: PrecisionPolicy | Any, *, seed: int = 0) -> nn.Module:
    """Give every Linear (and Conv1D) that the policy decides its casts, in place; returns the model.

    policy: a PrecisionPolicy, or plain data that one can be made from. seed keys the random bits of stochastic
    rounding. A layer with all six slots empty is left alone. Everything is checked before anything is changed. Raises
    SpecError for data that is no policy, LocatedError for a rule that decides nothing, ValueError for a matched layer
    that is a subclass, is quantised already, or cannot take its casts, and for weights of experts in one 3-D tensor.
    """
    policy = PrecisionPolicy.made_from(policy)
    chosen = [d for d in policy.decide(model) if d.precision is not None and d.precision.casts()]
    for decision in chosen:
        if decision.experts is not None:
            raise ValueError(
                f"{decision.name} is 3-D {list(decision.experts)}, as the weights of experts are; "
                f"only matrices are cast. Put the rule {{match: {decision.name}}}, which casts nothing, before the one "
                "that matches it, or split it into one Linear per expert."
            )
        module = model.get_submodule(decision.name)
        if not is_plain(module):
            state = "is quantised already" if isinstance(module, QuantizedLayer) else f"is a {type(module).__name__}"
            raise ValueError(
                f"{decision.name} {state}; only a plain nn.Linear or Conv1D can be quantised. "
                "Change the rule that matches it."
            )
        with torch.device("meta"):
            make_casts(module, cast(Any, decision.precision), decision.name, seed)
    for decision in chosen:
        layer: Any = model.get_submodule(decision.name)
        layer.__class__ = quantized_class(type(layer))
        layer.attach(decision.precision, decision.name, seed)
    follow(model)
    return model


def dequantize_model(model: nn.Module) -> nn.Module:
    """Make every quantised layer the plain one on the same Parameters again, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            del module.casts, module.precision, module.slot_casts
            module.__class__ = module.plain  # type: ignore[assignment]
    return model


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Every Quantizer of the model, in module order."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The cast of the forward weight, by parameter name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and ("forward", "weight") in module.slot_casts:
            found[f"{name}.weight" if name else "weight"] = module.slot_casts["forward", "weight"]
    return found


def change_formats(model: nn.Module, formats: Mapping[str, FloatFormat]) -> None:
    """Let casts of a quantised model, by site, enter other formats from now on, in place; see Quantizer.enter.

    Every slot that such a cast serves follows. ValueError for a site that the model does not have.
    """
    known = {quantizer.site: quantizer for quantizer in quantizers(model)}
    if unknown := sorted(formats.keys() - known.keys()):
        raise ValueError(f"{unknown[0]} is no cast of this model; there are {', '.join(sorted(known)[:3])}, ...")
    for site, fmt in formats.items():
        known[site].enter(fmt)
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer):
            specs = {slot: quantizer.spec for slot, quantizer in layer.slot_casts.items()}
            layer.precision = replace(layer.precision, slots={**layer.precision.slots, **specs})


def commit(
    model: nn.Module, ranks: Ranks = ALONE, *, sums: Sequence[Tensor] = (), maxima: Sequence[Tensor] = ()
) -> None:
    """Close an optimizer step for every Quantizer: call once after `optimizer.step()`.

    With several ranks, each of them calls it, and what their passes recorded becomes one by a single collective, in
    which `sums` and `maxima` go along, in place.
    """
    made = quantizers(model)
    if ranks.size > 1:
        ranks.join(sums, [*maxima, *(amax for quantizer in made for amax in quantizer.scaling.recorded())])
    for quantizer in made:
        quantizer.commit()
    committed(made)


def check_passes(model: nn.Module, passes: int) -> None:
    """ValueError if a quantizer's random bits are not at this pass of the step, as of a layer that runs twice."""
    for quantizer in quantizers(model):
        if quantizer.spec.rounding is Rounding.stochastic and int(quantizer.counter) & 0xFFFF != passes:
            raise ValueError(
                f"{quantizer.site} is cast more than once a micro-batch, with stochastic rounding, whose bits several "
                "ranks cannot then share out; train on one rank, or use another rounding there."
            )


def seek(model: nn.Module, micro_batch: int) -> None:
    """Have the random bits of the coming pass be those of this micro-batch of the step, whoever took those before."""
    for quantizer in quantizers(model):
        quantizer.seek(micro_batch)
