"""python -m bench.recipe_pages: docs/recipes/, the recipe book as pages; written from the YAMLs, without torch.

    README.md         every recipe in a row: what its products multiply, scales, bits, operations, proof
    <name>.md         one recipe: whose it is, its six slots, what stays high, what is left out, claim, proof
    DIFFERENCES.md    who differs from whom: recipes of one name, slot by slot, and references of one definition; the
                      table of their casts on the same numbers is measured by `bench.recipe_differences` and kept

A test fails where a page says otherwise than the book.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from altgrad.recipes.book import recipes
from altgrad.recipes.card import COLUMNS, NOTHING, card, differences
from altgrad.recipes.recipe import Recipe
from altgrad.reports.product_cost import product_cost
from altgrad.reports.sections.recipes import operations_text

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "recipes"
DIFFERENCES, MEASURED = "DIFFERENCES.md", "casts"
MADE = "*Written by `python -m bench.recipe_pages` from `altgrad/recipes/`; change it there.*"
SHORT = {"forward": "y", "grad_input": "dx", "grad_weight": "dW"}
OPERANDS = {"forward": ("input", "weight"), "grad_input": ("grad_output", "weight"),
            "grad_weight": ("grad_output", "input")}  # fmt: skip


def pages() -> dict[str, str]:
    """The pages by their file's name."""
    book = recipes()
    found = {f"{recipe.name}.md": _page(recipe, card(recipe)) for recipe in book}
    return {"README.md": _index(book), DIFFERENCES: _differences(book), **found}


