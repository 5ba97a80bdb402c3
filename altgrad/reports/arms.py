"""What a run is an instance of, read from its spec: the arm (what is compared) and the condition (what is held equal).

    arm         format of stored weights (or of their cast) x storage x casts x optimizer, and all settings of these
    condition   everything else that decides a result: model, data, steps, schedule, decay, the other parameters' rates
    free        seed, lr, names, monitors, cadences, engine, threads: they tell runs apart, not arms

Specs are read as plain data, so runs of other versions, with keys that this one does not know, are read too: what is
unknown is part of the condition.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from altgrad.store.compare import leaves

FREE = {
    "project", "name", "seed", "monitors", "log_every", "evaluate_every", "checkpoint_every", "keep", "engine",
    "compile", "threads", "track", "twin", "recipe",
}  # fmt: skip
PARTS = {"precision", "storage", "compute", "optimizer", "interventions", "init_from", "evaluate_with"}
SHARED = {"weight_decay", "groups"}
STANDARD, MANIFOLD = "adamw", "manifold_adamw"
PAIR = (STANDARD, MANIFOLD)
"""The optimizers that a verdict compares where nobody names others: losses of the first less those of the second."""
OPERANDS = {"weight": "weight", "input": "input", "grad_output": "grad"}
"""The operands of the products, and what they are called where there is little room."""
BASELINES = {"float32": "FP32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Arm:
    """One thing that is compared. `casts` is empty where activations and gradients enter no format.

    variant: what makes this arm of its optimizer different, as `S smooth, p 0.5`; empty for the optimizer's default.
    detail: everything else that is set about them (roundings, scalings, betas), as canonical JSON.
    """

    format: str
    storage: str
    casts: str
    optimizer: str
    variant: str = ""
    frozen: bool = False
    detail: str = field(default="", repr=False)

    @property
    def is_baseline(self) -> bool:
        """Whether nothing enters a low-precision format and weights may move."""
        return self.format in BASELINES.values() and not self.casts and not self.frozen

    @property
    def is_off(self) -> bool:
        """Whether it is ManifoldAdamW with its preconditioning off, which steps as AdamW does."""
        return self.variant.startswith("off")

    @property
    def method(self) -> str:
        """Optimizer and variant."""
        return "frozen" if self.frozen else f"{self.optimizer} ({self.variant})" if self.variant else self.optimizer

    @property
    def place(self) -> str:
        """Format, how it is stored, and the casts beside it."""
        stored = "" if self.storage in ("", "master") else f" {self.storage}"
        return f"{self.format}{stored}" + (f", {self.casts}" if self.casts else "")

    @property
    def stored(self) -> str:
        """How weights are kept between steps."""
        if self.storage in ("", "master"):
            return {"BF16": "bfloat16"}.get(self.format, "float32")
        return f"{self.format} {self.storage}"

    @property
    def label(self) -> str:
        """All of it in one line."""
        return f"{self.place}, {self.method}"

    def with_(self, **changes: Any) -> "Arm":
        """The same arm but for these."""
        return replace(self, **changes)


def optimizer_name(kind: str) -> str:
    """An optimizer for people: as its paper writes it where we know, else its kind."""
    return {STANDARD: "AdamW", MANIFOLD: "ManifoldAdamW", "sgd": "SGD", "madam": "Madam"}.get(kind, kind)


def arm_of(spec: Mapping[str, Any]) -> Arm:
    """The arm of a spec; whatever a damaged or foreign one lacks is `?`."""
    optimizer = _mapping(spec.get("optimizer"))
    weights, casts = _casts(spec)
    storages = [rule for rule in _mappings(spec.get("storage")) if rule.get("kind") not in (None, "master")]
    if storages:
        format_ = "+".join(_unique(_format(rule) or "?" for rule in storages))
        storage = "+".join(_unique(rule["kind"] for rule in storages))
        if weights:
            casts = f"weight {weights}" + (f", {casts}" if casts else "")
    elif weights:
        format_, storage = weights, "master"
    else:
        format_, storage = BASELINES.get(str(spec.get("compute", "float32")), "?"), ""
    kind = str(optimizer.get("kind", "?"))
    rest = {key: spec.get(key) for key in ("precision", "storage", "compute", "interventions")}
    rest |= {key: spec[key] for key in ("evaluate_with",) if key in spec}
    rest |= {"optimizer": {key: value for key, value in optimizer.items() if key not in SHARED | {"lr"}}}
    detail = json.dumps(_settled(rest), sort_keys=True, default=str)
    return Arm(format_, storage, casts, kind, _variant(kind, optimizer), optimizer.get("lr") == 0, detail)


def condition_of(spec: Mapping[str, Any]) -> str:
    """What must be equal for two runs to be comparable, as canonical JSON."""
    optimizer = _mapping(spec.get("optimizer"))
    rest: dict[str, Any] = {key: value for key, value in _of_any_seed(spec).items() if key not in FREE | PARTS}
    rest |= {f"optimizer.{key}": optimizer.get(key) for key in SHARED}
    rest |= {"init_from": bool(spec.get("init_from"))}
    return json.dumps(_settled(rest), sort_keys=True, default=str)


def settings_of(spec: Mapping[str, Any], *, rate: bool = True) -> str:
    """All that decides a result but the seed, as canonical JSON: runs that agree in it are of one arm and rate.

    rate: False leaves the peak learning rate out.
    """
    kept = {key: value for key, value in _of_any_seed(spec).items() if key not in FREE}
    if not rate and isinstance(kept.get("optimizer"), Mapping):
        kept["optimizer"] = {key: value for key, value in kept["optimizer"].items() if key != "lr"}
    return json.dumps(_settled(kept), sort_keys=True, default=str)


def differing(conditions: Iterable[str]) -> dict[str, str]:
    """For each condition the leaves in which it differs from the first one (the first: from any), in words."""
    trees = {text: dict(leaves(json.loads(text))) for text in conditions}
    paths = _unique(path for tree in trees.values() for path in tree)
    first = next(iter(trees), "")
    found = {}
    for text, tree in trees.items():
        others = trees.values() if text == first else [trees[first]]
        told = [path for path in paths if any(str(tree.get(path)) != str(other.get(path)) for other in others)]
        found[text] = ", ".join(f"{path} {tree.get(path, 'absent')}" for path in told[:6])
    return found


def rules_said(spec: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The rules of a part of a spec that are rules, those of all its phases one after the other."""
    found = spec.get(part)
    if part == "storage" and isinstance(precision := spec.get("precision"), Mapping):
        later = [{"rules": phase["storage"]} for phase in precision.get("phases") or () if phase.get("storage")]
        found = {"phases": [{"rules": found}, *later]}
    parts = (found.get("phases") or [found]) if isinstance(found, Mapping) else [found]
    rules = [each.get("rules") if isinstance(each, Mapping) else each for each in parts]
    return [rule for some in rules if isinstance(some, list | tuple) for rule in some if isinstance(rule, Mapping)]


