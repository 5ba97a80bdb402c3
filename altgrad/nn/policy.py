"""Which Linear is cast how: ordered rules over module names.

A Linear layer has three products, and each has two operands, so there are six *slots*:

    forward      y  = input @ weight.T          slots input, weight
    grad_input   dx = grad_output @ weight      slots grad_output, weight
    grad_weight  dW = grad_output.T @ input     slots grad_output, input

A rule's short names `weight`, `input`, `grad_output` fill both slots of an operand; a slot named under its product
overrides that. `none` leaves an operand uncast. The first rule whose pattern matches a module decides it (as in qwix);
a rule that decides nothing is an error, since it is nearly always a misspelt name. In patterns `*` stands for any text,
dots included, and the children of a list answer to `first` and `last` as well as to their numbers.

A product can have a `transform`, which turns both its operands along the axis that it sums over before they are cast
(`altgrad.quantize.transform`). A slot of the backward pass casts the operand as it came (`source: original`), what
forward's cast made of it (`forward`), or, where forward turns it, that in the turned domain (`forward_rotated`): the
product's result is then turned back. Its `accumulator` says what its terms are added up in. Two slots of an operand
share a cast where spec, transform, source and axis agree.

A module registered under several names answers to each of them and is decided once; its first name is its site. Where
one rule finds it by one name alone and another, which says otherwise, by another alone, that is an error; a rule
that comes first and one that matches both names are no conflict, the order decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, model_validator
from torch import nn

from altgrad.nn.accumulated import check_product
from altgrad.nn.layers import EMBEDDINGS
from altgrad.nn.names import Nameable, matches, nameable
from altgrad.nn.outlier_columns import check_columns
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.accumulator import AccumulatorSpec
from altgrad.quantize.gradient import Dge
from altgrad.quantize.parts import Axis
from altgrad.quantize.transform import TransformSpec
from altgrad.spec import LocatedError, Since, Spec, did_you_mean

Product = Literal["forward", "grad_input", "grad_weight"]
Operand = Literal["input", "weight", "grad_output"]

PRODUCTS: tuple[Product, ...] = ("forward", "grad_input", "grad_weight")
SLOTS: tuple[tuple[Product, Operand], ...] = (
    ("forward", "input"), ("forward", "weight"),
    ("grad_input", "grad_output"), ("grad_input", "weight"),
    ("grad_weight", "grad_output"), ("grad_weight", "input"),
)  # fmt: skip


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


def _to_cast(value: Any) -> QuantizerSpec | None:
    return None if value in (None, "none") else QuantizerSpec.model_validate(value)


def _to_slot(value: Any) -> "QuantizerSpec | str | None":
    return value if isinstance(value, str) and value == "same" else _to_cast(value)


CastSpec = Annotated[QuantizerSpec | None, PlainValidator(_to_cast)]
SlotSpec = Annotated[QuantizerSpec | str | None, PlainValidator(_to_slot)]
"""A cast, `none`, or `same`: what the rule says for this operand in general."""


def _to_transform(value: Any) -> TransformSpec | None:
    return None if value in (None, "none") else TransformSpec.of(value)


Turning = Annotated[TransformSpec | None, PlainValidator(_to_transform), Since(2)]


Accumulating = Annotated[AccumulatorSpec | None, PlainValidator(AccumulatorSpec.unless_float32), Since(2)]


class ForwardSlots(Spec):
    """Overrides for y = input @ weight.T, and what turns both operands along in_features."""

    input: SlotSpec = "same"
    weight: SlotSpec = "same"
    transform: Turning = None
    accumulator: Accumulating = None


class GradInputSlots(Spec):
    """Overrides for dx = grad_output @ weight, and what turns both operands along out_features."""

    grad_output: SlotSpec = "same"
    weight: SlotSpec = "same"
    transform: Turning = None
    accumulator: Accumulating = None


class GradWeightSlots(Spec):
    """Overrides for dW = grad_output.T @ input, and what turns both operands along the tokens."""

    grad_output: SlotSpec = "same"
    input: SlotSpec = "same"
    transform: Turning = None
    accumulator: Accumulating = None


class Rule(Spec):
    """One line of a policy: the Linears whose name matches, and what happens in them."""

    match: Annotated[str, Field(min_length=1)] = "blocks.*"
    weight: CastSpec = None
    input: CastSpec = None
    grad_output: CastSpec = None
    forward: ForwardSlots = ForwardSlots()
    grad_input: GradInputSlots = GradInputSlots()
    grad_weight: GradWeightSlots = GradWeightSlots()
    operands: Literal["shared", "per_product"] = "shared"
    """shared: one cast of an operand serves both its products. per_product: each casts it along its reduced axis."""

    noun: ClassVar[str] = "a precision rule"

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
            f"{slot} has rounding: toward_average, the average of the weight, and source: {spec.source}, which is no "
            "weight; use another rounding, or source: original."
        )
    if transform is not None and transform.draws:
        raise ValueError(
            f"{slot} has rounding: toward_average, and {product}.transform draws its signs, so that each step turns "
            "the weight into another; use signs: fixed or none."
        )


@dataclass(frozen=True)
class Decision:
    """What the policy says of one Linear: its name, the rule's number (None: no rule matched) and the precision.

    experts: where it is no Linear but a 3-D parameter for several experts that a rule matched, its shape.
    """

    name: str
    rule: int | None
    precision: LayerPrecision | None
    experts: tuple[int, ...] | None = None


class PrecisionPolicy(Spec):
    """Ordered rules; the first match decides. `none`, or no rules at all, casts nothing."""

    rules: tuple[Rule, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_none(cls, value: Any) -> Any:
        return {} if value in (None, "none") else value

    noun: ClassVar[str] = "precision"

    @classmethod
    def uniform(cls, *, match: str = "*", **casts: str | QuantizerSpec) -> "PrecisionPolicy":
        """One rule for every Linear that matches: `uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2")`.

        Raises SpecError, a ValueError of one line, for what is no rule.
        """
        return cls.made_from({"rules": ({"match": match, **casts},)})

    def decide(self, model: nn.Module) -> list[Decision]:
        """A decision for every Linear (and Conv1D) of the model, in module order. Changes nothing.

        There is one, too, for each 3-D parameter of experts that a rule matches, by its own name or its module's.
        Raises LocatedError for a rule that decides nothing (one without casts decides matrices outside of layers, too)
        and for two that contradict each other.
        """
        things = nameable(model)
        used: set[int] = set()
        decisions = []
        for thing in things:
            rule, agreed = self._rule_of(thing)
            used |= {number for number in agreed if thing.cast or not self.rules[number].layer().casts()}
            if thing.cast and (thing.shape is None or rule is not None):
                precision = None if rule is None else self.rules[rule].layer()
                decisions.append(Decision(thing.name, rule, precision, thing.shape))
        for number, unused in enumerate(self.rules):
            if number not in used:
                raise LocatedError(("rules", number, "match"), _unused(unused.match, things))
        return decisions

    def left_out(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Matrices, by name, that a rule with casts matches though no layer holds them, so that they are left as they
        are: attention's in_proj_weight, an LSTM's weights. Tables named like embeddings do not count."""
        found = {}
        for thing in nameable(model):
            if not thing.cast and not any(matches(pattern, [thing.name]) for pattern in EMBEDDINGS):
                rule, _ = self._rule_of(thing)
                if rule is not None and self.rules[rule].layer().casts():
                    found[thing.name] = thing.shape or ()
        return found

    def _rule_of(self, thing: Nameable) -> tuple[int | None, set[int]]:
        """The rule that decides this, and all rules that are thereby of use: those that say the same of other names."""
        every = [self._first(names) for names in thing.spellings.values()]
        deciding = sorted({rule for rule in every if rule is not None})
        if not deciding:
            return None, set()
        chosen, agreed = deciding[0], {deciding[0]}
        one, reached = next((path, also) for path, also in thing.spellings.items() if self._first(also) == chosen)
        for path, also in thing.spellings.items():
            other = self._first(also)
            if other is None or other == chosen or matches(self.rules[other].match, reached):
                continue
            if self.rules[other].layer() != self.rules[chosen].layer():
                raise LocatedError(
                    ("rules", other, "match"),
                    f"{one} and {path} are one layer, which '{self.rules[chosen].match}' and "
                    f"'{self.rules[other].match}' cast differently. Keep one of the two rules.",
                )
            agreed.add(other)
        return chosen, agreed

    def _first(self, names: set[str]) -> int | None:
        return next((i for i, rule in enumerate(self.rules) if matches(rule.match, names)), None)


