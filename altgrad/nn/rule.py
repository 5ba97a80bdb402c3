"""A rule: which layers it means, by name or by place, and what happens in their six slots (`altgrad.nn.slots`).

A rule's short names `weight`, `input`, `grad_output` fill both slots of an operand; a slot named under its product
overrides that. `none` leaves an operand uncast.

A product can have a `transform`, which turns both its operands along the axis that it sums over before they are cast
(`altgrad.quantize.transform`). A slot of the backward pass casts the operand as it came (`source: original`), what
forward's cast made of it (`forward`), or, where forward turns it, that in the turned domain (`forward_rotated`): the
product's result is then turned back. Its `accumulator` says what its terms are added up in. Two slots of an operand
share a cast where spec, transform, source and axis agree.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator

from altgrad.nn.accumulated import check_product
from altgrad.nn.attention_slots import AttentionSpec
from altgrad.nn.outlier_columns import check_columns
from altgrad.nn.output_casts import OutputsSpec
from altgrad.nn.places import RulePlace
from altgrad.nn.slots import PRODUCTS, SLOTS, CastSpec, LayerPrecision, Operand, Product, reduced_axis, to_cast
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.quantize.transform import TransformSpec
from altgrad.spec import Since, Spec


def _to_slot(value: Any) -> "QuantizerSpec | str | None":
    return value if isinstance(value, str) and value == "same" else to_cast(value)


SlotSpec = Annotated[QuantizerSpec | str | None, PlainValidator(_to_slot)]
"""A cast, `none`, or `same`: what the rule says for this operand in general."""


def _to_transform(value: Any) -> TransformSpec | None:
    return None if value in (None, "none") else TransformSpec.of(value)


_TURNED = Field(
    description="What both operands are multiplied with before their casts, along the axis they are summed over."
)
Turning = Annotated[TransformSpec | None, PlainValidator(_to_transform), Since(2), _TURNED]
_ADDED = Field(description="What the product's terms are added up in; null: float32.")
Accumulating = Annotated[AccumulatorSpec | None, PlainValidator(AccumulatorSpec.unless_float32), Since(2), _ADDED]


class Overrides(Spec):
    """What a rule says of one product; `none` casts neither of its operands."""

    @model_validator(mode="before")
    @classmethod
    def _from_none(cls, value: Any) -> Any:
        if value not in (None, "none"):
            return value
        return {name: "none" for name in cls.model_fields if name != "transform"}


class ForwardSlots(Overrides):
    """Overrides for y = input @ weight.T, and what turns both operands along in_features."""

    input: SlotSpec = "same"
    """The layer's input in this product: `same` as the rule says, `none`, or a cast of its own."""
    weight: SlotSpec = "same"
    """The weight in this product: `same` as the rule says, `none`, or a cast of its own."""
    transform: Turning = None
    accumulator: Accumulating = None


class GradInputSlots(Overrides):
    """Overrides for dx = grad_output @ weight, and what turns both operands along out_features."""

    grad_output: SlotSpec = "same"
    """The gradient of the output in this product: `same` as the rule says, `none`, or a cast of its own."""
    weight: SlotSpec = "same"
    """The weight in this product: `same` as the rule says, `none`, or a cast of its own."""
    transform: Turning = None
    accumulator: Accumulating = None


class GradWeightSlots(Overrides):
    """Overrides for dW = grad_output.T @ input, and what turns both operands along the tokens."""

    grad_output: SlotSpec = "same"
    """The gradient of the output in this product: `same` as the rule says, `none`, or a cast of its own."""
    input: SlotSpec = "same"
    """The layer's input in this product: `same` as the rule says, `none`, or a cast of its own."""
    transform: Turning = None
    accumulator: Accumulating = None


