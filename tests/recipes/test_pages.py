"""docs/recipes/ says what the book says."""

import re

from altgrad.recipes.catalogue import names
from bench.recipe_pages import FOLDER, pages


def test_the_pages_are_those_of_the_book() -> None:
    told = pages()
    assert {path.name for path in FOLDER.glob("*.md")} == told.keys() == {f"{name}.md" for name in names()} | {
        "README.md", "DIFFERENCES.md"
    }  # fmt: skip
    for name, text in told.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "python -m bench.recipe_pages"


def test_links_between_pages_lead_somewhere_and_differences_have_conformances_figures() -> None:
    told = pages()
    for name, text in told.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (FOLDER / target).exists(), f"{name}: {target}"
    page = told["DIFFERENCES.md"]
    assert "| e2m1 nvfp4 | te |" in page and "58 scales" in page, "docs/CONFORMANCE.md's table"
    assert re.search(r"\*\*NVFP4\*\* may be \[te_nvfp4\]\(te_nvfp4\.md\) or \[torchao_nvfp4\]", page)
    assert "4.5" in told["te_nvfp4.md"] and "hadamard/16" in told["te_nvfp4.md"]
    assert "Unproved" in told["eco.md"] and "8.25" in told["te_mxfp8.md"]