def _unused(pattern: str, things: Sequence[Nameable]) -> str:
    layers = [thing for thing in things if thing.cast]
    if any(matches(pattern, also) for thing in layers for also in thing.spellings.values()):
        return (
            f"'{pattern}' decides nothing: earlier rules match all its layers. The first match wins; reorder the rules."
        )
    for thing in things:
        if any(matches(pattern, also) for also in thing.spellings.values()):
            shape = list(thing.shape or ())
            return f"'{pattern}' matches no Linear layer, but {thing.name} {shape}; only weights of Linears are cast."
    if not layers:
        return f"'{pattern}' matches nothing: the model has no Linear layer."
    known = {alias for thing in layers for also in thing.spellings.values() for alias in also}
    names = [thing.name for thing in layers]
    hint = did_you_mean(pattern, sorted(known)) or f" There are {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
    return f"'{pattern}' matches no Linear layer.{hint}" + ("" if hint.endswith("?") else ".")


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
    parts += [] if transform is None else [f"{transform.kind}/{transform.size}"]
    parts += [] if spec.correction == "none" else [spec.correction]
    parts += [f"dge k {spec.gradient.k} clamp {spec.gradient.clamp:g}"] if isinstance(spec.gradient, Dge) else []
    parts += [] if spec.source == "original" else [f"of {spec.source}"]
    parts += [] if spec.outliers is None else [f"+ {spec.outliers.text}"]
    parts += [] if accumulator is None else [f"added in {accumulator.text}"]
    return " ".join(parts)