def write(folder: Path = FOLDER) -> None:
    """Write them, and remove those of recipes that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    told = pages()
    for path in folder.glob("*.md"):
        if path.name not in told:
            path.unlink()
    for name, text in told.items():
        (folder / name).write_text(text, encoding="utf-8")


def _index(book: Sequence[Recipe]) -> str:
    proved = sum(bool(recipe.proof) for recipe in book)
    rows = [_index_row(recipe, card(recipe)) for recipe in book]
    head = ("recipe", "y = x W", "dx = g W", "dW = g x", "weight's scale", "gradient's rounding", "bits moved: weight",
            "token", "extra operations", "proof")  # fmt: skip
    return _text(
        "# The recipe book", MADE,
        f"{len(book)} published recipes of low-precision training, {proved} of them compared with their authors' code "
        "by the tests that each page names. `recipe: NAME` in a run's spec takes one, `altgrad recipes list | show "
        "NAME | diff A B` prints them, and `altgrad sweep matrices/recipes.yaml` trains with every one of them.",
        _table(head, rows),
        "Formats of the two operands of each product, `-` where one is not cast, with the Hadamard matrix that turns "
        "both. Scales and roundings are those of the first slot that casts. Bits of an element of a weight, and of "
        "what a token brings (inputs and gradients), each time that a product reads it, with its share of block "
        "scales; uncast operands have those of the recipe's compute dtype. Extra operations: transforms, and casts "
        "beyond one for each operand. All of it is for layers that are cast.",
        "[Who differs from whom](DIFFERENCES.md): recipes of one name, and references of one definition.",
    )  # fmt: skip


def _index_row(recipe: Recipe, facts: Mapping[str, Any]) -> tuple[str, ...]:
    link, proof = f"[{recipe.name}]({recipe.name}.md)", "yes" if recipe.proof else "unproved"
    slots = next(
        (rule["slots"] for rule in facts["rules"] if "forward.input" in rule["slots"] and not _is_high(rule)), None
    )
    if slots is None:
        stored = ", ".join(f"{rule['kind']} {rule['format']}" for rule in facts["run"].get("storage", ()))
        formats = dict.fromkeys(cast["format"] for cast in facts["run"].get("optimizer.states", {}).values())
        kept = f"stored: {stored}" if stored else f"states: {', '.join(formats)}"
        return link, NOTHING, NOTHING, NOTHING, kept, NOTHING, NOTHING, NOTHING, "none", proof
    made = [_product(slots, product) for product in SHORT]
    cost = product_cost(facts["run"])
    scale, rounding = (
        next((w[column] for name, w in slots.items() if name.endswith(operand) and w[column] != NOTHING), NOTHING)
        for operand, column in (("weight", "scale"), ("grad_output", "rounding"))
    )
    return (link, *made, scale, rounding, f"{cost.weight:.4g}", f"{cost.token:.4g}", operations_text(cost), proof)


def _product(slots: Mapping[str, Mapping[str, str]], product: str) -> str:
    """`e2m1 x e2m1, hadamard/16`."""
    both = [slots[f"{product}.{operand}"] for operand in OPERANDS[product]]
    turned = both[0]["turned"].split()[0] if both[0]["turned"] != NOTHING else ""
    formats = [words["format"] for words in both]
    if formats == [NOTHING, NOTHING]:
        return NOTHING
    return " x ".join(formats) + (f", {turned}" if turned else "")


def _page(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    also = f"; also called {', '.join(recipe.aliases)}" if recipe.aliases else ""
    cost = product_cost(facts["run"])
    parts = [f"# {recipe.title}", MADE, f"`recipe: {recipe.name}`{also}. {_source(recipe)}"]
    parts += [f"> {recipe.claim}"] if recipe.claim else []
    parts += ["## What it casts"] if facts["rules"] else []
    for number, rule in enumerate(facts["rules"]):
        named = f"Rule {number}, `{rule['place']}`"
        if _is_high(rule):
            parts.append(f"{named}: not cast.")
            continue
        own = " Each product casts its operands for itself." if rule["operands"] == "per_product" else ""
        parts.append(f"{named}.{own}")
        columns = [c for c in COLUMNS if any(words[c] != NOTHING for words in rule["slots"].values())]
        rows = [(f"`{slot}`", *(words[c] for c in columns)) for slot, words in rule["slots"].items()]
        parts.append(_table(("slot", *columns), rows))
    if any(not _is_high(rule) for rule in facts["rules"]):
        parts.append(
            f"An element that enters a product has {cost.weight:.4g} bits of a weight and {cost.token:.4g} of what a "
            f"token brings, block scales included. Extra operations: {operations_text(cost)}."
        )
    if others := [f"`{key}: {_plain(value)}`" for key, value in facts["run"].items() if key != "precision"]:
        parts.append(f"Also of the run: {', '.join(others)}.")
    if recipe.parameters:
        rows = [(f"`{key}`", f"`{_plain(value)}`") for key, value in recipe.parameters.items()]
        parts += ["## What can be chosen", _table(("parameter", "default"), rows)]
    parts += ["## What stays high", recipe.stays_high] if recipe.stays_high else []
    if recipe.leaves_out:
        rows = [(each.what, each.matters) for each in recipe.leaves_out]
        parts += ["## What is left out", _table(("what", "how that may matter"), rows)]
    parts += ["## Proof", _proof(recipe)]
    return _text(*parts)


def _source(recipe: Recipe) -> str:
    source, code = recipe.source, recipe.reference
    where = f", [arXiv {source.arxiv}](https://arxiv.org/abs/{source.arxiv})" if source.arxiv else ""
    where += f", {source.url}" if source.url else ""
    text = f"{source.authors}{where}."
    if code is not None:
        version = " ".join(filter(None, [code.version, f"commit `{code.commit[:12]}`" if code.commit else ""]))
        files = f": {', '.join(f'`{file}`' for file in code.files)}" if code.files else ""
        text += f" Reference: {code.repository or code.package} {version}".rstrip() + f"{files}."
    return text


def _proof(recipe: Recipe) -> str:
    if not recipe.proof:
        return f"Unproved: {recipe.unproved}."
    return "\n".join(f"* `{test}`" for test in recipe.proof)


def _differences(book: Sequence[Recipe]) -> str:
    parts = [
        "# Who differs from whom", MADE,
        "One name may be several recipes, and one definition several programs that agree but in the last bits.",
        "## Recipes of one name",
    ]  # fmt: skip
    cards = {recipe.name: card(recipe) for recipe in book}
    for alias, names in _shared_names(book).items():
        parts.append(f"**{alias}** may be {' or '.join(f'[{name}]({name}.md)' for name in names)}.")
        for one, two in combinations(names, 2):
            rows = [(r["place"], r["what"], r[one], r[two]) for r in differences(cards[one], cards[two])]
            parts.append(_table(("place", "what", one, two), rows) if rows else f"{one} and {two} cast alike.")
    by: dict[str, list[str]] = {}
    for recipe in book:
        for name in dict.fromkeys(_arithmetics(cards[recipe.name]["run"].get("precision"))):
            by.setdefault(name, []).append(f"[{recipe.name}]({recipe.name}.md)")
    parts += [
        "## References of one definition",
        "A recipe's `arithmetic` is the order in which its reference multiplies and divides on the way to a scale and "
        "a code. Where a recipe names none it is `divide`.",
        _table(("arithmetic", "recipes"), [(f"`{name}`", ", ".join(links)) for name, links in sorted(by.items())]),
        "How far two arithmetics are apart on the recorded inputs is in [CONFORMANCE.md](../CONFORMANCE.md).",
        "## Their casts on the same numbers",
        *_measured(),
    ]
    return _text(*parts)


def _shared_names(book: Iterable[Recipe]) -> dict[str, list[str]]:
    """Aliases that more than one recipe has, as the book looks them up."""
    found: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    for recipe in book:
        for alias in recipe.aliases:
            folded = re.sub(r"[\s_-]", "", alias).casefold()
            said.setdefault(folded, alias)
            if recipe.name not in found.setdefault(folded, []):
                found[folded].append(recipe.name)
    return {said[folded]: names for folded, names in sorted(found.items()) if len(names) > 1}


def _arithmetics(value: Any) -> list[str]:
    """Those that plain data names."""
    if isinstance(value, Mapping):
        own = [str(value["arithmetic"])] if "arithmetic" in value else []
        return own + [name for item in value.values() for name in _arithmetics(item)]
    return [name for item in value for name in _arithmetics(item)] if isinstance(value, list | tuple) else []


def _measured() -> list[str]:
    """What `bench.recipe_differences` has written between its markers."""
    path = FOLDER / DIFFERENCES
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(f"<!-- {MEASURED}: begin -->.*<!-- {MEASURED}: end -->", text, re.DOTALL)
    return [] if found is None else [found[0]]


def _is_high(rule: Mapping[str, Any]) -> bool:
    return all(words["format"] == NOTHING for words in rule["slots"].values())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def _text(*parts: str) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


if __name__ == "__main__":
    write()
