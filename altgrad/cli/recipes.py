"""altgrad recipes: the published recipes, one of them in full, and where two differ.

Everything comes from `altgrad.recipes`, without torch; `list` does not even load what checks a recipe.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from altgrad.cli import completion, console
from altgrad.cli.usage import Program
from altgrad.display import Line, table_lines

app = Program(help="Show and compare published recipes of low-precision training.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A recipe, an alias, or a YAML by its path.", autocompletion=completion.recipes
    ),
]
SLOT_COLUMNS = ("format", "scale", "rounding", "turned", "besides")


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes of the book. `train --recipe NAME` takes one, as does `recipe: NAME` in a spec."""
    from altgrad.recipes import catalogue

    rows = []
    for name in catalogue.names():
        facts, source = catalogue.facts(name), catalogue.facts(name)["source"]
        paper = source.get("arxiv") or source.get("url") or ""
        rows.append({
            "name": name, "paper": str(paper), "proved": "proof" in facts, "title": facts["title"],
            "aliases": list(facts.get("aliases", ())), "authors": source["authors"],
        })  # fmt: skip
    if as_json:
        console.print_json(rows)
        return
    table = [[row["name"], row["paper"], "" if row["proved"] else "unproved", row["title"]] for row in rows]
    console.table(["name", "paper", "proof", "title"], table)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show what a recipe casts, slot by slot, what it leaves alone, and what AltGrad leaves out of it."""
    with console.one_line_errors():
        facts = _card(name)
    if as_json:
        console.print_json(facts)
    else:
        console.picture(_page(facts, min(console.width(), 120)))
        console.say_next({f"altgrad train SPEC --recipe {name}": "train by it"})


@app.command()
def diff(one: Name, two: Name, as_json: AsJson = False) -> None:
    """Show where two recipes differ: slots, places, and other keys of a run."""
    from altgrad.recipes.card import differences

    with console.one_line_errors():
        cards = _card(one), _card(two)
        rows = differences(*cards)
    names = [card["name"] for card in cards]
    if as_json:
        console.print_json(rows)
    elif not rows:
        console.say(f"{names[0]} and {names[1]} say the same.")
    else:
        console.table(
            ["place", "what", *names], [[row["place"], row["what"], *(row[name] for name in names)] for row in rows]
        )


def _card(name: str) -> dict[str, Any]:
    from altgrad.recipes.book import find
    from altgrad.recipes.card import card

    return card(find(name))


def _page(facts: Mapping[str, Any], width: int) -> list[Line]:
    lines = [Line.of((facts["name"], "bold"), f"  {facts['title']}")]
    source, reference = facts["source"], facts["reference"] or {}
    version = reference.get("version") or reference.get("commit")
    code = " ".join(filter(None, [reference.get("repository") or reference.get("package"), version]))
    paper = f"arXiv {source['arxiv']}" if source["arxiv"] else source["url"]
    about = {
        "by": ", ".join(filter(None, [source["authors"], paper])), "code": code, "claim": facts["claim"],
        "stays high": facts["stays_high"], "also called": ", ".join(facts["aliases"]),
        "parameters": ", ".join(f"{key}: {value}" for key, value in facts["parameters"].items()),
        "proof": ", ".join(facts["proof"]) or f"none: {facts['unproved']}",
    }  # fmt: skip
    lines += table_lines("", [], [[key, value] for key, value in about.items() if value], width)
    for number, rule in enumerate(facts["rules"]):
        shared = "" if rule["operands"] == "shared" else f", operands {rule['operands']}"
        lines += [Line.of(""), Line.of((f"rule {number}: {rule['place']}{shared}", "bold"))]
        if all(words["format"] == "-" for words in rule["slots"].values()):
            lines.append(Line.of("not cast"))
            continue
        rows = [[slot, *(words[column] for column in SLOT_COLUMNS)] for slot, words in rule["slots"].items()]
        used = [n for n in range(6) if n == 0 or any(row[n] != "-" for row in rows)]
        header = ["slot", *SLOT_COLUMNS]
        lines += table_lines("", [header[n] for n in used], [[row[n] for n in used] for row in rows], width)
    others = [[key, _text(value)] for key, value in facts["run"].items() if key != "precision"]
    if others:
        lines += [Line.of(""), *table_lines("also of the run", [], others, width)]
    if facts["leaves_out"]:
        left = [[f"{n}", f"{each['what']} {each['matters']}"] for n, each in enumerate(facts["leaves_out"], 1)]
        lines += [Line.of(""), *table_lines("not done here, and how that may matter", [], left, width)]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