def cast_text(spec: Mapping[str, Any]) -> str:
    """What enters the products in which format: `weight, input e4m3fn; grad e5m2`, scalings by name; `none`."""
    rules = rules_said(spec, "precision")
    operands: dict[str, list[str]] = {}
    for operand, short in OPERANDS.items():
        if formats := _unique(_scaled(rule.get(operand)) for rule in rules):
            operands.setdefault("+".join(formats), []).append(short)
    return "; ".join(f"{', '.join(shorts)} {formats}" for formats, shorts in operands.items()) or "none"


def recipe_of(spec: Mapping[str, Any]) -> str:
    """The recipe that a run's casts came from, by its stored note, those of phases one after the other:
    `te_nvfp4 until 82%, te_nvfp4 (forward none)`. Empty where a part of them came from none.
    """
    if name := _noted(spec.get("recipe")):
        return name
    phases = [(precision := _mapping(spec.get("precision"))), *_mappings(precision.get("phases"))]
    names = [_noted(phase.get("recipe")) for phase in phases[len(phases) > 1 :]]
    ends = [f" until {phase['until']}" if phase.get("until") else "" for phase in phases[len(phases) > 1 :]]
    return ", ".join(map(str.__add__, names, ends)) if all(names) else ""


def told_apart(specs: Sequence[Mapping[str, Any]], most: int = 3) -> list[str]:
    """For each spec the values, but for rate and seed, in which the specs differ: `betas 0.9, scaling.kind mx`."""
    trees = [dict(leaves(_settled({k: v for k, v in spec.items() if k not in FREE}))) for spec in specs]
    paths = [path for path in _unique(path for tree in trees for path in tree) if path != "optimizer.lr"]
    varying = [path for path in paths if len({str(tree.get(path)) for tree in trees}) > 1][:most]
    short = {path: ".".join(path.split(".")[-2:]) for path in varying}
    return [", ".join(f"{short[path]} {tree[path]}" for path in varying if path in tree) for tree in trees]


