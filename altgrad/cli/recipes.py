"""altgrad recipes: the published recipes, one of them in full, and where two differ.

Everything comes from `altgrad.recipes`, without torch; `list` does not even load what checks a recipe.
"""

from collections.abc import Mapping, Sequence
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
WIDE = 100
"""Columns from which on a terminal has room for papers in the list."""
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
    table = [[row["name"], _paper(row["paper"]), "" if row["proved"] else "unproved", row["title"]] for row in rows]
    narrow = console.interactive() and console.width() < WIDE
    keep = [0, 2, 3] if narrow else [0, 1, 2, 3]
    header = ["name", "paper", "proof", "title"]
    console.table([header[n] for n in keep], [[row[n] for n in keep] for row in table])
    if console.interactive():
        console.say_next({"altgrad recipes show NAME": "what it casts, and what it leaves out"})


def _paper(text: str) -> str:
    """arXiv's number; of an address at GitHub the repository."""
    host, found, rest = text.partition("github.com/")
    return "/".join(rest.split("/")[:2]) if found else host


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show what a recipe casts, slot by slot, what it leaves alone, and what AltGrad leaves out of it."""
    with console.one_line_errors():
        facts = _card(name)
    if as_json:
        console.print_json(facts)
    else:
        console.picture(_page(facts, min(console.width(), 120) if console.interactive() else 120))
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
        cells = [[row["place"], row["what"], *(row[name] for name in names)] for row in rows]
        header = ["place", "what", *names]
        widest = sum(max(map(len, column)) + 2 for column in zip(header, *cells, strict=True))
        if not console.interactive() or widest <= console.width():
            console.table(header, cells)
        else:
            console.picture(_one_below_the_other(rows, names, console.width()))


def _one_below_the_other(rows: Sequence[Mapping[str, str]], names: Sequence[str], width: int) -> list[Line]:
    """What differs, where a line has no room for both recipes; slots that differ alike are told once."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        alike.setdefault((row["place"], *(row[name] for name in names)), []).append(row["what"])
    lines: list[Line] = []
    for (place, *said), what in alike.items():
        lines.append(Line.of((f"{place}: ", ""), (", ".join(what), "bold")))
        lines += [
            Line.of("  ").then(each)
            for each in table_lines("", [], [list(pair) for pair in zip(names, said, strict=True)], width - 2)
        ]
    return lines


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
        lines += _slots(rule["slots"], width)
    others = [[key, _text(value)] for key, value in facts["run"].items() if key != "precision"]
    if others:
        lines += [Line.of(""), *table_lines("also of the run", [], others, width)]
    if facts["leaves_out"]:
        left = [[f"{n}", f"{each['what']} {each['matters']}"] for n, each in enumerate(facts["leaves_out"], 1)]
        lines += [Line.of(""), *table_lines("not done here, and how that may matter", [], left, width)]
    return lines


def _slots(slots: Mapping[str, Mapping[str, str]], width: int) -> list[Line]:
    """The six slots; what a product turns its operands by below them, where a line has no room for it."""
    columns = [each for each in SLOT_COLUMNS if any(words[each] != "-" for words in slots.values())]
    rows = [[slot, *(words[each] for each in columns)] for slot, words in slots.items()]
    turned = {slot.partition(".")[0]: words["turned"] for slot, words in slots.items() if words["turned"] != "-"}
    if not turned or sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) <= width:
        return table_lines("", ["slot", *columns], rows, width)
    at = columns.index("turned") + 1
    header, *rest = (row[:at] + row[at + 1 :] for row in (["slot", *columns], *rows))
    told = [[f"{product} turns both", by] for product, by in turned.items()]
    return [*table_lines("", header, rest, width), *table_lines("", [], told, width)]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
