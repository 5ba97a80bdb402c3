"""`altgrad schema` and `altgrad kinds`: what they print."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from altgrad.cli import kinds, schema
from altgrad.recipes.catalogue import names
from altgrad.spec import json_schema
from altgrad.spec.families import FAMILIES, family
from altgrad.training.run import RunSpec


def cli(*arguments: str) -> Result:
    app = typer.Typer()
    app.add_typer(schema.app, name="schema")
    app.command()(kinds.kinds)
    return CliRunner().invoke(app, arguments)


def test_schema_run_prints_the_schema_and_nothing_else() -> None:
    result = cli("schema", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == json_schema(RunSpec, "AltGrad run spec")


def test_kinds_lists_every_family_and_its_fields() -> None:
    result = cli("kinds")
    heads = [line.split()[:2] for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    for expected in (["model", "gpt"], ["dataset", "text"], ["optimizer", "adamw"], ["monitor", "range"]):
        assert expected in heads
    assert ["scaling", "delayed"] in heads and result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["lr", "0.001", *["a", "number,", "0", "or", "more", "Peak", "learning", "rate."]] in rows
    assert "\x1b" not in result.stdout and all(line == line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_has_a_sentence_and_every_field_a_meaning_and_a_range(name: str) -> None:
    kinds = family(name)
    assert kinds and all(kind["summary"].endswith((".", ";", ":")) for kind in kinds)
    fields = [(kind["kind"], field) for kind in kinds for field in kind["fields"]]
    assert not [(kind, field["name"]) for kind, field in fields if not (field.get("description") and field["takes"])]


def test_kinds_of_one_family_as_json() -> None:
    found = json.loads(cli("kinds", "scaling", "--json").stdout)
    assert list(found) == ["scaling"]
    delayed = next(kind for kind in found["scaling"] if kind["kind"] == "delayed")
    assert delayed["summary"].startswith("The scale comes from the amaxes")
    history = {"name": "history", "takes": "a whole number from 1 to 65536", "default": 16}
    assert history | {"description": "Steps whose amaxes are kept."} in delayed["fields"]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("monitr", "'monitr' is not a family. Did you mean 'monitor'?\n"),
        (
            "x",
            f"'x' is not a family. There are {', '.join(FAMILIES)}.\n",
        ),
    ],
)
def test_an_unknown_family_is_one_line_and_exit_code_2(family: str, message: str) -> None:
    result = cli("kinds", family)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message)


@pytest.mark.parametrize("name", ["run", "matrix"])
def test_committed_schemas_are_not_stale(name: str) -> None:
    committed = Path(__file__).resolve().parents[2] / "matrices" / f"{name}.schema.json"
    assert committed.read_text() == cli("schema", name).stdout


def undescribed(node: object, path: str = "") -> list[str]:
    """Properties without a sentence; `kind` needs none, since the class has one."""
    if isinstance(node, list):
        return [name for each in node for name in undescribed(each, path)]
    if not isinstance(node, dict):
        return []
    properties = node.get("properties", {})
    own = [f"{path}/{name}" for name, each in properties.items() if not each.get("description") and "const" not in each]
    return own + [name for key, each in node.items() for name in undescribed(each, f"{path}/{key}")]


@pytest.mark.parametrize("name", ["run", "matrix"])
def test_every_field_of_a_spec_says_what_it_means(name: str) -> None:
    schema = json.loads((Path(__file__).resolve().parents[2] / "matrices" / f"{name}.schema.json").read_text())
    assert undescribed(schema) == []


def fractions(node: object) -> Iterator[tuple[str, str]]:
    """Fields that take a number of at most 1, each with its sentence."""
    for each in node if isinstance(node, list) else node.values() if isinstance(node, dict) else ():
        yield from fractions(each)
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            for choice in (field, *field.get("anyOf", ())):
                if choice.get("type") == "number" and 1 in (choice.get("maximum"), choice.get("exclusiveMaximum")):
                    yield name, field["description"]


def test_a_number_of_at_most_1_says_what_it_is_a_share_of_or_its_range() -> None:
    schema = json.loads((Path(__file__).resolve().parents[2] / "matrices" / "run.schema.json").read_text())
    says = re.compile(r"to 1\)|share|decay|relative error|quantile|p: 0", re.I)
    found = set(fractions(schema))
    assert len(found) > 20
    assert not [field for field in found if not says.search(field[1])]


def test_names_of_recipes_are_offered_and_paths_are_valid() -> None:
    definitions = json_schema(RunSpec, "")["definitions"]
    for place in (definitions["RecipeNote"], definitions["PrecisionPolicy"]):
        offered = [option["enum"] for option in place["anyOf"][0]["anyOf"] if "enum" in option]
        assert offered == [list(names())] and {"type": "string"} in place["anyOf"][0]["anyOf"]


def test_the_table_of_metrics_is_current() -> None:
    result = cli("kinds", "monitor", "--markdown")
    assert result.exit_code == 0
    path = Path(__file__).resolve().parents[2] / "docs" / "METRICS.md"
    assert path.read_text(encoding="utf-8") == result.stdout, "altgrad kinds monitor --markdown > docs/METRICS.md"


def test_only_monitors_have_a_table_of_metrics() -> None:
    result = cli("kinds", "optimizer", "--markdown")
    assert result.exit_code == 2 and "altgrad kinds monitor --markdown" in result.stderr
