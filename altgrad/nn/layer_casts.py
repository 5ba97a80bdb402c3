"""The casts and transforms that a layer gets: one for each slot that has its own, with what its shape says.

A cast sees its operand as that lies, and is told which axis its products sum over, how many slices there are along it,
and how long the runs are that the product's transform turns. A mistake of the shape is named by its slot.
"""

from typing import cast

from torch import Tensor, nn

from altgrad.nn.layers import features_of, is_turned
from altgrad.nn.outlier_columns import give_partner
from altgrad.nn.slots import LayerPrecision, Operand, Product, reduced_axis
from altgrad.quantize import Quantizer
from altgrad.quantize.counted import Role
from altgrad.quantize.parts import Axis
from altgrad.quantize.transform import Transform

Slot = tuple[Product, Operand]
Made = tuple[Quantizer, list[Slot]]
"""A cast, and the slots that it serves."""


def make_casts(layer: nn.Module, precision: LayerPrecision, site: str, seed: int) -> dict[str, Made]:
    """The casts that a layer of `altgrad.nn.layers` gets under this precision, by name, with the slots each serves.

    Raises ValueError naming the slot at fault.
    """
    made: dict[str, Made] = {}
    for name, (spec, slots) in precision.casts().items():
        operand, axis = slots[0][1], axis_of(layer, slots)
        try:
            quantizer = Quantizer(
                spec, f"{site}/{name}" if site else name, cast(Role, operand), seed=seed, reduced=axis,
                rows=_rows(layer, operand, axis), run=_run(precision, slots),
                shape=tuple(cast(Tensor, layer.weight).shape), features=features_of(layer, operand),
                leader=next((q for q, served in made.values() if ("forward", "input") in served), None),
            )  # fmt: skip
            give_partner(quantizer, layer, site, seed)
        except ValueError as error:
            raise ValueError(f"{site}, {name}: {error}") from None
        made[name] = quantizer, slots
    return made


def make_transforms(layer: nn.Module, precision: LayerPrecision, site: str, seed: int) -> dict[Product, Transform]:
    """The transforms that a layer gets under this precision, by product. ValueError for one that its shape refuses."""
    made = {}
    for product, spec in precision.transforms.items():
        made[product] = transform = spec.build(f"{site}/{product}" if site else product, seed)
        outputs, inputs = cast(Tensor, layer.weight).shape[:: -1 if is_turned(layer) else 1]
        if product != "grad_weight":  # which sums over tokens, whose number varies
            transform.check(inputs if product == "forward" else outputs)
    return made


def _run(precision: LayerPrecision, slots: list[Slot]) -> int | None:
    """Elements of a run that the product's transform turns."""
    transform = precision.transforms.get(slots[0][0])
    return None if transform is None else transform.size


def axis_of(layer: nn.Module, slots: list[Slot]) -> Axis:
    """The axis of an operand, as it lies, that its products sum over."""
    axis = reduced_axis(slots)
    if slots[0][1] == "weight" and is_turned(layer):
        return "first" if axis == "last" else "last"
    return axis


def _rows(layer: nn.Module, operand: Operand, axis: Axis) -> int | None:
    """How many slices an operand has along its reduced axis; None for tokens, whose number varies."""
    shape = cast(Tensor, layer.weight).shape
    features = {"input": shape[not is_turned(layer)], "grad_output": shape[is_turned(layer)]}
    return shape[axis == "first"] if operand == "weight" else features[operand] if axis == "first" else None
