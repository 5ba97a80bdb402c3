"""What is cast besides the operands of layers: attention's operands, weights of norms and tables, outputs of modules.

    {place: attention, attention: {query: e4m3fn}}       modules whose attention can be reached (`attention_reach`)
    {place: norms, weight: {format: e4m3fn, scaling: mx}}    likewise `embeddings`: by place alone, since `match: "*"`
                                                         means Linears, as ever
    {match: "blocks.*", outputs: e4m3fn}                 modules of any class, by name alone

Each of the three is decided on its own, by the first rule that finds the thing and speaks of it; and layers by the
first that speaks of layers. A rule without any cast speaks of everything: it leaves what it finds as it is. So a rule
for attention does not decide the Linears in it, nor the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from altgrad.nn.attention_reach import attention_modules
from altgrad.nn.attention_slots import AttentionSpec
from altgrad.nn.names import aliases, matches
from altgrad.nn.output_casts import SITES, OutputsSpec
from altgrad.nn.places import Places, RulePlace, Spot
from altgrad.nn.rule import Rule
from altgrad.nn.weight_casts import is_norm, is_table
from altgrad.quantize import QuantizerSpec
from altgrad.spec import LocatedError

Sort = Literal["attention", "weight", "outputs"]
WEIGHTS = ("norms", "embeddings")
"""The places of weights that belong to no layer."""


@dataclass(frozen=True)
class Target:
    """One thing that a rule casts: the module's name, what of it, the rule's number and what the rule says."""

    name: str
    sort: Sort
    rule: int
    spec: AttentionSpec | QuantizerSpec | OutputsSpec

    @property
    def slots(self) -> dict[str, QuantizerSpec]:
        """Its casts, by what a site of theirs ends in."""
        if isinstance(self.spec, QuantizerSpec):
            return {"weight": self.spec}
        if isinstance(self.spec, OutputsSpec):
            return {SITES[name]: spec for name, spec in self.spec.chosen().items()}
        return {name: spec for name, (spec, _) in self.spec.casts().items()}


def targets(rules: Sequence[Rule], model: nn.Module, *, at_rest: bool = False) -> tuple[list[Target], set[int]]:
    """What the rules cast besides layers, in module order, and the numbers of the rules that decide some of it.

    at_rest: the model has names and weights alone, so that only weights are asked about. LocatedError for a rule whose
    attention or outputs are those of nothing.
    """
    if not any(rule.casts_elsewhere for rule in rules):
        return [], set()
    finder = _Targets(rules, model)
    found = [target for name in finder.modules for target in finder.of(name)]
    used = {number for number, _ in finder.used}
    if at_rest:
        elsewhere = {n for n, rule in enumerate(rules) if rule.attention is not None or rule.outputs is not None}
        return [target for target in found if target.sort == "weight"], used | elsewhere
    for number, rule in enumerate(rules):
        for sort in ("attention", "outputs"):
            if getattr(rule, sort) is not None and (number, sort) not in finder.used:
                raise LocatedError(("rules", number, sort), finder.unused(number, sort))
    return found, used


class _Targets:
    """Which rule casts what of one model."""

    def __init__(self, rules: Sequence[Rule], model: nn.Module) -> None:
        self.rules, self.places = rules, Places(model)
        self.modules = dict(model.named_modules())
        self.names = aliases(model)
        self.attending = attention_modules(model)
        self.used: set[tuple[int, Sort]] = set()

    def of(self, name: str) -> list[Target]:
        """What is cast of one module."""
        module, found = self.modules[name], []
        sorts: list[Sort] = ["outputs"] if name else []
        sorts += ["attention"] if name in self.attending else []
        sorts += ["weight"] if is_norm(module) or is_table(module) else []
        for sort in sorts:
            number = next((n for n, rule in enumerate(self.rules) if self._decides(rule, sort, name)), None)
            spec = None if number is None else self._said(self.rules[number], sort)
            if number is None:
                continue
            self.used |= {(number, sort)}
            if spec is not None and not (isinstance(spec, AttentionSpec) and not spec.chosen()):
                found.append(Target(name, sort, number, spec))
        return found

    def unused(self, number: int, sort: str) -> str:
        """Why this part of a rule decides nothing."""
        rule = self.rules[number]
        what = f"'{rule.match}'" if rule.place is None else f"place {rule.place}"
        if sort == "outputs":
            modules = [name for name in self.modules if name and self._finds(rule, "outputs", name)]
            if modules:
                return f"outputs of {what} decides nothing: earlier rules match all its modules; reorder the rules."
            return f"{what} matches no module; there are {', '.join([n for n in self.modules if n][:4])}, ..."
        if not self.attending:
            return (
                "no attention of this model can be reached: none of its modules computes it through AltGrad's function "
                "or transformers' attention interface. Leave out attention."
            )
        if any(self._finds(rule, "attention", name) for name in self.attending):
            return f"attention of {what} decides nothing: earlier rules match all its modules; reorder the rules."
        more = ", ..." * (len(self.attending) > 2)
        there = ", ".join(list(self.attending)[:2])
        return f"{what} matches no attention module, only whose slots these are; there are {there}{more}."

    def _decides(self, rule: Rule, sort: Sort, name: str) -> bool:
        return (rule.casts_nothing or self._said(rule, sort) is not None) and self._finds(rule, sort, name)

    def _said(self, rule: Rule, sort: Sort) -> AttentionSpec | QuantizerSpec | OutputsSpec | None:
        if sort == "weight":
            return rule.weight if rule.place in WEIGHTS else None
        return rule.attention if sort == "attention" else rule.outputs

    def _finds(self, rule: Rule, sort: Sort, name: str) -> bool:
        if rule.place is None:
            return matches(rule.match, self.names[name])
        if sort == "outputs":
            return False
        module = self.modules[name]
        part = "attention" if sort == "attention" else "norms" if is_norm(module) else "embeddings"
        return RulePlace.parse(rule.place).holds(Spot(part, self.places.block_of(name)), self.places.blocks)
