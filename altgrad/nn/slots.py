"""The six slots of a layer, and what is in them.

A Linear layer has three products, and each has two operands, so there are six *slots*:

    forward      y  = input @ weight.T          slots input, weight
    grad_input   dx = grad_output @ weight      slots grad_output, weight
    grad_weight  dW = grad_output.T @ input     slots grad_output, input
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import PlainValidator

from altgrad.quantize import QuantizerSpec
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.quantize.gradient import Dge
from altgrad.quantize.parts import Axis
from altgrad.quantize.transform import TransformSpec

Product = Literal["forward", "grad_input", "grad_weight"]
Operand = Literal["input", "weight", "grad_output"]

PRODUCTS: tuple[Product, ...] = ("forward", "grad_input", "grad_weight")
SLOTS: tuple[tuple[Product, Operand], ...] = (
    ("forward", "input"), ("forward", "weight"),
    ("grad_input", "grad_output"), ("grad_input", "weight"),
    ("grad_weight", "grad_output"), ("grad_weight", "input"),
)  # fmt: skip


def to_cast(value: Any) -> QuantizerSpec | None:
    """What a spec says for a slot: a cast, or `none`."""
    return None if value in (None, "none") else QuantizerSpec.model_validate(value)


CastSpec = Annotated[QuantizerSpec | None, PlainValidator(to_cast)]


@dataclass(frozen=True)
class LayerPrecision:
    """What happens in each of a layer's six slots (None: not cast)."""

    slots: Mapping[tuple[Product, Operand], QuantizerSpec | None]
    per_product: bool = False
    """Whether each slot is cast for itself, even where both slots of an operand say the same."""
    transforms: Mapping[Product, TransformSpec] = field(default_factory=dict)
    """What turns the operands of a product before they are cast, where something does."""
    accumulators: Mapping[Product, AccumulatorSpec] = field(default_factory=dict)
    """What adds up the terms of a product, where it is not float32."""

    def casts(self) -> dict[str, tuple[QuantizerSpec, list[tuple[Product, Operand]]]]:
        """The casts a layer needs: name -> (spec, slots served). Equal slots of an operand share one cast.

        A shared cast is named after its operand (`weight`), one that serves a single differing slot after both
        (`weight.grad_input`). Two products sum over different axes of an operand, so what a transform turns is shared
        by none; without one, shared operands are cast along one axis for both.
        """
        found: dict[str, tuple[QuantizerSpec, list[tuple[Product, Operand]]]] = {}
        for slot, spec in self.slots.items():
            if spec is None:
                continue
            product, operand = slot
            shared = not self.per_product and all(
                other is None or (other == spec and not {product, its} & self.transforms.keys())
                for (its, name), other in self.slots.items()
                if name == operand
            )
            name = operand if shared else f"{operand}.{product}"
            found.setdefault(name, (spec, []))[1].append(slot)
        return found

    def text(self, slot: tuple[Product, Operand]) -> str:
        """A slot in a few characters, with what turns its product and adds it up."""
        return slot_text(self.slots.get(slot), self.transforms.get(slot[0]), self.accumulators.get(slot[0]))


def reduced_axis(slots: Iterable[tuple[Product, Operand]]) -> Axis:
    """The axis of an operand that its products sum over: channels and blocks lie along it. `last` if they differ.

    forward sums over in_features, the last axis of input and weight; grad_input over out_features, the last of
    grad_output and the first of weight; grad_weight over tokens, the first of both.
    """
    axes: set[Axis] = {
        "first" if product == "grad_weight" or (product == "grad_input" and operand == "weight") else "last"
        for product, operand in slots
    }
    return axes.pop() if len(axes) == 1 else "last"


def slot_text(
    spec: QuantizerSpec | None, transform: TransformSpec | None = None, accumulator: AccumulatorSpec | None = None
) -> str:
    """A slot in a few characters, for tables: `e4m3fn delayed`; `-` if not cast."""
    if spec is None:
        return "-"
    parts = [spec.format.short_name]
    parts += [] if spec.rounding == "nearest_even" else [str(spec.rounding)]
    parts += [f"(decay {spec.average_decay})"] if spec.rounding == "toward_average" else []
    scaling = spec.scaling.tree()
    detail = scaling.get("size") or scaling.get("value")
    detail = "channel" if scaling.get("granularity") == "channel" else detail
    parts.append(f"{spec.scaling.kind}/{detail}" if detail else spec.scaling.kind)
    chosen = [f"{name} {value}" for name, value in spec.scaling.chosen.items()]
    parts += [f"({', '.join(chosen)})"] if chosen else []
    parts += [] if transform is None else [transform.text]
    parts += [] if spec.correction == "none" else [spec.correction]
    parts += [f"dge k {spec.gradient.k} clamp {spec.gradient.clamp:g}"] if isinstance(spec.gradient, Dge) else []
    parts += [] if spec.source == "original" else [f"of {spec.source}"]
    parts += [] if spec.outliers is None else [f"+ {spec.outliers.text}"]
    parts += [] if accumulator is None else [f"added in {accumulator.text}"]
    return " ".join(parts)
