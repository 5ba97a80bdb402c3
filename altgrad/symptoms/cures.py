"""What to try against the symptoms of one run: not what its spec has already, and not one thing and its opposite.

A symptom's remedy is written for every run. Of one run more is known, its spec; so each remedy is a list of cures, and
a cure says when a spec has it (`has`) and which knob it turns which way (`turns`). The first finding is the earliest,
so it decides: where it wants a smaller learning rate, a later one that a larger rate would cure is a consequence, and
is not told to undo the first. The learning rate is the run's; exponent bits are those of one operand of one layer, and
a finding of another layer may well want the opposite.

A spec is plain data, as `RunSpec.tree` gives it; nothing here knows its classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

from altgrad.formats import FloatFormat, parse_format
from altgrad.symptoms.symptoms import Finding, Symptom

Tree = Mapping[str, Any]
Turn = tuple[Literal["lr", "exponent bits"], int]
NOTHING_LEFT = "what usually helps is in the spec already; `altgrad diagnose RUN --replay` names the casts to blame"
_DECIDED = "decided"
"""Where `fitting_remedies` keeps its rules by layer, beside the spec's own keys."""
_NO_RULES: Mapping[str, int] = MappingProxyType({})
_OPERANDS = ("grad_output", "weight", "input")
_ATTENTION = ("query", "key", "value", "probabilities", "grad_scores")
_OUTPUTS = {"output_gradient": "backward", "output": "forward"}


@dataclass(frozen=True)
class Cure:
    """One thing to try. has: whether a spec has it at a finding's place, or has what makes it pointless there."""

    text: str
    has: Callable[[Tree, str], bool] = lambda spec, place: False
    turns: Turn | None = None


def fitting_remedies(found: Sequence[Finding], spec: Tree, rules: Mapping[str, int] = _NO_RULES) -> list[str]:
    """For each finding, in the order of `findings`, what to try in this run.

    rules: the number of the rule that decides each layer, which takes the model to know where a rule names a place. A
    layer that is not among them has the first rule whose pattern matches it.
    """
    spec = {**spec, _DECIDED: rules}
    decided: dict[tuple[str, str], int] = {}
    remedies = []
    for finding in found:
        kept = []
        for cure in cures_of(finding.symptom):
            if cure.has(spec, finding.place):
                continue
            if cure.turns is not None:
                knob, way = cure.turns
                if decided.setdefault((knob, "" if knob == "lr" else finding.place), way) != way:
                    continue
            kept.append(cure.text)
        remedies.append("; ".join(kept) or NOTHING_LEFT)
    return remedies


def cures_of(symptom: Symptom) -> tuple[Cure, ...]:
    """Its cures, the likeliest first; its remedy as it stands where nothing of that depends on a spec."""
    return tuple(map(_cure, symptom.remedy.split("; ")))


def _cure(text: str) -> Cure:
    known = _KNOWN.get(text)
    return Cure(text) if known is None else Cure(text, *known)


def _casts(spec: Tree, place: str) -> list[Tree]:
    """The casts of a finding's operand in the rule that decides its layer; of all rules where none does.

    Those of attention and of outputs, of which rules seldom have several, are the casts of all rules.
    """
    layer, _, rest = place.partition("/")
    elsewhere = [("attention", name) for name in _ATTENTION if rest.startswith(name)]
    elsewhere += [("outputs", way) for name, way in _OUTPUTS.items() if rest.startswith(name)][:1]
    for part, name in elsewhere[:1]:
        said = [(rule.get(part) or {}).get(name) for rule in spec.get("precision", {}).get("rules", [])]
        return [cast for cast in said if cast is not None]
    operand = next((name for name in _OPERANDS if rest.startswith(name)), "")
    operand = operand or ("weight" if layer.endswith(".weight") else "grad_output")
    precision = spec.get("precision", {})
    rules = [rule for phase in precision.get("phases") or [precision] for rule in phase.get("rules", [])]
    layer = layer.removesuffix(".weight")
    number = spec.get(_DECIDED, {}).get(layer)
    if number is None:
        matching = (n for n, rule in enumerate(rules) if "match" in rule and fnmatchcase(layer, rule["match"]))
        number = next(matching, None)
    return [cast for rule in (rules if number is None else [rules[number]]) for cast in _of_operand(rule, operand)]


def _of_operand(rule: Tree, operand: str) -> Iterator[Tree]:
    for product in ("forward", "grad_input", "grad_weight"):
        slot = rule.get(product, {}).get(operand)
        if (cast := rule.get(operand) if slot == "same" else slot) is not None:
            yield cast


