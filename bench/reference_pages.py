"""The site's reference, made from the code while the site is built: pages by their path, as Markdown.

    cli.md                     every command with its arguments and options, from the program itself
    run-spec.md, matrix-spec.md  every field, what it takes, its default and its sentence, from the committed schemas
    kinds.md                   what each family offers, from the classes
    formats.md                 the catalog
    symptoms.md                what `diagnose` looks for
    python.md                  the library's names, which mkdocstrings fills in

Nothing of it is kept in the repository, so that nothing of it can be stale.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import altgrad
from altgrad.formats import CATALOG, TABLES

ROOT = Path(__file__).resolve().parents[1]
Schema = Mapping[str, Any]
BENEATH = {
    "altgrad.formats": ("parse_format", "FloatFormat", "TableFormat"),
    "altgrad.quantize": ("round_to", "spacing", "gap", "rung", "at_rung", "Quantizer", "QuantizerSpec"),
    "altgrad.optim": ("AdamW", "SGD", "Lion", "Muon", "Madam", "ManifoldAdamW", "GridOptim", "stored"),
}
"""Names below the verbs that code outside relies on."""


def pages() -> dict[str, str]:
    """The pages by their path within the site."""
    return {
        "reference/cli.md": _cli(),
        "reference/run-spec.md": _spec("run", "Run spec, field by field"),
        "reference/matrix-spec.md": _spec("matrix", "Matrix, field by field"),
        "reference/kinds.md": _kinds(),
        "reference/formats.md": _formats(),
        "reference/symptoms.md": _symptoms(),
        "reference/python.md": _python(),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _text(*parts: str) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _said(sentences: str) -> str:
    """What the code says of itself, in which brackets are no links and stars no emphasis."""
    return re.sub(r"([\[\]*<])", r"\\\1", sentences)


def _code(value: Any) -> str:
    return f"`{value}`"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the program: its words, and click's object."""
    import typer

    from altgrad.cli.main import app

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                yield from walk(f"{words} {name}", each)
        else:
            yield words, command

    return walk("altgrad", typer.main.get_command(app))


def _cli() -> str:
    parts = ["# Command line", "`altgrad --help` and `altgrad COMMAND --help` print this."]
    for words, command in commands():
        arguments, options = [], []
        for each in command.params:
            if each.param_type_name == "argument":
                arguments.append((_code((each.metavar or each.name).upper()), _said(getattr(each, "help", "") or "")))
            elif "--help" not in each.opts:
                names = ", ".join(map(_code, [*each.opts, *each.secondary_opts]))
                said = each.default
                default = "" if said in (None, False, (), []) or callable(said) else _code(said)
                options.append((names, _said(each.help or ""), default))
        parts += [f"## {words}", _said(command.help or "")]
        parts += [table(("argument", "meaning"), arguments)] if arguments else []
        parts += [table(("option", "meaning", "default"), options)] if options else []
    return _text(*parts)


def _spec(name: str, title: str) -> str:
    schema = json.loads((ROOT / "matrices" / f"{name}.schema.json").read_text(encoding="utf-8"))
    parts = [f"# {title}", _said(schema["description"]), _fields(schema)]
    for key, each in schema["definitions"].items():
        long = each if "properties" in each else next((o for o in each.get("anyOf", ()) if "properties" in o), None)
        parts += [f"## {key}", _said(each.get("description", ""))]
        short = [_takes(option) for option in each.get("anyOf", ()) if "properties" not in option]
        parts += [f"Takes {', or '.join(dict.fromkeys(filter(None, short)))}."] if short and key != "format" else []
        parts += [_fields(long)] if long is not None and key != "format" else []
    return _text(*parts)


def _fields(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = [
        (_code(name), _takes(each), "required" if name in required else _code(json.dumps(each.get("default"))),
         _said(each.get("description", "Names the kind.")))
        for name, each in schema["properties"].items()
    ]  # fmt: skip
    return table(("field", "takes", "default", "meaning"), rows)


def _takes(schema: Schema) -> str:
    """What a field takes, in words, with links to what has a section of its own."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{re.sub(r'[^a-z0-9_-]', '', name.lower())})"
    if "const" in schema:
        return _code(schema["const"])
    if "enum" in schema:
        return ", ".join(_code("none" if each is None else each) for each in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_takes, schema["anyOf"]))))
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"a list of {_takes(items) if isinstance(items, dict) else 'values'}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
             "null": "null", "object": "a mapping"}  # fmt: skip
    limits = [
        f"{word} {schema[key]:,}"
        for key, word in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"),
                          ("exclusiveMaximum", "below"))
        if key in schema
    ]  # fmt: skip
    return " ".join(filter(None, [words.get(schema.get("type", ""), "anything"), " and ".join(limits)]))


def _kinds() -> str:
    from altgrad.spec.families import FAMILIES, family

    parts = ["# Kinds", "`altgrad kinds` prints this: what each family offers, what its kinds take and by default."]
    for name in FAMILIES:
        parts += [f"## {name}"]
        for kind in family(name):
            parts += [f"### {name} {kind['kind']}", _said(kind["summary"])]
            rows = [
                (_code(field["name"]), field["takes"],
                 _code(json.dumps(field["default"], ensure_ascii=False)) if "default" in field else "required",
                 _said(field.get("description", "")))
                for field in kind["fields"]
            ]  # fmt: skip
            parts += [table(("field", "takes", "default", "meaning"), rows)] if rows else []
    return _text(*parts)


def _formats() -> str:
    rows = [(_code(each.name), each.source, ", ".join(map(_code, each.aliases))) for each in (*CATALOG, *TABLES)]
    return _text(
        "# Formats",
        "Formats with a name of their own. Any other `e<E>m<M>[b<bias>][ieee|fn|fnuz|p3109|f]` of 2 to 16 bits is a "
        "format, too, and so is a table of values. `altgrad formats show NAME` prints one.",
        table(("name", "where it is used", "also called"), rows),
    )


def _symptoms() -> str:
    from altgrad.symptoms import SYMPTOMS

    parts = ["# Symptoms", "What `altgrad diagnose` looks for in a run's metrics."]
    for each in SYMPTOMS:
        parts += [f"## {each.name}", f"**{each.title}** ({each.where})."]
        limit = f"{each.worse} {each.threshold:g}" + (" times its own recent median" if each.against == "past" else "")
        parts += [f"A value of {', '.join(map(_code, each.keys))} {limit}, {each.lasting} observations in a row."]
        parts += [f"Why: {each.why}", f"Try: {each.remedy}"]
    return _text(*parts)


def _python() -> str:
    parts = ["# Python", "## altgrad", "Every name is `altgrad.<name>`, shown with the module that defines it."]
    parts += [f"::: {home}.{name}" for name, home in altgrad._HOMES.items()]
    for package, names in BENEATH.items():
        parts += [f"## {package}", *(f"::: {package}.{name}" for name in names)]
    return _text(*parts)