class Rule(Spec):
    """One line of a policy: the Linears whose name matches, or those of a place, and what happens in them."""

    match: Annotated[str, Field(min_length=1)] = "blocks.*"
    """A pattern of layer names, such as blocks.* or blocks.last.mlp.*."""
    place: Annotated[str | None, Since(2)] = None
    """Instead of match: a part that every model has, such as body or body.last(15%) (`altgrad.nn.places`)."""
    weight: CastSpec = None
    """The cast of the weight wherever it is multiplied; none: not cast."""
    input: CastSpec = None
    """The cast of the layer's input in both products that it enters; none: not cast."""
    grad_output: CastSpec = None
    """The cast of the output's gradient in both backward products; none: not cast."""
    forward: ForwardSlots = ForwardSlots()
    """What is different in the forward product, y = x W^T."""
    grad_input: GradInputSlots = GradInputSlots()
    """What is different in the product of the input's gradient, dx = g W."""
    grad_weight: GradWeightSlots = GradWeightSlots()
    """What is different in the product of the weight's gradient, dW = g^T x."""
    operands: Literal["shared", "per_product"] = "shared"
    """shared: one cast of an operand serves both its products. per_product: each casts it along its reduced axis."""
    attention: Annotated[AttentionSpec | None, Since(2)] = None
    """Casts inside the attention of modules that it finds (`altgrad.nn.attention`)."""
    outputs: Annotated[OutputsSpec | None, Since(2)] = None
    """Casts of what modules that it finds by name give (`altgrad.nn.output_casts`)."""

    noun: ClassVar[str] = "a precision rule"

    @model_validator(mode="before")
    @classmethod
    def _by_one(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("place") is not None and "match" in value:
            raise ValueError("a rule has match or place, and this one has both; leave out one of them.")
        return value

    @field_validator("place")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None:
            RulePlace.parse(value)
        return value

    @model_validator(mode="after")
    def _of_its_place(self) -> "Rule":
        if self.place is not None and self.outputs is not None:
            raise ValueError("outputs are those of modules by name; give the rule match instead of place.")
        if self.place in ("norms", "embeddings") and self.attention is not None:
            raise ValueError(f"place {self.place} holds no attention; use place: attention.")
        others = [name for (_, name), spec in self.layer().slots.items() if spec is not None and name != "weight"]
        if self.place == "norms" and others:
            raise ValueError(f"place norms has weights alone, and {others[0]} is none; leave it out.")
        return self

    @model_validator(mode="after")
    def _nothing_behind_gradients(self) -> "Rule":
        for (product, operand), spec in self.layer().slots.items():
            if spec is None:
                continue
            if operand == "grad_output" and spec.gradient.kind != "identity":
                raise ValueError(
                    f"gradient: {spec.gradient.kind} has no meaning for {product}.grad_output, behind which no "
                    "gradient flows."
                )
            if operand != "weight" and spec.rounding == "toward_average":
                raise ValueError(
                    f"rounding: toward_average goes by the average of a weight, and {product}.{operand} is none; use "
                    "nearest_even there."
                )
        return self

    @model_validator(mode="after")
    def _products_agree(self) -> "Rule":
        layer = self.layer()
        for product in layer.transforms:
            uncast = [name for (its, name), spec in layer.slots.items() if its == product and spec is None]
            if uncast:
                raise ValueError(
                    f"{product}.transform turns both operands, and {product}.{uncast[0]} is not cast; cast it, or "
                    f"leave out {product}.transform."
                )
        for product, how in layer.accumulators.items():
            check_product(product, how, layer.slots, layer.casts().values(), reduced_axis)
        for (product, operand), spec in layer.slots.items():
            if spec is not None:
                _check_source(layer, product, operand, spec)
                check_columns(layer.slots, layer.transforms, (product, operand))
        return self

    @property
    def casts_elsewhere(self) -> bool:
        """Whether it may cast something besides operands of layers."""
        at_rest = self.place in ("norms", "embeddings") and self.weight is not None
        return self.attention is not None or self.outputs is not None or at_rest

    def elsewhere(self) -> "Rule | None":
        """The rule without what it casts of layers; None if nothing is left of it."""
        if not self.casts_elsewhere or (self.attention is None and self.outputs is None):
            return self if self.casts_elsewhere else None
        of_layers = ("weight", "input", "grad_output", *PRODUCTS, "operands")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in of_layers})

    @property
    def casts_nothing(self) -> bool:
        """Whether it leaves what it finds as it is."""
        return not (self.casts_elsewhere or self.layer().casts())

    @property
    def decides_layers(self) -> bool:
        """Whether it says something of layers, be it that they are left as they are."""
        return self.casts_nothing or bool(self.layer().casts())

    def tree(self) -> dict[str, Any]:
        """A rule that goes by a place has no match."""
        found = super().tree()
        return found if self.place is None else {key: value for key, value in found.items() if key != "match"}

    def layer(self) -> LayerPrecision:
        """The six slots, resolved."""
        slots: dict[tuple[Product, Operand], QuantizerSpec | None] = {}
        for product, operand in SLOTS:
            chosen = getattr(getattr(self, product), operand)
            slots[product, operand] = getattr(self, operand) if chosen == "same" else chosen
        turning = {product: getattr(self, product).transform for product in PRODUCTS}
        transforms = {product: spec for product, spec in turning.items() if spec is not None}
        adding = {product: getattr(self, product).accumulator for product in PRODUCTS}
        accumulators = {product: how for product, how in adding.items() if how is not None}
        return LayerPrecision(slots, self.operands == "per_product", transforms, accumulators)


