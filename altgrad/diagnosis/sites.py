"""A model's casts exchanged for a while: left out, replaced, recorded, or held to the rounding errors they once made.

A quantised layer asks whatever stands in its slots for values; so a replay under other casts puts other things there
and takes them out again. Four kinds of question need no more than that:

    without a cast      nothing stands in the slot, and the operand passes as it is
    another format      a new Quantizer of another spec
    recorded            the Quantizer, and beside it the error Q(x) - x that it makes, kept for each micro-batch
    held                x plus the error of the record, whatever x is now

The last separates what one cast does from what its absence lets others do. Take one cast out of an 8-bit step, and
everything behind it rounds differently, by other halves of a gap: the loss moves as much by that lottery as by the cast
itself, and no attribution can predict it (docs/DIAGNOSE.md has the figures). With the others held, what is left is
the cast.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from altgrad.nn import QuantizedLayer
from altgrad.nn.accumulated import check_product
from altgrad.nn.layer_casts import make_casts
from altgrad.nn.slots import Operand, Product, reduced_axis
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.quantize.transform import Transform

Slot = tuple[Product, Operand]
Errors = dict[str, list[tuple[Tensor, Tensor | None]]]
"""By site, for each call: Q(x) - x, and the gradient's factor (None: 1 throughout)."""


def quantised_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantised layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def slots_by_site(model: nn.Module) -> dict[str, list[Slot]]:
    """Every site with the slots of its layer that it serves, in module order; the layer is the site up to its `/`.

    A slot that casts what forward's cast made of its operand is served by both.
    """
    found: dict[str, list[Slot]] = {}
    for layer in quantised_layers(model).values():
        for slot, quantizer in layer.slot_casts.items():
            found.setdefault(quantizer.site, []).append(slot)
            if quantizer.spec.source != "original":
                found[layer.slot_casts["forward", slot[1]].site].append(slot)
    return found


@contextmanager
def slots_as(
    model: nn.Module,
    chosen: Callable[[str, QuantizedLayer], Mapping[Slot, Any]],
    turning: Callable[[str, QuantizedLayer], Mapping[Product, Transform]] | None = None,
) -> Iterator[None]:
    """For the length of a block each quantised layer has these casts in its slots, and its products these transforms
    (their own, if none are said)."""
    layers = quantised_layers(model)
    kept = {name: (layer.slot_casts, layer.transforms) for name, layer in layers.items()}
    made = {name: dict(chosen(name, layer)) for name, layer in layers.items()}
    turns = {
        name: layer.transforms if turning is None else dict(turning(name, layer)) for name, layer in layers.items()
    }
    for name, layer in layers.items():
        layer.slot_casts, layer.transforms = made[name], turns[name]
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.slot_casts, layer.transforms = kept[name]


@contextmanager
def casts_as(model: nn.Module, chosen: Callable[[Quantizer], Any]) -> Iterator[None]:
    """For the length of a block each cast is what `chosen` makes of it, once; None leaves it out."""

    def of(_: str, layer: QuantizedLayer) -> dict[Slot, Any]:
        made = {quantizer: chosen(quantizer) for quantizer in layer.slot_casts.values()}
        return {slot: made[q] for slot, q in layer.slot_casts.items() if made[q] is not None}

    with slots_as(model, of):
        yield


@contextmanager
def specs_as(model: nn.Module, change: Callable[[QuantizerSpec], QuantizerSpec], *, seed: int = 0) -> Iterator[None]:
    """For the length of a block each cast has the changed spec, without a history.

    ValueError, naming the slot, for a spec that its layer cannot take.
    """

    def of(name: str, layer: QuantizedLayer) -> dict[Slot, Any]:
        slots = {slot: None if spec is None else change(spec) for slot, spec in layer.precision.slots.items()}
        precision = replace(layer.precision, slots=slots)
        made = make_casts(layer, precision, name, seed)
        return {slot: quantizer.train() for quantizer, served in made.values() for slot in served}

    with slots_as(model, of):
        yield


@contextmanager
def accumulator_as(model: nn.Module, how: AccumulatorSpec) -> Iterator[None]:
    """For the length of a block each product whose operands are both cast is added up in this.

    ValueError, naming the slot, for casts whose products it cannot add up, and where there is no such product.
    """
    layers, made = quantised_layers(model), {}
    for name, layer in layers.items():
        slots = layer.precision.slots
        uncast = {its for (its, _), spec in slots.items() if spec is None}
        products = [its for its in dict.fromkeys(its for its, _ in slots) if its not in uncast]
        for each in products:
            try:
                check_product(each, how, slots, layer.precision.casts().values(), reduced_axis)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        made[name] = replace(layer.precision, accumulators=dict.fromkeys(products, how))
    if not any(precision.accumulators for precision in made.values()):
        raise ValueError(f"accumulator: {how.text} adds up products of cast operands, and no product has two of these.")
    kept = {name: layer.precision for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.adopt(made[name])
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.adopt(kept[name])


class Recorded:
    """A Quantizer whose errors go into a record."""

    def __init__(self, quantizer: Quantizer, errors: Errors) -> None:
        self.spec, self.site = quantizer.spec, quantizer.site
        self._quantizer, self._errors = quantizer, errors.setdefault(quantizer.site, [])

    def values_and_factor(self, x: Tensor, live: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """As the Quantizer's."""
        values, factor = self._quantizer.values_and_factor(x, live, dtype)
        self._errors.append((values.detach() - x.detach(), factor))
        return values, factor


class Held:
    """x plus the error that the record has for this call."""

    def __init__(self, quantizer: Quantizer, errors: Errors) -> None:
        self.spec, self.site = quantizer.spec, quantizer.site
        self._left = iter(errors[quantizer.site])

    def values_and_factor(self, x: Tensor, live: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The values in dtype, and the factor of then."""
        error, factor = next(self._left)
        return (x.detach() + error).to(dtype), factor


def reformatted(fmt: Any) -> Callable[[QuantizerSpec], QuantizerSpec]:
    """The change of a spec to another format; SpecError where the spec does not go with it."""
    return lambda spec: QuantizerSpec.made_from(cast(Any, spec.tree() | {"format": str(fmt)}))


def rerounded(rounding: str) -> Callable[[QuantizerSpec], QuantizerSpec]:
    """The change of a spec to another rounding."""
    own = ("rounding", "random_bits", "average_decay")  # choices of a rounding

    def change(spec: QuantizerSpec) -> QuantizerSpec:
        kept = {name: value for name, value in spec.tree().items() if name not in own}
        return QuantizerSpec.made_from(cast(Any, kept | {"rounding": rounding}))

    return change


@contextmanager
def operands_shown(layers: Mapping[str, nn.Module], show: Callable[[str, Operand, Tensor], None]) -> Iterator[None]:
    """For the length of a block each layer shows its inputs and the gradients of its outputs, by its name."""

    def hook(name: str) -> Any:
        def seen(_: nn.Module, inputs: Any, output: Any) -> None:
            show(name, "input", inputs[0].detach())
            if output.requires_grad:
                output.register_hook(lambda gradient: show(name, "grad_output", gradient.detach()))

        return seen

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
