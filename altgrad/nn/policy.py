"""Which Linear is cast how: ordered rules over module names.

A Linear layer has three products, and each has two operands, so there are six *slots*:

    forward      y  = input @ weight.T          slots input, weight
    grad_input   dx = grad_output @ weight      slots grad_output, weight
    grad_weight  dW = grad_output.T @ input     slots grad_output, input

A rule's short names `weight`, `input`, `grad_output` fill both slots of an operand; a slot named under its product
overrides that. `none` leaves an operand uncast. The first rule whose pattern matches a module decides it (as in qwix);
a rule that decides nothing is an error, since it is nearly always a misspelt name. In patterns `*` stands for any text,
dots included, and the children of a list answer to `first` and `last` as well as to their numbers.

A module registered under several names answers to each of them and is decided once; its first name is its site. Where
one rule finds it by one name alone and another, which says otherwise, by another alone, that is an error; a rule
that comes first and one that matches both names are no conflict, the order decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, model_validator
from torch import nn

from altgrad.nn.layers import EMBEDDINGS
from altgrad.nn.names import Nameable, matches, nameable
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.quantizer import Axis
from altgrad.spec import LocatedError, Spec, did_you_mean

Product = Literal["forward", "grad_input", "grad_weight"]
Operand = Literal["input", "weight", "grad_output"]

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

    def casts(self) -> dict[str, tuple[QuantizerSpec, list[tuple[Product, Operand]]]]:
        """The casts a layer needs: name -> (spec, slots served). Equal slots of an operand share one cast.

        A shared cast is named after its operand (`weight`), one that serves a single differing slot after both
        (`weight.grad_input`).
        """
        found: dict[str, tuple[QuantizerSpec, list[tuple[Product, Operand]]]] = {}
        for slot, spec in self.slots.items():
            if spec is None:
                continue
            product, operand = slot
            shared = not self.per_product and all(
                other in (None, spec) for (_, name), other in self.slots.items() if name == operand
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


class ForwardSlots(Spec):
    """Overrides for y = input @ weight.T."""

    input: SlotSpec = "same"
    weight: SlotSpec = "same"


class GradInputSlots(Spec):
    """Overrides for dx = grad_output @ weight."""

    grad_output: SlotSpec = "same"
    weight: SlotSpec = "same"


class GradWeightSlots(Spec):
    """Overrides for dW = grad_output.T @ input."""

    grad_output: SlotSpec = "same"
    input: SlotSpec = "same"


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
            if operand == "grad_output" and spec is not None and spec.gradient == "clipped":
                raise ValueError(
                    f"gradient: clipped has no meaning for {product}.grad_output, behind which no gradient flows."
                )
        return self

    def layer(self) -> LayerPrecision:
        """The six slots, resolved."""
        slots: dict[tuple[Product, Operand], QuantizerSpec | None] = {}
        for product, operand in SLOTS:
            chosen = getattr(getattr(self, product), operand)
            slots[product, operand] = getattr(self, operand) if chosen == "same" else chosen
        return LayerPrecision(slots, self.operands == "per_product")


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


def slot_text(spec: QuantizerSpec | None) -> str:
    """A slot in a few characters, for tables: `e4m3fn delayed`; `-` if not cast."""
    if spec is None:
        return "-"
    parts = [spec.format.short_name]
    parts += [] if spec.rounding == "nearest_even" else [str(spec.rounding)]
    scaling = spec.scaling.tree()
    detail = scaling.get("size") or scaling.get("value")
    detail = "channel" if scaling.get("granularity") == "channel" else detail
    parts.append(f"{spec.scaling.kind}/{detail}" if detail else spec.scaling.kind)
    chosen = [f"{name} {value}" for name, value in spec.scaling.chosen.items()]
    parts += [f"({', '.join(chosen)})"] if chosen else []
    return " ".join(parts)
