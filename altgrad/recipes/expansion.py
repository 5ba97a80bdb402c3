"""Recipes in a spec replaced by what they say, in the document, before it is validated.

    recipe: deepseek_v3                    every key of the run that the recipe says and the spec does not
    precision: deepseek_v3                 its casts alone
    precision: {recipe: deepseek_v3, set: {weight.rounding: stochastic}, rules: [...]}
                                           its casts, changed; and rules that come before its own

What a spec says itself wins. So does what is said later: a recipe named outside of the file (`--recipe`, `--set`, an
arm of a matrix) replaces what the file says. A recipe says of casts either which, or that there are none (`eco`); of
storage, loss scale, compute, gradients and interventions it may say nothing, and then the spec's stay. A recipe with
phases says `precision: {phases: ...}` of a run, and its rules alone where `precision` names it. An optimizer's kind
that the recipe says takes with it what every kind has of the spec's (`lr`, `weight_decay`, `groups`, `states`).
Whatever of a run is not the recipe's is in the note, and people are told.

Each part of an expansion keeps its place in the recipe's file, which is what errors and `--dry-run` name. What a recipe
was is left as a note (`altgrad.recipes.note`).
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from altgrad.document import Document, Location
from altgrad.recipes.book import find
from altgrad.recipes.card import OPERANDS, PRODUCTS, slots_of
from altgrad.recipes.note import RecipeNote
from altgrad.recipes.recipe import RUN_KEYS, Expansion
from altgrad.spec import LocatedError
from altgrad.spec.annotations import Shape
from altgrad.spec.assignment import put
from altgrad.spec.messages import listed

ANY_KINDS = ("lr", "weight_decay", "groups", "states")
"""What every kind of optimizer has."""


def chooses_recipe(assignment: str) -> bool:
    """Whether a `path=value` names a recipe, or says a whole key in its place, rather than a part of its expansion."""
    path = assignment.partition("=")[0].strip()
    return path in RUN_KEYS or path.startswith(("recipe", "precision.recipe", "precision.set"))


def note_changes(document: Document, assignments: Iterable[str]) -> None:
    """Have the notes of a run spec remember which parts of an expansion these `path=value` change."""
    data = document.data
    for path, _, value in (each.partition("=") for each in assignments):
        first, _, rest = path.strip().partition(".")
        of_run, of_precision = (_get(data, at) for at in (("recipe",), ("precision", "recipe")))
        if first == "precision" and isinstance(of_precision, dict):
            of_precision.setdefault("changed", {})[rest] = value
        elif first in RUN_KEYS and isinstance(of_run, dict):
            of_run.setdefault("changed", {})[path.strip()] = value


def expand_run(document: Document, cls: type[Shape]) -> bool:
    """Expand the recipes of a run spec, in place; whether there were any. cls: of the spec.

    LocatedError for a name that is no recipe, and for changes that do not fit it. The values that the document has are
    replaced and not changed.
    """
    data = document.data
    if not isinstance(data, dict):
        return False
    _refuse_changed_note(document, ("recipe",))
    note = _asked(data.get("recipe"))
    if note is not None:
        expansion = _expansion(note, ("recipe",))
        said, outside = {**expansion.run, **_in_phases(expansion, cls)}, _is_outside(document, ("recipe",))
        kept = [key for key in said if key in data and not (outside and not _is_outside(document, (key,)))]
        taken = [key for key in said if key not in kept]
        facts = {
            "without": [key for key in kept if not _same(key, data[key], said[key])],
            "besides": [key for key in RUN_KEYS if key not in said and not _same(key, data.get(key), None)],
            "replaced": [key for key in taken if key in data and not _same(key, data[key], said[key])],
        }
        for key in taken:
            _forget(document, (key,))
            data[key] = copy.deepcopy(said[key])
        _place(document, expansion, {key: (key,) for key in taken})
        for number in range(len(expansion.phases) if "precision" in taken else 0):
            _place(document, expansion, {"precision": ("precision", "phases", number)})
        _add_optimizer(document, expansion, outside, facts)
        data["recipe"] = _noted(note, expansion, **facts)
    inner = expand_policy(document, cls, ("precision",))
    return note is not None or inner


def _in_phases(expansion: Expansion, cls: type[Shape]) -> dict[str, Any]:
    """The precision of a run by a recipe with phases: in each its rules, with what the phase sets."""
    phases: list[dict[str, Any]] = []
    for number, phase in enumerate(expansion.phases):
        asked = {"recipe": {"name": expansion.recipe, **expansion.parameters}, "set": phase.get("set", {})}
        own = Document.of({"precision": asked}, expansion.recipe)
        try:
            expand_policy(own, cls, ("precision",))
        except LocatedError as error:
            raise LocatedError(("recipe",), f"phase {number} of {expansion.recipe}: {error}") from None
        phases.append({**phase, "rules": own.data["precision"]["rules"]})
        phases[-1].pop("set", None)
    return {"precision": {"phases": phases}} if phases else {}


def _add_optimizer(document: Document, expansion: Expansion, outside: bool, facts: Mapping[str, list[str]]) -> None:
    """Say the recipe's kind of optimizer and its states under `optimizer`, unless the spec says its own there
    (`states: {}` for none), and add to the facts of the note what that comes to."""
    optimizer, at, kind = document.data.get("optimizer"), ("optimizer", "states"), expansion.optimizer
    optimizer = {"kind": optimizer} if isinstance(optimizer, str) else optimizer
    if optimizer is None and kind is not None:
        document.data["optimizer"] = optimizer = {"kind": kind}
        _place(document, expansion, {"optimizer": ("optimizer",)})
    if not isinstance(optimizer, Mapping):
        return
    if kind is not None and optimizer.get("kind") != kind:
        wins = not outside or any(_is_outside(document, each) for each in (("optimizer",), ("optimizer", "kind")))
        facts["without" if wins else "replaced"].append("optimizer.kind")
        if not wins:
            of_any = {key: optimizer[key] for key in ANY_KINDS if key in optimizer}
            document.data["optimizer"] = optimizer = {"kind": kind, **of_any}
            _place(document, expansion, {"optimizer": ("optimizer",)})
    own, name = optimizer.get("states"), ".".join(at)
    if not expansion.states:
        facts["besides"].extend([name] * bool(own))
        return
    if "states" in optimizer and own != expansion.states:
        wins = not (outside and not _is_outside(document, at))
        facts["without" if wins else "replaced"].append(name)
        if wins:
            return
    _forget(document, at)
    document.data["optimizer"] = {**optimizer, "states": copy.deepcopy(dict(expansion.states))}
    _place(document, expansion, {"states": at})


def expand_policy(document: Document, cls: type[Shape], at: tuple[str, ...]) -> bool:
    """The same for the precision that stands there."""
    value = _get(document.data, at)
    if isinstance(value, str) and value != "none":
        value = {"recipe": value}
    where = (*at, "recipe")
    _refuse_changed_note(document, where)
    note = _asked(value.get("recipe")) if isinstance(value, dict) else None
    if note is None:
        return False
    expansion = _expansion(note, where)
    if not expansion.run["precision"]["rules"]:
        raise LocatedError(
            where, f"{expansion.recipe} casts nothing: it says {listed(expansion.beside, 'and')}. Use recipe: "
            f"{expansion.recipe}, a key of the run.",
        )  # fmt: skip
    own = value.get("rules") or ()
    if not isinstance(own, list | tuple):
        return False
    theirs = copy.deepcopy(expansion.run["precision"]["rules"])
    changes = dict(_flat(value.get("set") or {}, ""))
    origin = document.where((*at, "set"))
    known = {key: item for key, item in value.items() if key not in ("recipe", "set", "rules")}
    others = [key for key in expansion.beside if key not in document.data] if at else []
    others += ["precision.phases"] if at and expansion.phases else []
    made = {
        **known, "rules": [*own, *theirs],
        "recipe": _noted(note, expansion, without=others, changed=changes, own_rules=len(own)),
    }  # fmt: skip
    _set(document, at, made)
    _place(document, expansion, {"precision": at}, len(own))
    for path, change in changes.items():
        _change(document, cls, (*at, "rules"), path, change, origin)
    return True


def _same(key: str, value: Any, other: Any) -> bool:
    """Whether a key of a run, as it is written, says the same as another; None: as a run that does not say it."""
    nothing: dict[str, Any] = {
        "precision": {"rules": []}, "compute": "float32", "storage": [], "loss_scale": 1, "gradients": {},
        "interventions": [],
    }  # fmt: skip

    def plainly(said: Any) -> Any:
        said = list(said) if isinstance(said, tuple) else said
        return nothing[key] if said in (None, "none", {}, {"factor": 1}) else said

    return bool(plainly(value) == plainly(other))


def _refuse_changed_note(document: Document, at: Location) -> None:
    """LocatedError for a parameter that is set in a note, which would change nothing."""
    note = _get(document.data, at)
    if isinstance(note, Mapping) and note.get("expanded") is not None:
        for key in note:
            if _is_outside(document, (*at, key)):
                raise LocatedError(
                    (*at, key), f"this spec has what the recipe {note['expanded']} said already, so that {key} would "
                    f"change nothing; name the recipe again: {{name: {note['expanded']}, {key}: ...}}.",
                )  # fmt: skip


def _asked(value: Any) -> RecipeNote | None:
    """The recipe that a spec asks for; None for a note, and for what is neither, which validation refuses."""
    try:
        note = None if value is None else RecipeNote.model_validate(value)
    except ValidationError:
        return None
    return note if note is not None and note.name is not None else None


def _expansion(note: RecipeNote, at: Location) -> Expansion:
    assert note.name is not None
    try:
        return find(note.name).expansion(**note.parameters)
    except ValueError as error:
        raise LocatedError(at, str(error)) from None


def _noted(note: RecipeNote, expansion: Expansion, **facts: Any) -> dict[str, Any]:
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items() if value}
    return {"expanded": expansion.recipe, **said, **note.parameters}


def _change(document: Document, cls: type[Shape], at: Location, path: str, value: Any, origin: str) -> None:
    """Set a part of each rule of the recipe that casts what the path names."""
    first, *rest = path.split(".")
    name = _get(document.data, at[:-1])["recipe"]["expanded"]
    rules = _get(document.data, at)
    begin = _get(document.data, at[:-1])["recipe"].get("own_rules", 0)
    numbers = [n for n in range(begin, len(rules)) if _casting(rules[n])]
    slot = f"{first}.{rest[0]}" if first in PRODUCTS and rest and rest[0] in PRODUCTS[first] else first
    if slot in OPERANDS or "." in slot:
        cast = sorted({each for n in numbers for each in _casting(rules[n])})
        if slot not in cast:
            message = f"set names {slot}, which {name} does not cast; it casts {listed(cast, 'and')}."
            raise LocatedError((*at[:-1], "set"), message)
        numbers = [n for n in numbers if slot in _casting(rules[n])]
        for n in numbers if "." in slot and len(rest) > 1 else ():
            product = rules[n].setdefault(first, {})
            if product.get(rest[0], "same") == "same":  # one slot of two that share a cast
                product[rest[0]] = copy.deepcopy(rules[n][rest[0]])
    elif first not in ("operands", *PRODUCTS):
        known = [*OPERANDS, *PRODUCTS, "operands"]
        raise LocatedError((*at[:-1], "set"), f"set names '{first}', which no rule has; it takes {listed(known)}.")
    for n in numbers:
        put(document, cls, [*map(str, at), str(n), first, *rest], copy.deepcopy(value), origin)


def _casting(rule: Mapping[str, Any]) -> set[str]:
    """The slots that a rule casts, and the operands that its short names cast."""
    short = {operand for operand in OPERANDS if rule.get(operand) not in (None, "none")}
    return short | {slot for slot, cast in slots_of(rule).items() if cast is not None}


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """`{weight: {rounding: x}}` as `weight.rounding: x`; a mapping that is a cast of its own stays one."""
    if not isinstance(value, Mapping) or (prefix and {"format", "kind", "values"} & value.keys()):
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))


def _get(data: Any, at: Location) -> Any:
    for key in at:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _set(document: Document, at: Location, value: Any) -> None:
    if not at:
        document.data = value
    else:
        document.data[at[0]] = value


def _is_outside(document: Document, at: Location) -> bool:
    """Whether a value was not written in the document's text, but said after it."""
    place = document.values.get(at)
    return place is not None and re.search(r":\d+:\d+$", place) is None


def _forget(document: Document, at: Location) -> None:
    for places in (document.values, document.keys):
        for known in [known for known in places if known[: len(at)] == at]:
            del places[known]


def _place(document: Document, expansion: Expansion, taken: Mapping[str, Location], skipped: int = 0) -> None:
    """Let the document know where the recipe's file has what it says. skipped: rules that stand before its own."""
    for location, place in expansion.places.items():
        if location[0] not in taken:
            continue
        rest = location[1:]
        if location[0] == "precision" and len(rest) > 1 and isinstance(rest[1], int):
            rest = (rest[0], rest[1] + skipped, *rest[2:])
        if rest or location[0] != "precision":
            document.values[(*taken[str(location[0])], *rest)] = place