def _all(test: Callable[[Tree], bool]) -> Callable[[Tree, str], bool]:
    """Whether the casts of the place all pass; a place without a cast has no cast to change."""
    return lambda spec, place: all(map(test, _casts(spec, place)))


def _storage(spec: Tree, place: str) -> Tree:
    """The storage rule that decides a parameter; none is master."""
    name = place.partition("/")[0]
    rules = spec.get("storage", [])
    return next((rule for rule in rules if fnmatchcase(name, rule["match"])), {"kind": "master"})


def _kept_as(*kinds: str) -> Callable[[Tree, str], bool]:
    return lambda spec, place: _storage(spec, place)["kind"] in kinds


def _scaling(cast: Tree, *kinds: str) -> bool:
    return cast["scaling"]["kind"] in kinds


def _exponent_bits(cast: Tree) -> int | None:
    """None for a table of values, which has none to turn."""
    fmt = parse_format(cast["format"])
    return fmt.exponent_bits if isinstance(fmt, FloatFormat) else None


def _is_wide(cast: Tree) -> bool:
    bits = _exponent_bits(cast)
    return bits is None or bits >= 5


def _is_narrow(cast: Tree) -> bool:
    bits = _exponent_bits(cast)
    return bits is None or bits <= 1


_LR_DOWN: tuple[Callable[[Tree, str], bool], Turn] = (lambda spec, place: False, ("lr", -1))
_LR_UP: tuple[Callable[[Tree, str], bool], Turn] = (lambda spec, place: False, ("lr", 1))
_WIDER: tuple[Callable[[Tree, str], bool], Turn] = (_all(_is_wide), ("exponent bits", 1))
_BLOCK = _all(lambda cast: _scaling(cast, "block", "mx", "nvfp4"))
_CHANNEL = _all(
    lambda cast: _scaling(cast, "unscaled", "block", "mx", "nvfp4") or cast["scaling"].get("granularity") == "channel"
)
_SCALED = _all(lambda cast: not _scaling(cast, "unscaled"))
_CURRENT = _all(lambda cast: _scaling(cast, "current", "mse", "block", "mx", "nvfp4"))
_MARGIN = _all(lambda cast: not _scaling(cast, "delayed") or cast["scaling"].get("margin", 0) >= 1)
_MSE = _all(lambda cast: _scaling(cast, "mse"))
_UNCAST = _all(lambda cast: False)

_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "a smaller lr": _LR_DOWN, "halve lr or lengthen the warm-up": _LR_DOWN, "lower lr or a longer warm-up": _LR_DOWN,
    "a larger lr": _LR_UP,
    "clip_norm: 1.0": (lambda spec, place: spec.get("clip_norm") is not None and spec["clip_norm"] <= 1,),
    "scaling: current where saturation rose at the same step": (_CURRENT,),
    "more exponent bits for grad_output where it saturates": _WIDER,
    "more exponent bits": _WIDER, "a wider format (e5m2)": _WIDER,
    "fewer exponent bits": (
        _all(_is_narrow), ("exponent bits", -1)
    ),
    "scaling: current, since this cast has no scale": (_SCALED,),
    "scaling: current": (_CURRENT,), "scaling: delayed with margin: 1": (_MARGIN,), "block scaling": (_BLOCK,),
    "granularity: channel": (_CHANNEL,), "scaling: mse": (_MSE,), "no cast at this site": (_UNCAST,),
    "rounding: stochastic": (_all(lambda cast: cast["rounding"] == "stochastic"),),
    "storage: stochastic": (_kept_as("stochastic", "kahan", "eco", "master"),),
    "storage: kahan": (_kept_as("kahan", "eco", "master"),), "storage: master": (_kept_as("master"),),
    "scale: tracked for the storage": (
        lambda spec, place: _storage(spec, place).get("scale") != "fixed",
    ),
    "manifold_adamw, whose steps are in gaps": (
        lambda spec, place: spec["optimizer"]["kind"] in ("manifold_adamw", "grid_optim", "madam"),
    ),
    "a larger kappa for manifold_adamw": (lambda spec, place: spec["optimizer"]["kind"] != "manifold_adamw",),
    "weight decay": (lambda spec, place: spec["optimizer"].get("weight_decay", 0) > 0,),
    "a larger margin of the storage's scaling": (
        lambda spec, place: _storage(spec, place)["kind"] == "master"
        or _storage(spec, place).get("scaling", {}).get("margin", 0) >= 2,
    ),
    "more mantissa bits": (
        lambda spec, place: parse_format(_storage(spec, place).get("format", "e0m7")).mantissa_bits >= 7,
    ),
}  # fmt: skip
"""What a spec can have, and what turns a knob; any other cure can always be tried."""
