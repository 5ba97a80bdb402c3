"""python -m bench.recipe_pages: docs/recipes, a page for each recipe, their table, and with --measure who differs.

Pages say what the YAML says, and a test compares them with it. The last page is measured: the forward casts of two
recipes on the same 131,072 values, since two vendors' casts of one name are not always the same cast.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from altgrad.recipes.book import find
from altgrad.recipes.card import COLUMNS, NOTHING, Words, card, in_line
from altgrad.recipes.catalogue import names

SHOWN = ("forward.input", "forward.weight", "grad_input.grad_output", "grad_weight.input")
FOLDER = Path(__file__).parents[1] / "docs" / "recipes"
PAIRS = [
    ("te_nvfp4", "torchao_nvfp4", "input", {}), ("te_nvfp4", "torchao_nvfp4", "weight", {}),
    ("te_nvfp4_4over6", "four_over_six", "input", {"by": "mse"}), ("four_over_six", "quartet2", "input", {}),
    ("te_nvfp4", "tetrajet_v2", "input", {}), ("te_nvfp4", "fp4_all_the_way", "input", {}),
    ("deepseek_v3", "torchao_blockwise", "input", {}), ("deepseek_v3", "torchao_blockwise", "weight", {}),
    ("te_block", "deepseek_v3", "input", {"scale": "real"}),
    ("te_block", "torchao_blockwise", "input", {"scale": "real"}),
    ("te_current", "torchao_tensorwise", "input", {}), ("torchao_tensorwise", "nanochat", "input", {}),
    ("te_mxfp8", "torchao_mxfp8", "input", {}), ("te_mxfp8", "mx", "input", {}),
    ("torchao_int8", "switchback", "input", {}), ("torchao_int8", "bitnet_b158", "input", {}),
]  # fmt: skip
"""Recipes that cast an operand to one format with scales of one kind; parameters of those that have them."""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _source(facts: dict[str, Any]) -> str:
    source = facts["source"]
    paper = f"[arXiv {source['arxiv']}](https://arxiv.org/abs/{source['arxiv']})" if source.get("arxiv") else ""
    return ", ".join(filter(None, [source["authors"], paper or f"<{source['url']}>"]))


def _reference(facts: dict[str, Any]) -> str:
    reference = facts.get("reference")
    if not reference:
        return "No code was published."
    where = reference.get("repository") or f"{reference['package']} (PyPI)"
    at = reference.get("commit") or reference.get("version")
    files = ", ".join(f"`{name}`" for name in reference["files"])
    return f"{where} at {at}: {files}."


def _rules(facts: dict[str, Any]) -> Iterator[str]:
    for rule in facts["rules"]:
        cast = any(map(is_cast, rule["slots"].values()))
        yield f"`{rule['place']}`" + ("" if cast else ": not cast.")
        yield ""
        if cast:
            rows = ([slot, *(words[column] for column in COLUMNS)] for slot, words in rule["slots"].items())
            yield from _table(["slot", *COLUMNS], rows)
            yield ""
            if rule["operands"] == "per_product":
                yield "Each product casts its operands for itself, along the axis that it sums over.\n"
    for key, value in facts["run"].items():
        if key != "precision":
            yield f"{key}: `{value if isinstance(value, str) else '; '.join(map(_one_line, value))}`\n"


def _one_line(value: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {item}" for key, item in value.items())


def page(name: str) -> str:
    """The page of a recipe."""
    facts = card(find(name))
    parameters = ", ".join(f"`{key}: {value}`" for key, value in facts["parameters"].items())
    left_out = ([each["what"].strip(), each["matters"].strip()] for each in facts["leaves_out"])
    lines = [
        f"# {name}: {facts['title']}", "",
        f"{_source(facts)}. {_reference(facts)}", "",
        *([f"The authors report: {facts['claim'].strip()}", ""] if facts["claim"] else []),
        f"Also called {', '.join(facts['aliases'])}." if facts["aliases"] else "", "",
        *([f"Parameters and their defaults: {parameters}.", ""] if parameters else []),
        "## What it casts", "", *_rules(facts),
        "## What stays high", "", facts["stays_high"].strip(), "",
        "## What AltGrad leaves out", "",
        *_table(["what", "how it may matter"], left_out),
        "", "## Proof", "",
    ]  # fmt: skip
    proof = [f"* `{node}`" for node in facts["proof"]]
    lines += proof or [f"Unproved: {facts['unproved']}."]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def is_cast(words: Words) -> bool:
    return words["format"] != NOTHING


def index() -> str:
    """The table of all recipes: the operands of the three products, what stays high, and whether it is proved."""
    rows = []
    for name in names():
        facts = card(find(name))
        casting = [rule["slots"] for rule in facts["rules"] if any(map(is_cast, rule["slots"].values()))]
        said = [in_line(casting[-1][slot]) if casting else NOTHING for slot in SHOWN]
        storage = "; ".join(map(_one_line, facts["run"].get("storage", ())))
        places = ", ".join(rule["place"] for rule in facts["rules"]) or f"storage {storage}"
        rows.append([f"[{name}]({name}.md)", facts["title"], places, *said, "proved" if facts["proof"] else "unproved"])
    proved = sum(row[-1] == "proved" for row in rows)
    head = ["recipe", "title", "places", "input", "weight", "grad_output in grad_input", "input in grad_weight", ""]
    return "\n".join([
        "# The recipe book", "",
        f"{len(rows)} published recipes, {proved} of them proved: their casts, taken from the book, have the bits of",
        "their authors' own code, or its law where they draw. `altgrad recipes show NAME` says the same in a terminal,",
        "`--recipe NAME` trains with it; [who differs from whom](differences.md) has how far two of them are apart.",
        "`python -m bench.recipe_pages` writes this folder.", "",
        *_table(head, rows), "",
    ])  # fmt: skip


def differences() -> str:
    """How far apart the casts of two recipes are."""
    from bench.recipe_differences import INPUTS, apart

    rows = []
    for one, two, operand, parameters in PAIRS:
        chosen = ", ".join(f"{key} {value}" for key, value in parameters.items())
        rows.append(
            [f"{one}, {two}" + (f" ({chosen})" if chosen else ""), operand, *apart(one, two, operand, parameters)]
        )
    return "\n".join([
        "# Who differs from whom", "",
        "Forward casts of two recipes on the same 131,072 values (512 x 256). *values* differ in any bit; *codes* are",
        "other numbers of the grid under the same scale; *scales* are those of blocks, rows or the tensor.", "",
        *_table(["recipes", "operand", *INPUTS], rows), "",
    ])  # fmt: skip


def main(arguments: list[str]) -> int:
    FOLDER.mkdir(exist_ok=True)
    for name in names():
        (FOLDER / f"{name}.md").write_text(page(name), encoding="utf-8")
    (FOLDER / "README.md").write_text(index(), encoding="utf-8")
    if "--measure" in arguments:
        (FOLDER / "differences.md").write_text(differences(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
