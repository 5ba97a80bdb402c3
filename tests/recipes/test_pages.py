"""Claims about docs/recipes: each page says what the book says, and nothing else is there."""

import pytest

from altgrad.recipes.catalogue import names
from bench.recipe_pages import FOLDER, PAIRS, index, page


@pytest.mark.parametrize("name", names())
def test_a_page_is_what_its_recipe_says(name: str) -> None:
    written = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert written == page(name), "run python -m bench.recipe_pages"


def test_the_table_has_every_recipe_and_the_folder_no_other() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == index(), "run python -m bench.recipe_pages"
    assert {path.stem for path in FOLDER.glob("*.md")} == {*names(), "README", "differences"}
    measured = (FOLDER / "differences.md").read_text(encoding="utf-8")
    assert all(f"| {one}, {two}" in measured for one, two, *_ in PAIRS)