def unique_names(arms: Sequence[tuple[Mapping[str, Any], str, str]]) -> list[str]:
    """A name for each of some arms, given a spec (empty where nobody knows it), the name that its user gave, and the id
    of a run of it: the shortest way of naming that tells them all apart.
    """
    specs, given, ids = [spec for spec, _, _ in arms], [name for _, name, _ in arms], [id for _, _, id in arms]
    kinds = [arm_of(spec) if isinstance(spec.get("optimizer"), Mapping) else None for spec in specs]
    places, labels = ([getattr(kind, word, name) for kind, name in zip(kinds, given, strict=True)]
                      for word in ("place", "label"))  # fmt: skip
    rates = [f"lr {rate_of(spec):g}" for spec in specs]
    by_rate_alone = rates if len({settings_of(spec, rate=False) for spec in specs}) == 1 else given
    placed, rated, labelled = ([f"{name}, {more}" for name, more in zip(names, words, strict=True)]
                               for names, words in ((given, places), (given, rates), (labels, rates)))  # fmt: skip
    projects = [f"{spec.get('project')}/{name}" for spec, name in zip(specs, given, strict=True)]
    recipes = [recipe_of(spec) or place for spec, place in zip(specs, places, strict=True)]
    for names in (given, by_rate_alone, recipes, places, placed, labels, rated, labelled, projects):
        if len(set(names)) == len(names):
            return names
    found = list(labels if len(set(given)) == 1 else given)
    for name in {name for name in found if found.count(name) > 1}:
        alike = [index for index, other in enumerate(found) if other == name]
        for index, words in zip(alike, told_apart([specs[i] for i in alike]), strict=True):
            found[index] = f"{name} ({words or ids[index]})"
    return found if len(set(found)) == len(found) else [f"{name} ({i})" for i, name in enumerate(given, 1)]


def rate_of(spec: Mapping[str, Any]) -> float:
    """The peak learning rate; NaN where there is none."""
    rate = _mapping(spec.get("optimizer")).get("lr")
    return float(rate) if isinstance(rate, int | float) else float("nan")


def _variant(kind: str, optimizer: Mapping[str, Any]) -> str:
    if kind != MANIFOLD:
        return ""
    words = []
    precondition = str(optimizer.get("precondition", "update"))
    if precondition == "off" or optimizer.get("power") == 0:
        return "off"
    if precondition != "update":
        words.append(precondition)
    if (stiffness := str(optimizer.get("stiffness", "own"))) != "own":
        words.append(f"S {stiffness}")
    if (power := optimizer.get("power", 1.0)) != 1:
        words.append(f"p {power:g}" if isinstance(power, int | float) else f"p {power}")
    if (kappa := optimizer.get("kappa", 2**-6)) != 2**-6:
        words.append(f"kappa {kappa}")
    if (normalise := optimizer.get("normalise", "rms")) != "rms":
        words.append("S not normalised" if normalise == "none" else str(normalise))
    return ", ".join(words)


def _casts(spec: Mapping[str, Any]) -> tuple[str, str]:
    """(formats that weights are cast to, the other casts in words)."""
    rules = rules_said(spec, "precision")
    elsewhere = [rule for rule in rules if rule.get("place") in ("norms", "embeddings")]
    weights = _unique(_format(rule.get("weight")) for rule in rules if rule not in elsewhere)
    words = [f"{rule['place']} {fmt}" for rule in elsewhere if (fmt := _format(rule.get("weight")))]
    for part in ("attention", "outputs"):
        inside = (cast for rule in rules for name, cast in _mapping(rule.get(part)).items() if name != "operands")
        words += [f"{part} {'+'.join(found)}"] if (found := _unique(map(_format, inside))) else []
    for operand, short in OPERANDS.items():
        if operand != "weight" and (found := _unique(_format(rule.get(operand)) for rule in rules)):
            words.append(f"{short} {'+'.join(found)}")
    return "+".join(weights), ", ".join(words)


def _noted(note: Any) -> str:
    """The recipe of a stored note, and what of it was changed."""
    note = _mapping(note)
    changed = ", ".join(f"{path} {value}" for path, value in _mapping(note.get("changed")).items())
    return f"{note.get('expanded') or ''}" + (f" ({changed})" if changed else "")


def _scaled(cast: Any) -> str:
    """A cast's format, with its scaling where that is not the default one."""
    scaling = cast.get("scaling") if isinstance(cast, Mapping) else None
    kind = scaling.get("kind") if isinstance(scaling, Mapping) else scaling
    return f"{found} {kind}" if (found := _format(cast)) and kind not in (None, "current") else found


def _format(cast: Any) -> str:
    found = cast.get("format", "") if isinstance(cast, Mapping) else cast
    if isinstance(found, Mapping):
        return json.dumps(found.get("values"), separators=(",", ":"))
    return "" if found in (None, "none") else str(found)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def _unique(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _of_any_seed(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec, in which a run that it branches from is named without its seed: each seed has its own."""
    branch = spec.get("branch")
    if not isinstance(branch, Mapping):
        return spec
    return {**spec, "branch": {**branch, "run": re.sub(r"-s[0-9]+$", "", str(branch.get("run")))}}


def _settled(value: Any) -> Any:
    """Numbers in one way of writing: a service that knows one kind of number gives 0.0 back as 0."""
    if isinstance(value, Mapping):
        return {key: _settled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
