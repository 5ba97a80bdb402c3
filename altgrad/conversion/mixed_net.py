"""One model in which each cast is that of one of two policies, as asked, over the very parameters of the model.

A site is one operand that something casts: `<layer>/input`, `<layer>/weight`, attention's `<module>/key`, a norm's or
table's `<module>/weight`, what a module gives, `<module>/output`. It is of interest where the two policies differ.
Where they turn a layer's product or add it up in different ways, both its operands are one site, `<layer>/product`. If
they compute in different types, that is the site `compute`.

What each policy casts is read off the modules that it made, so whatever surgery decided is what is mixed. A module
gets its casts anew each time that it changes sides: they are some numbers, and the Parameters stay. Under `operands:
per_product` stochastic rounding has other random bits than in the policy's own modules, since sites name no product.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from altgrad.conversion.arms import PolicyArm, answers, net_of
from altgrad.nn.attention import CHILD as ATTENTION
from altgrad.nn.attention import QuantizedAttention
from altgrad.nn.attention_slots import AXES, AttentionSpec
from altgrad.nn.first_pass import end_proof
from altgrad.nn.linear import QuantizedLayer
from altgrad.nn.output_casts import CHILD as OUTPUTS
from altgrad.nn.output_casts import OutputsSpec, QuantizedOutputs, take_outputs_off
from altgrad.nn.slots import SLOTS, LayerPrecision
from altgrad.nn.surgery import install, uninstall
from altgrad.nn.target_surgery import install_target
from altgrad.nn.targets import Target
from altgrad.nn.weight_casts import QuantizedWeight, take_weight_cast_off

__all__ = ["COMPUTE", "GRAINS", "Grain", "MixedNet"]

COMPUTE = "compute"
Grain = Literal["cast", "layer", "block", "operand"]
GRAINS: tuple[Grain, ...] = ("cast", "layer", "block", "operand")
"""How sites are taken together: none, those of a layer, of a block, of an operand throughout the model."""
Sort = Literal["layer", "attention", "weight", "outputs"]
Casts = dict[str, Any]
"""By operand."""
_FORWARD = {operand for product, operand in AXES if product in ("scores", "output")}
_NUMBERED = re.compile(r"(.*?\.\d+)(?:[./]|$)")


@dataclass(frozen=True)
class _Thing:
    """A module with casts: those of training, and those of serving. frame: of a layer, what both do to its product."""

    name: str
    sort: Sort
    sides: tuple[Casts, Casts]
    frame: LayerPrecision | None = None

    @property
    def sites(self) -> dict[str, str]:
        """Where the sides differ: site and operand."""
        operands = dict.fromkeys([*self.sides[0], *self.sides[1]])
        return {f"{self.name}/{o}": o for o in operands if self.sides[0].get(o) != self.sides[1].get(o)}

    def chosen(self, served: Collection[str]) -> Casts:
        """The casts with serving's at these sites."""
        operands = dict.fromkeys([*self.sides[0], *self.sides[1]])
        return {o: self.sides[f"{self.name}/{o}" in served].get(o) for o in operands}


class MixedNet:
    """See the head of this file. sites: those where the policies differ, in module order. ValueError for a policy that
    does not fit the model."""

    def __init__(self, module: nn.Module, train: PolicyArm, serve: PolicyArm) -> None:
        self._net = net_of(module, serve if serve.policy is not None else train)
        end_proof(self._net)  # whoever serves has its own, and layers come and go here
        self._computes = train.compute, serve.compute
        found = [_casts_of(net_of(module, arm)) for arm in (train, serve)]
        order = {name: number for number, (name, _) in enumerate(self._net.named_modules())}
        keys = sorted({**found[0], **found[1]}, key=lambda key: order[key[0]])
        self._things = [_thing(*key, found[0].get(key), found[1].get(key)) for key in keys]
        self.sites = [site for thing in self._things for site in thing.sites]
        self.sites += [COMPUTE] if train.compute != serve.compute else []
        self._now: dict[tuple[str, Sort], Casts] = {}

    def groups(self, grain: Grain) -> dict[str, list[str]]:
        """The sites by what they are taken together as."""
        made: dict[str, list[str]] = {}
        for site in self.sites:
            made.setdefault(_group(site, grain), []).append(site)
        return made

    def answers(self, inputs: Tensor, served: Collection[str]) -> Tensor:
        """Logits with the casts of serving at these sites and those of training elsewhere."""
        for thing in self._things:
            casts, key = thing.chosen(served), (thing.name, thing.sort)
            if self._now.get(key) != casts:
                _set(self._net, thing, casts)
                self._now[key] = casts
        return answers(self._net, inputs, self._computes[COMPUTE in served])


