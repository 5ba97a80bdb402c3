"""docs/recipes/ says what the book says."""

import re

from altgrad.recipes.catalogue import names
from bench.recipe_differences import PAIRS
from bench.recipe_pages import FOLDER, pages


def test_the_pages_are_those_of_the_book() -> None:
    told = pages()
    assert {path.name for path in FOLDER.glob("*.md")} == told.keys() == {f"{name}.md" for name in names()} | {
        "README.md", "DIFFERENCES.md"
    }  # fmt: skip
    for name, text in told.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "python -m bench.recipe_pages"


def test_links_between_pages_lead_somewhere_and_differences_are_measured() -> None:
    told = pages()
    for name, text in told.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (FOLDER / target).exists(), f"{name}: {target}"
    page = told["DIFFERENCES.md"]
    assert all(f"| {one}, {two}" in page for one, two, *_ in PAIRS), "python -m bench.recipe_differences"
    assert re.search(r"\*\*NVFP4\*\* may be \[te_nvfp4\]\(te_nvfp4\.md\) or \[torchao_nvfp4\]", page)
    assert "4.5" in told["te_nvfp4.md"] and "hadamard/16" in told["te_nvfp4.md"]
    assert "Unproved" in told["eco.md"] and "8.25" in told["te_mxfp8.md"]
