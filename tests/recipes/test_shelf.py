"""Claims about the book as a whole: its recipes are casts that layers take, and every proof that one names is there."""

import ast
from pathlib import Path

import pytest

from altgrad.nn.rule import Rule
from altgrad.recipes.book import find
from altgrad.recipes.catalogue import called, names
from tests.recipes.vendor import FOLDER

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_proof_that_a_recipe_names_is_a_test() -> None:
    named = {node for name in names() for node in find(name).proof}
    for node in sorted(named):
        path, _, function = node.partition("::")
        assert path.startswith(("tests/recipes/", "tests/interventions/")) and function in functions(ROOT / path), node
        assert path != "tests/recipes/test_shelf.py"


def test_every_recorded_layer_is_used_by_a_proof() -> None:
    said = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    own = {"quartet2_statistics"}  # of a cast under fresh signs, for tests/quantize/test_correction.py
    assert all(f'"{path.stem}"' in said for path in FOLDER.glob("*.safetensors") if path.stem not in own)


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_said_in_full(name: str) -> None:
    recipe = find(name)
    run = recipe.expansion().run
    assert recipe.title and recipe.source.authors and recipe.stays_high
    assert recipe.source.arxiv or recipe.source.url
    if recipe.reference is not None:
        assert recipe.reference.files and (recipe.reference.commit or recipe.reference.version)
    else:
        assert recipe.unproved
    for rule in run.get("precision", {}).get("rules", ()):
        made = Rule.made_from({"match": "*", **{key: value for key, value in rule.items() if key != "place"}})
        assert made.layer().casts() or made.casts_elsewhere or rule.keys() == {"place"}


def test_two_vendors_share_a_name_where_they_differ() -> None:
    whose: dict[str, set[str]] = {}
    for name in names():
        for alias in find(name).aliases:
            whose.setdefault(alias, set()).add(name)
    assert {alias: found for alias, found in whose.items() if len(found) > 1} == {
        "NVFP4": {"te_nvfp4", "torchao_nvfp4"},
        "MXFP8": {"te_mxfp8", "torchao_mxfp8"},
        "blockwise": {"te_block", "torchao_blockwise", "deepseek_v3"},
    }
    assert all(called(alias) in found for alias, found in whose.items() if len(found) == 1)
    with pytest.raises(ValueError, match="te_nvfp4 or torchao_nvfp4"):
        called("nvfp4")


def test_thirty_recipes_of_which_most_are_proved() -> None:
    proved = [name for name in names() if find(name).proof]
    assert len(names()) >= 34 and len(proved) >= 25
