"""A recipe as a person reads it: its six slots, rule by rule, in words; and where two recipes differ.

    slot                    format   scale                     rounding      turned        besides
    forward.input           e2m1     nvfp4/16 te               nearest_even  -             -
    grad_weight.input       e2m1     nvfp4/16 te               nearest_even  hadamard 16   -

Read from a recipe's plain data, so that it costs no torch; nothing is checked here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from altgrad.recipes.recipe import Recipe
from altgrad.spec.annotations import plain

OPERANDS = ("weight", "input", "grad_output")
PRODUCTS = {
    "forward": ("input", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "input"),
}  # fmt: skip
ELSEWHERE = ("attention", "outputs")
"""Parts of a rule that cast something besides operands of layers."""
COLUMNS = ("format", "scale", "rounding", "turned", "besides")
NOTHING = "-"
Words = dict[str, str]


def slots_of(rule: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule, as plain data, has in each of the six slots; None: no cast."""
    found = {}
    for product, operands in PRODUCTS.items():
        said = rule.get(product) or {}
        for operand in operands:
            own = said.get(operand, "same") if isinstance(said, Mapping) else "same"
            cast = rule.get(operand) if own == "same" else own
            found[f"{product}.{operand}"] = None if cast in (None, "none") else cast
    return found


def slot_words(cast: Any, transform: Any) -> Words:
    """A cast and what turns its operand, by column; `-` for nothing."""
    if cast is None:
        return dict.fromkeys(COLUMNS, NOTHING)
    said = cast if isinstance(cast, Mapping) else {"format": cast}
    rest = {key: value for key, value in said.items() if key not in ("format", "scaling", "rounding")}
    return {
        "format": _format(said.get("format")),
        "scale": _worded(said.get("scaling", "current")),
        "rounding": str(said.get("rounding", "nearest_even")),
        "turned": _worded(transform) if transform not in (None, "none") else NOTHING,
        "besides": ", ".join(f"{key} {_worded(value)}" for key, value in rest.items()) or NOTHING,
    }


def card(recipe: Recipe) -> dict[str, Any]:
    """Everything that there is to know of a recipe, with its rules in words."""
    expansion = recipe.expansion()
    said = expansion.run.get("precision", {"rules": []})["rules"]
    rules = [
        {"place": _place(rule), "operands": rule.get("operands", "shared"), "slots": dict(_rows(rule))} for rule in said
    ]
    facts: dict[str, Any] = plain(recipe)
    beside = {
        "precision.phases": list(expansion.phases), "optimizer.kind": expansion.optimizer,
        "optimizer.states": dict(expansion.states),
    }  # fmt: skip
    run = {**expansion.run, **{key: said for key, said in beside.items() if said}}
    return {"name": recipe.name, **facts, "rules": rules, "run": run}


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, str]]:
    """Where two cards differ: in a slot of a place, or in another key of a run."""
    found = []
    left, right = dict(_flat(one)), dict(_flat(two))
    for place, what in dict.fromkeys([*left, *right]):
        values = [each.get((place, what), NOTHING) for each in (left, right)]
        if values[0] != values[1]:
            found.append({"place": place, "what": what, one["name"]: values[0], two["name"]: values[1]})
    return found


def in_line(words: Words) -> str:
    """A slot's words in a line; `-` where nothing is cast."""
    said = [words[column] for column in COLUMNS if words[column] != NOTHING]
    return " ".join(word for word in said if word != "nearest_even") or NOTHING


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    for rule in facts["rules"]:
        if all(words["format"] == NOTHING for words in rule["slots"].values()):
            yield (rule["place"], "every slot"), "not cast"
            continue
        for slot, words in rule["slots"].items():
            yield (rule["place"], slot), in_line(words)
        yield (rule["place"], "operands"), rule["operands"]
    for key, value in facts["run"].items():
        if key != "precision":
            yield ("run", key), _worded(value)


def _rows(rule: Mapping[str, Any]) -> Iterator[tuple[str, Words]]:
    elsewhere = [part for part in ELSEWHERE if isinstance(rule.get(part), Mapping)]
    in_layers = slots_of(rule)
    if rule.get("place") in ("norms", "embeddings") and rule.get("weight") is not None:
        yield "weight", slot_words(rule["weight"], None)
        in_layers = {}
    elif elsewhere and not any(in_layers.values()):
        in_layers = {}
    for slot, cast in in_layers.items():
        product = rule.get(slot.partition(".")[0])
        yield slot, slot_words(cast, product.get("transform") if isinstance(product, Mapping) else None)
    for part in elsewhere:
        for name, cast in rule[part].items():
            if name != "operands":
                yield f"{part}.{name}", slot_words(None if cast == "none" else cast, None)


def _place(rule: Mapping[str, Any]) -> str:
    return str(rule.get("place") or rule.get("match") or "blocks.*")


def _format(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"table of {len(value.get('values', ()))}"
    return str(value)


def _worded(value: Any) -> str:
    """Plain data in a few words: a kind with its size, then what else is chosen."""
    if isinstance(value, list | tuple):
        return "; ".join(map(_worded, value))
    if not isinstance(value, Mapping):
        return str(value)
    rest = {key: item for key, item in value.items() if key not in ("kind", "size")}
    head = str(value.get("kind", "")) + (f"/{value['size']}" if "size" in value else "")
    bare = ("arithmetic", "shape", "mode", "signs", "rounding", "format", "match")  # words that say what they are
    said = [_worded(item) if key in bare else f"{key} {_worded(item)}" for key, item in rest.items()]
    return " ".join(filter(None, [head, *said]))
