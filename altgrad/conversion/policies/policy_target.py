"""What a target is: a stack that trains with casts of its own, and takes them as an object or a file of its own.

A target offers, for the casts that a layer wants, what it runs that comes nearest to them, each offer with the text
that makes it and its casts as a rule of ours. Where the two mean the same the layer is expressed; where they differ
the slot at fault is named, with what is wanted of it and what the target has there. So a target says once what it
runs, and neither translates nor refuses by hand.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from altgrad.conversion.policies.meanings import (
    differing_slots,
    differing_words,
    distance,
    floors_differ,
    precision_of,
)
from altgrad.nn.places import Spot
from altgrad.nn.slots import LayerPrecision
from altgrad.quantize import QuantizerSpec

LINEAR, CONV1D, EXPERTS = "nn.Linear", "a Conv1D", "one of a stack of experts"
"""Sorts of layers."""
LEAVE = "leave it out by a rule before, or take another target."
"""What can be done about a layer that a target does not take."""


@dataclass(frozen=True)
class Decided:
    """What a policy decides: a layer; or, of a policy without a model, a rule.

    names: all under which the model has the layer. casts: None where it is left as it is. sort: what it is. shared:
    whether something else has its weight. spot: where in the model it is. place: of a rule that goes by one.
    """

    name: str
    rule: int | None
    casts: LayerPrecision | None
    names: tuple[str, ...] = ()
    sort: str = LINEAR
    inputs: int = 0
    outputs: int = 0
    bias: bool = False
    shared: bool = False
    spot: Spot | None = None
    place: str | None = None

    @property
    def repeated(self) -> bool:
        """Whether the model has it under more than one name."""
        return len(self.names) > 1


@dataclass(frozen=True)
class Offer:
    """Something that a target runs.

    name: what the text calls it. made: the text that makes it. rule: its casts. multiple: what both features of a
    layer must be multiples of. refuses: what else of a layer it does not take, as a field of `Decided` and why.
    never: why it cannot run after all. unproved: why it was not run here, where the target as a whole was. note: what
    whoever uses it should know.
    """

    name: str
    made: str
    rule: Mapping[str, Any]
    multiple: int = 1
    refuses: Mapping[str, str] = field(default_factory=dict)
    never: str = ""
    unproved: str = ""
    note: str = ""

    @cached_property
    def casts(self) -> LayerPrecision:
        """Its rule, slot by slot."""
        return precision_of(self.rule)


@dataclass(frozen=True)
class Choice:
    """A decision, and what the target does about it; None where the layer is left as it is."""

    decided: Decided
    offer: Offer | None = None


@dataclass(frozen=True)
class Expressible:
    """All choices of one policy. blocks: how many the model repeats; None without a model. head: lines on top."""

    choices: Sequence[Choice]
    blocks: int | None
    head: Sequence[str]

    @property
    def offers(self) -> list[Offer]:
        """What is made, each once, in order."""
        return list({each.offer.made: each.offer for each in self.choices if each.offer is not None}.values())

    @cached_property
    def keys(self) -> dict[str, str]:
        """What the text calls each thing that it makes, by how it is made: its name, with a number from the second."""
        found: dict[str, str] = {}
        for offer in self.offers:
            like = sum(name == offer.name or name.startswith(f"{offer.name}_") for name in found.values())
            found[offer.made] = f"{offer.name}_{like + 1}" if like else offer.name
        return found

    def key(self, choice: Choice) -> str | None:
        """What the text calls the thing that a choice takes."""
        return None if choice.offer is None else self.keys[choice.offer.made]


class NotExpressible(ValueError):
    """A layer that a target cannot run as the policy wants it. rule: the number of the rule that wants it."""

    def __init__(self, decided: Decided, why: str) -> None:
        super().__init__(f"{decided.name}: {why}")
        self.rule = decided.rule


class PolicyTarget(ABC):
    """A stack that takes policies."""

    name: ClassVar[str]
    """What `--to` calls it."""
    page: ClassVar[str]
    """The address of the page or code that its words were written from."""
    proved: ClassVar[str] = ""
    """With which version of it what is written was run and compared; empty where it never was."""
    layers: ClassVar[tuple[str, ...]] = (LINEAR,)
    """The sorts of layers that it converts."""

    @abstractmethod
    def offers(self, wanted: LayerPrecision) -> Iterable[Offer]:
        """What it runs that comes nearest to these casts, one of each sort that it has."""

    @abstractmethod
    def text(self, expressible: Expressible) -> str:
        """The file, with its head on top. Raises NotExpressible for choices that do not go together."""

    def verified(self, choices: Iterable[Choice]) -> bool:
        """Whether all that these choices take was run and compared."""
        return bool(self.proved) and not any(each.offer is not None and each.offer.unproved for each in choices)

    def standing(self, choices: Iterable[Choice]) -> str:
        """The same in a sentence."""
        if self.verified(choices):
            return f"Proved with {self.proved}."
        return f"Unverified: not all of it was run; it was written from {self.page}"

    def choose(self, decisions: Iterable[Decided]) -> list[Choice]:
        """What it does about each decision. Raises NotExpressible, with the layer and the slot at fault, for the first
        about which it can do nothing."""
        known: dict[int | None, Offer] = {}
        choices = []
        for decided in decisions:
            if decided.casts is None:
                choices.append(Choice(decided))
                continue
            if decided.sort not in self.layers:
                raise NotExpressible(decided, f"it is {decided.sort}, and {self.name} takes {self.layers[0]}; {LEAVE}")
            if decided.rule not in known:
                known[decided.rule] = self._offer(decided, decided.casts)
            self._check(decided, known[decided.rule])
            choices.append(Choice(decided, known[decided.rule]))
        return choices

    def _offer(self, decided: Decided, wanted: LayerPrecision) -> Offer:
        """What it runs that means the same."""
        offer = min(self.offers(wanted), key=lambda each: (distance(wanted, each.casts), each.never != ""))
        if differing := differing_slots(wanted, offer.casts):
            slot, name = differing[0], ".".join(differing[0])
            has = differing_words(wanted, offer.casts, slot)
            raise NotExpressible(
                decided, f"{name} is {wanted.text(slot)}, and the nearest that {self.name} runs, {offer.name}, has "
                f"{has} there; say that, or take another target.",
            )  # fmt: skip
        return offer

    def notes(self, choices: Sequence[Choice]) -> list[str]:
        """What a reader should know of these choices."""
        found = []
        for offer in {each.offer.made: each.offer for each in choices if each.offer is not None}.values():
            found += [f"{offer.name} was not run here: {offer.unproved}."] if offer.unproved else []
            found += [offer.note] if offer.note else []
        if any(
            c.offer is not None and c.decided.casts and floors_differ(c.decided.casts, c.offer.casts) for c in choices
        ):
            found.append(f"{self.name} has another floor under amax, which only tensors below 1e-10 can tell.")
        return found

    def _check(self, decided: Decided, offer: Offer) -> None:
        """Refuse a layer whose shape or parameters the offer does not take."""
        if offer.never:
            raise NotExpressible(decided, f"{offer.never}; {LEAVE}")
        for what in ("inputs", "outputs"):
            if (size := getattr(decided, what)) % offer.multiple:
                raise NotExpressible(
                    decided, f"it has {size} {what}, and {offer.name} of {self.name} takes multiples of "
                    f"{offer.multiple}; {LEAVE}",
                )  # fmt: skip
        for what, why in offer.refuses.items():
            if getattr(decided, what):
                raise NotExpressible(decided, f"{why}; {LEAVE}")


def first_cast(wanted: LayerPrecision, operand: str = "") -> QuantizerSpec | None:
    """The first cast of a layer, or of one of its operands."""
    return next((spec for (_, name), spec in wanted.slots.items() if spec and operand in ("", name)), None)


def scaling_choice(wanted: LayerPrecision, name: str, default: Any, operand: str = "") -> Any:
    """A field of the scaling of the first cast of a layer, or of one of its operands; the default where there is none
    such."""
    spec = first_cast(wanted, operand)
    return default if spec is None else getattr(spec.scaling, name, default)


def with_sums(rule: Mapping[str, Any], wanted: LayerPrecision, its: Mapping[str, str]) -> dict[str, Any]:
    """The rule with those accumulators that are wanted and that the target has in a product anyway."""
    found = dict(rule)
    for product, how in wanted.accumulators.items():
        own = found.get(product, {})
        if how.text == its.get(product) and own != "none":
            found[product] = {**own, "accumulator": how.text}
    return found


def as_comments(lines: Iterable[str]) -> str:
    """Lines as comments; what is no printable character in them is escaped, so that a name ends no comment."""
    printable = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)
    return "".join(f"# {line}".rstrip() + "\n" for line in printable)


def python_file(expressible: Expressible, imports: Iterable[str], parts: Iterable[str]) -> str:
    """A file: its head, what it imports, which layer takes what, and then these parts."""
    above = as_comments(expressible.head) + "\n" + "\n".join(imports).strip("\n")
    return f"{above}\n\n{layers_as_python(expressible)}" + "".join("\n\n" + part.strip("\n") + "\n" for part in parts)


def layers_as_python(expressible: Expressible) -> str:
    """The tables of a Python file: which layer takes what, and which are left; without a model, of rules."""
    by_name = [
        (name, expressible.key(choice))
        for choice in expressible.choices
        for name in choice.decided.names or (choice.decided.name,)
    ]
    what = "RULES" if expressible.blocks is None else "LAYERS"
    taken = "".join(f"    {name!r}: {key!r},\n" for name, key in by_name if key is not None)
    left = "".join(f"    {name!r},\n" for name, key in by_name if key is None)
    return (
        f'{what} = {{\n{taken}}}\n"""What is cast, and by what."""\n'
        + (f"LEFT = (\n{left})\n" if left else "LEFT = ()\n") + '"""What stays as it is."""\n'
    )  # fmt: skip
