"""Which Linear is cast how: ordered rules over module names and places.

The first rule that finds a module decides it (as in qwix). A rule goes by names (`match`) or by a place that every
model has (`place`, see `altgrad.nn.places`). In patterns `*` stands for any text, dots included, and the children of a
list answer to `first` and `last` as well as to their numbers. A rule that decides nothing is an error, since it is
nearly always a misspelt name; but for one that names a place only to leave it as it is.

A module registered under several names answers to each of them and is decided once; its first name is its site. Where
one rule finds it by one name alone and another, which says otherwise, by another alone, that is an error; a rule
that comes first and one that matches both names are no conflict, the order decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import nn

from altgrad.document import Document
from altgrad.nn.layers import EMBEDDINGS
from altgrad.nn.names import Nameable, matches, nameable
from altgrad.nn.places import Places, RulePlace
from altgrad.nn.rule import Rule
from altgrad.nn.slots import LayerPrecision
from altgrad.nn.targets import WEIGHTS, Target, targets
from altgrad.quantize import QuantizerSpec
from altgrad.recipes.expansion import expand_policy
from altgrad.recipes.note import RecipeNote
from altgrad.recipes.recipe import Recipe
from altgrad.spec import LocatedError, Since, Spec, did_you_mean


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
    """Ordered rules; the first match decides. `none`, or no rules at all, casts nothing.

    The name of a recipe stands for its rules (`altgrad.recipes.expansion`).
    """

    rules: tuple[Rule, ...] = ()
    """In order; the first rule that matches a layer decides its casts."""
    recipe: Annotated[RecipeNote | None, Since(2)] = None
    """The recipe whose rules come after these; expanded, a note of where rules came from."""
    set: Annotated[dict[str, Any], Since(2)] = Field(default_factory=dict)
    """What to change in a recipe's rules: `{weight.rounding: stochastic}`."""

    noun: ClassVar[str] = "precision"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "none":
            return {"recipe": value}
        return {} if value in (None, "none") else value

    @model_validator(mode="wrap")
    @classmethod
    def _expanded(cls, value: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, Recipe):
            value = {"recipe": {"name": value.name, **value.parameters}}
        if not isinstance(value, str | dict):
            return read(value)
        document = Document.of(value, cls.noun)
        expand_policy(document, cls, ())
        return read(document.data)

    @model_validator(mode="after")
    def _changes_a_recipe(self) -> Self:
        if self.set:
            raise LocatedError(("set",), "set changes the casts of a recipe; name one: {recipe: mx, set: {...}}.")
        return self

    def deciding(self) -> dict[str, Any]:
        return {"rules": self.tree()["rules"]}

    @classmethod
    def uniform(cls, *, match: str = "*", **casts: str | QuantizerSpec) -> "PrecisionPolicy":
        """One rule for every Linear that matches: `uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2")`.

        Raises SpecError, a ValueError of one line, for what is no rule.
        """
        return cls.made_from({"rules": ({"match": match, **casts},)})

    def decide(self, model: nn.Module, *, at_rest: bool = False) -> list[Decision]:
        """A decision for every Linear (and Conv1D) of the model, in module order. Changes nothing.

        There is one, too, for each 3-D parameter of experts that a rule matches, by its own name or its module's.
        at_rest: the model has names and weights alone, so that nothing is asked of its attention or outputs.
        Raises LocatedError for a rule that decides nothing (one without casts decides matrices outside of layers, too)
        and for two that contradict each other.
        """
        finder = _Finder(self.rules, model)
        used: set[int] = set()
        decisions = []
        for thing in finder.things:
            rule, agreed = finder.rule_of(thing)
            used |= {number for number in agreed if thing.cast or not self.rules[number].layer().casts()}
            if thing.cast and (thing.shape is None or rule is not None):
                precision = None if rule is None else self.rules[rule].layer()
                decisions.append(Decision(thing.name, rule, precision, thing.shape))
        of_layers, elsewhere = set(used), targets(self.rules, model, at_rest=at_rest)[1]
        used |= elsewhere
        for number, unused in enumerate(self.rules):
            if number not in used and (unused.place is None or unused.casts_elsewhere or unused.layer().casts()):
                raise LocatedError(("rules", number, "place" if unused.place else "match"), finder.unused(number))
            others = [operand for (_, operand), cast in unused.layer().slots.items() if cast and operand != "weight"]
            if unused.place == "embeddings" and others and number not in of_layers:
                says = f"place embeddings of this model has tables alone; {others[0]} is not a weight: leave it out."
                raise LocatedError(("rules", number, "place"), says)
        return decisions

    def targets(self, model: nn.Module, *, at_rest: bool = False) -> list[Target]:
        """What is cast besides layers, in module order; see `altgrad.nn.targets`. Changes nothing.

        LocatedError for a rule whose attention or outputs are those of nothing.
        """
        return targets(self.rules, model, at_rest=at_rest)[0]

    def left_out(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Matrices, by name, that a rule with casts matches though no layer holds them, so that they are left as they
        are: attention's in_proj_weight, an LSTM's weights. Tables named like embeddings do not count."""
        finder, found = _Finder(self.rules, model), {}
        for thing in finder.things:
            if not thing.cast and not any(matches(pattern, [thing.name]) for pattern in EMBEDDINGS):
                rule, _ = finder.rule_of(thing)
                if rule is not None and self.rules[rule].layer().casts():
                    found[thing.name] = thing.shape or ()
        return found


class _Finder:
    """Which rule finds what of one model."""

    def __init__(self, rules: Sequence[Rule], model: nn.Module) -> None:
        self.rules, self.things = rules, nameable(model)
        self.named = [None if rule.place is None else RulePlace.parse(rule.place) for rule in rules]
        self.places = Places(model) if any(self.named) else None

    def rule_of(self, thing: Nameable) -> tuple[int | None, set[int]]:
        """The rule that decides this, and all rules that are thereby of use: those that say the same of other names."""
        firsts = {path: self._first(thing, also) for path, also in thing.spellings.items()}
        deciding = sorted({rule for rule in firsts.values() if rule is not None})
        if not deciding:
            return None, set()
        chosen, agreed = deciding[0], {deciding[0]}
        one = next(path for path, rule in firsts.items() if rule == chosen)
        for path, other in firsts.items():
            if other is None or other == chosen or self._finds(other, thing, thing.spellings[one]):
                continue
            if self.rules[other].layer() != self.rules[chosen].layer():
                raise LocatedError(
                    ("rules", other, "match"),
                    f"{one} and {path} are one layer, which '{self.rules[chosen].match}' and "
                    f"'{self.rules[other].match}' cast differently. Keep one of the two rules.",
                )
            agreed.add(other)
        return chosen, agreed

    def unused(self, number: int) -> str:
        """Why a rule decides nothing."""
        text, place = self.rules[number].place, self.named[number]
        layers = [thing for thing in self.things if thing.cast]
        if any(self._finds(number, thing, also) for thing in layers for also in thing.spellings.values()):
            what = f"'{self.rules[number].match}'" if text is None else f"place {text}"
            return (
                f"{what} decides nothing: earlier rules match all its layers. The first match wins; reorder the rules."
            )
        if place is None or self.places is None:
            return _unmatched(self.rules[number].match, self.things)
        if place.name in WEIGHTS:
            held = "norm with a weight" if place.name == "norms" else "table and no Linear"
            return f"place {text} holds no {held} of this model, whose places are {self.places.summary(self.things)}."
        return f"place {text} holds no Linear of this model, whose places are {self.places.summary(self.things)}."

    def _first(self, thing: Nameable, names: set[str]) -> int | None:
        rules = (number for number, rule in enumerate(self.rules) if rule.decides_layers)
        return next((number for number in rules if self._finds(number, thing, names)), None)

    def _finds(self, number: int, thing: Nameable, names: set[str]) -> bool:
        """Whether a rule finds a thing: by these of its names, or wherever the thing is."""
        place = self.named[number]
        if place is None or self.places is None:
            return matches(self.rules[number].match, names)
        return self.places.holds(place, thing)


def _unmatched(pattern: str, things: Sequence[Nameable]) -> str:
    layers = [thing for thing in things if thing.cast]
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
