"""Quantising a model in place, and taking it back.

The very `nn.Linear` and transformers `Conv1D` objects of the model become quantised by change of class, and plain
again: parameters, their names, hooks, optimizers and references held elsewhere all stay what they were. (Building new
modules would lose hooks and every reference to the old ones.) Only these classes themselves are touched; a subclass
may compute something else. Torch's own wrappers around them stay, see `altgrad.nn.layers`. That each quantised layer's
forward runs is the business of `altgrad.nn.first_pass`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from altgrad.formats import NumberFormat
from altgrad.nn.experts import ExpertHolder
from altgrad.nn.first_pass import end_proof, fast_paths_back, fast_paths_off, prove_first_pass, refuse_parents
from altgrad.nn.layer_casts import make_casts, make_transforms
from altgrad.nn.layers import core_of, exchanged, is_layer, is_plain, refuse_own_forward
from altgrad.nn.library_experts import layer_at, layers_off
from altgrad.nn.linear import QuantizedLayer, quantized_class
from altgrad.nn.policy import Decision, PrecisionPolicy
from altgrad.nn.processes import Processes
from altgrad.nn.slots import LayerPrecision
from altgrad.nn.steps import committed, follow_steps
from altgrad.nn.target_surgery import check_target, install_target, take_targets_off
from altgrad.nn.weight_casts import QuantizedWeight
from altgrad.quantize import Quantizer, StackedCasts
from altgrad.quantize.counted import Counted
from altgrad.quantize.transform import Transform


def quantize_model(model: nn.Module, policy: PrecisionPolicy | Any, *, seed: int = 0) -> nn.Module:
    """Give every Linear (and Conv1D) that the policy decides its casts, in place; returns the model.

    policy: a PrecisionPolicy, a recipe or its name (`te_nvfp4`), or plain data that one can be made from. seed keys the
    random bits of stochastic rounding. A layer with all six slots empty is left alone. Everything is checked before
    anything is changed. Raises SpecError for data that is no policy, LocatedError for a rule that decides nothing and
    for two that contradict each other, ValueError for a matched layer that is a subclass, is quantised already, cannot
    take its casts or whose forward would not run, and for weights of experts in one 3-D tensor of an unknown module.
    Warns of matched matrices outside of layers. The first pass of the model is watched, see `altgrad.nn.first_pass`.
    """
    policy = PrecisionPolicy.made_from(policy)
    elsewhere = policy.targets(model)
    chosen = [d for d in policy.decide(model) if d.precision is not None and d.precision.casts()]
    left_out = policy.left_out(model)
    refuse_parents(model, [*(decision.name for decision in chosen), *left_out])
    for decision in chosen:
        _check(model, decision, seed)
    for target in elsewhere:
        check_target(model, target, seed)
    if left_out:
        some = ", ".join(f"{name} {list(shape)}" for name, shape in list(left_out.items())[:4])
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        warnings.warn(
            f"Not cast, although a rule matches: {some}{more}; only weights of Linear layers are cast. "
            "To confirm this, put a rule that matches them and casts nothing first.",
            stacklevel=2,
        )
    for decision in chosen:
        install(
            layer_at(model, decision.name, keep=True), cast(LayerPrecision, decision.precision), decision.name, seed
        )
    for target in elsewhere:
        install_target(model, target, seed)
    if chosen or any(target.sort == "attention" for target in elsewhere):
        fast_paths_off(model)
        prove_first_pass(model)
    follow_steps(model)
    return model


def _check(model: nn.Module, decision: Decision, seed: int) -> None:
    """ValueError for a layer that cannot be quantised as decided."""
    name = decision.name
    if decision.experts is not None:
        raise ValueError(
            f"{name} is 3-D {list(decision.experts)}, as the weights of experts are; only matrices are cast. "
            f"Put the rule {{match: {name}}}, which casts nothing, before the one that matches it, or split it into "
            "one Linear per expert."
        )
    module = layer_at(model, name)
    if not is_plain(module):
        state = "is quantised already" if isinstance(module, QuantizedLayer) else f"is a {type(module).__name__}"
        raise ValueError(
            f"{name} {state}; only a plain nn.Linear or Conv1D can be quantised. Change the rule that matches it."
        )
    refuse_own_forward(name, module)
    with parametrize.cached():
        _ = module.weight  # a parametrised weight is computed here, not on meta
        with torch.device("meta"):
            make_casts(module, cast(LayerPrecision, decision.precision), name, seed)
            make_transforms(module, cast(LayerPrecision, decision.precision), name, seed)


def install(layer: Any, precision: LayerPrecision, site: str, seed: int) -> None:
    """Turn a plain layer into the quantised one, in place."""
    core = core_of(type(layer))
    layer.__class__ = exchanged(type(layer), quantized_class(core))
    layer.attach(precision, site, seed)


def uninstall(layer: QuantizedLayer) -> None:
    """Undo `install`."""
    del layer.casts, layer.precision, layer.slot_casts, layer.transforms
    layer.__class__ = exchanged(type(layer), layer.plain)


def dequantize_model(model: nn.Module) -> nn.Module:
    """Make every quantised layer the plain one on the same Parameters again, in place; returns the model.

    Parametrisations and FSDP stay, whenever they were registered; so does what a fast path of torch needs.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    for name, module in found.items():
        refuse_own_forward(name, module)
    for module in found.values():
        uninstall(module)
    layers_off(model)
    take_targets_off(model)
    fast_paths_back(model)
    end_proof(model)
    return model


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Every Quantizer of the model, in module order, but for those that carry another's outliers."""
    return [module for module in model.modules() if isinstance(module, Quantizer) and not module.is_part]