def _group(site: str, grain: Grain) -> str:
    layer, _, operand = site.rpartition("/")
    if grain == "cast" or not layer:
        return site
    if grain == "operand":
        return operand
    numbered = _NUMBERED.match(layer)
    return layer if grain == "layer" or numbered is None else numbered[1]


def _casts_of(net: nn.Module) -> dict[tuple[str, Sort], Any]:
    """What surgery made of a model: a layer's precision, the specs of what is cast elsewhere."""
    return {(name, sort): what for name, module in net.named_modules() for sort, what in _casts_in(module)}


def _casts_in(module: nn.Module) -> Iterator[tuple[Sort, Any]]:
    if isinstance(module, QuantizedLayer):
        yield "layer", module.precision
    if isinstance(module, QuantizedWeight):
        yield "weight", {"weight": module.quantizer.spec}
    attention, outputs = (module._modules.get(child) for child in (ATTENTION, OUTPUTS))
    if isinstance(attention, QuantizedAttention):
        yield "attention", {o: spec for o, spec in attention.spec.chosen().items() if o in _FORWARD}
    if isinstance(outputs, QuantizedOutputs) and outputs.spec.forward is not None:
        yield "outputs", {"output": outputs.spec.forward}


def _thing(name: str, sort: Sort, train: Any, serve: Any) -> _Thing:
    if sort != "layer":
        return _Thing(name, sort, (train or {}, serve or {}))
    plain = LayerPrecision(dict.fromkeys(SLOTS))
    both = train or plain, serve or plain
    if both[0].transforms == both[1].transforms and both[0].accumulators == both[1].accumulators:
        made = [{"input": each.slots["forward", "input"], "weight": each.slots["forward", "weight"]} for each in both]
        return _Thing(name, sort, (made[0], made[1]), both[0])
    return _Thing(name, sort, ({"product": train}, {"product": serve}))


def _set(net: nn.Module, thing: _Thing, casts: Casts) -> None:
    """Give a module these casts in place of those that it has."""
    module: Any = net.get_submodule(thing.name)
    if thing.sort == "layer":
        precision = casts.get("product")
        if thing.frame is not None:
            slots = {slot: casts[slot[1]] if slot[0] == "forward" else None for slot in SLOTS}
            precision = LayerPrecision(slots, False, thing.frame.transforms, thing.frame.accumulators)
        if isinstance(module, QuantizedLayer):
            uninstall(module)
        if precision is not None and precision.casts():
            install(module, precision, thing.name, 0)
        return
    if thing.sort == "attention":
        module._modules.pop(ATTENTION, None)
    elif thing.sort == "outputs" and OUTPUTS in module._modules:
        take_outputs_off(module)
    elif thing.sort == "weight" and isinstance(module, QuantizedWeight):
        take_weight_cast_off(module)
    specs = {operand: spec for operand, spec in casts.items() if spec is not None}
    if specs:
        spec: Any = AttentionSpec(**specs) if thing.sort == "attention" else specs.get("weight")
        spec = OutputsSpec(forward=specs["output"]) if thing.sort == "outputs" else spec
        install_target(net, Target(thing.name, thing.sort, 0, spec), 0)