def _check_source(layer: LayerPrecision, product: Product, operand: Operand, spec: QuantizerSpec) -> None:
    """ValueError for a slot whose cast does not go with its source or with the transform that its product has."""
    slot, source, turned = f"{product}.{operand}", spec.source, product in layer.transforms
    if spec.correction == "eden" and not turned:
        raise ValueError(
            f"{slot} has correction: eden, and there is no {product}.transform, whose runs it corrects; give one, or "
            "use correction: none."
        )
    if source != "original":
        if product == "forward" or operand == "grad_output":
            raise ValueError(
                f"source: {source} is for grad_input.weight and grad_weight.input, whose operands forward casts first; "
                f"{slot} is none of them."
            )
        if layer.slots["forward", operand] is None:
            raise ValueError(
                f"{slot} has source: {source}, and forward.{operand} is not cast; cast that, or use source: original."
            )
        if source == "forward_rotated" and "forward" not in layer.transforms:
            raise ValueError(
                f"{slot} has source: forward_rotated, and there is no forward.transform; use source: forward."
            )
    _check_average(layer, product, spec, slot)
    kind, what = spec.gradient.kind, f"{product}.transform" if turned else f"source: {source}"
    if kind != "identity" and product != "forward" and (turned or source != "original"):
        raise ValueError(
            f"gradient: {kind} of {slot} does not go with {what}: forward's casts decide where a gradient passes; "
            f"use gradient: identity in {slot}."
        )
    forward = layer.slots.get(("forward", operand))
    if kind == "dge" and (forward is None or forward.gradient != spec.gradient):
        raise ValueError(
            f"{slot} has gradient: dge, which is the slope of forward's cast, and forward.{operand} has another "
            f"gradient; say it there, or use gradient: identity in {slot}."
        )


def _check_average(layer: LayerPrecision, product: Product, spec: QuantizerSpec, slot: str) -> None:
    """ValueError for a weight that is another one in each pass, so that its average says nothing."""
    if spec.rounding != "toward_average":
        return
    transform = layer.transforms.get(product)
    if spec.source != "original":
        raise ValueError(
            f"{slot} has rounding: toward_average, the average of the weight, and source: {spec.source}, which is not "
            "a weight; use another rounding, or source: original."
        )
    if transform is not None and transform.draws:
        raise ValueError(
            f"{slot} has rounding: toward_average, and {product}.transform draws its signs, so that each step turns "
            "the weight into another; use signs: layer, fixed or none."
        )