def counted_sites(model: nn.Module) -> list[Counted]:
    """Whatever counts the passes and steps of the model, casts and transforms, in module order."""
    return [module for module in model.modules() if isinstance(module, Counted)]


def weight_names(model: nn.Module) -> dict[str, str]:
    """The first name of each layer's weight, by layer: a tied head's is that of the embedding.

    Weights that are no Parameters, as under a parametrisation, are left out.
    """
    first = {p: name for name, p in model.named_parameters()}
    layers = ((name, module) for name, module in model.named_modules() if is_layer(module))
    weights = ((name, dict(layer.named_parameters(recurse=False)).get("weight")) for name, layer in layers)
    return {name: first[weight] for name, weight in weights if weight is not None}


def weight_quantizers(model: nn.Module, *, outliers: bool = False) -> dict[str, Quantizer | StackedCasts]:
    """The cast of the forward weight, by parameter name; of several layers with one weight, the first one's.

    Those of norms and tables, too, whose weights are cast, unless a layer casts the same Parameter. None for weights
    that a transform turns before, or (but with `outliers`) of which outliers are carried apart: what they enter is no
    grid of the weight's own values. Of a stack of experts there are those of all, where they are alike.
    """

    def cast_of(layer: nn.Module) -> Quantizer | None:
        if not isinstance(layer, QuantizedLayer):
            return None
        wanted = layer.casts_weight_in_place or (outliers and "forward" not in layer.transforms)
        return layer.slot_casts.get(("forward", "weight")) if wanted else None

    found: dict[str, Quantizer | StackedCasts] = {}
    for name, parameter in weight_names(model).items():
        if (own := cast_of(model.get_submodule(name))) is not None:
            found.setdefault(parameter, own)
    for name, holder in model.named_modules():
        for parameter in holder.stacked if isinstance(holder, ExpertHolder) else ():
            layers = holder.expert_layers(parameter)
            casts = [each for layer in layers if (each := cast_of(layer)) is not None]
            if len(casts) == len(layers) and all(cast.spec == casts[0].spec for cast in casts):
                found[f"{name}.{parameter}" if name else parameter] = StackedCasts(casts)
    others = {module._parameters["weight"]: module for module in model.modules() if isinstance(module, QuantizedWeight)}
    for name, p in model.named_parameters():
        if p in others:
            found.setdefault(name, others[p].quantizer)
    return found


def change_formats(model: nn.Module, formats: Mapping[str, NumberFormat]) -> None:
    """Let casts of a quantised model, by site, enter other formats from now on, in place; see Quantizer.enter.

    Every slot that such a cast serves follows. ValueError for a site that the model does not have.
    """
    known = {quantizer.site: quantizer for quantizer in quantizers(model)}
    if unknown := sorted(formats.keys() - known.keys()):
        raise ValueError(f"{unknown[0]} is not a cast of this model; there are {', '.join(sorted(known)[:3])}, ...")
    for site, fmt in formats.items():
        known[site].enter(fmt)
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer):
            specs = {slot: quantizer.spec for slot, quantizer in layer.slot_casts.items()}
            layer.precision = replace(layer.precision, slots={**layer.precision.slots, **specs})


def commit(
    model: nn.Module, processes: Processes | None = None, *, sums: Sequence[Tensor] = (), maxima: Sequence[Tensor] = ()
) -> None:
    """Close an optimizer step for every Quantizer: call once after `optimizer.step()`.

    processes: who trains together, by default every process of torch.distributed's group, if there is one. Each of them
    calls it, and what their passes recorded becomes one by a single collective, in which `sums` and `maxima` go along,
    in place. Where only casts of a part of the group belong together, give `ALONE`.
    """
    sites = counted_sites(model)
    processes = Processes.present() if processes is None else processes
    if processes.size > 1:
        made = [site for site in sites if isinstance(site, Quantizer)]
        added = (tensor for quantizer in made for tensor in quantizer.sums())
        processes.join([*sums, *added], [*maxima, *(tensor for quantizer in made for tensor in quantizer.maxima())])
    for site in sites:
        if not site.is_part:
            site.commit()
    committed(sites)


def check_passes(model: nn.Module, passes: int) -> None:
    """ValueError if a quantizer's random bits are past this pass of the step, as of a layer that runs twice."""
    for site in counted_sites(model):
        if site.draws_each_pass and int(site.counter) & 0xFFFF > passes:
            turned = isinstance(site, Transform)
            drawn, instead = ("drawn signs", "signs: fixed") if turned else ("stochastic rounding", "another rounding")
            raise ValueError(
                f"{site.site} is {'turned' if turned else 'cast'} more than once a micro-batch, with {drawn}, whose "
                f"bits several processes cannot then share out; train on one process, or use {instead} there."
            )


def seek(model: nn.Module, micro_batch: int) -> None:
    """Have the random bits of the coming pass be those of this micro-batch of the step, whoever took those before."""
    for site in counted_sites(model):
        site.seek(micro_batch)
