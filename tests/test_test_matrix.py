"""TEST_MATRIX.md names files that are there, every requirement once, and what the matrices combine."""

import re
from pathlib import Path

import pytest

from bench.combinations import PAGE, matrices, table

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in (ROOT / "TEST_MATRIX.md").read_text().splitlines()
    if re.match(r"\| [A-Z]+-\d\d ", line)
]


def files(cell: str) -> list[Path]:
    """Paths in a cell; a bare file name stands in the folder of the one before it."""
    found: list[Path] = []
    for word in re.split(r"[,;]\s*", cell):
        if word.endswith((".py", "/")):
            found.append(ROOT / word if "/" in word else found[-1].parent / word)
    return found


def test_every_file_it_names_exists() -> None:
    missing = [(row[0], str(path)) for row in ROWS for cell in row[2:4] for path in files(cell) if not path.exists()]
    assert not missing


def test_every_requirement_has_one_row_with_tests_or_a_plan() -> None:
    ids = [row[0] for row in ROWS]
    assert len(ids) == 49 and len(set(ids)) == 49
    assert all(row[3] or row[2].startswith("planned:") for row in ROWS)


@pytest.fixture(scope="module")
def combinations() -> str:
    return table()


def test_the_table_of_combinations_is_what_the_matrices_say(combinations: str) -> None:
    assert combinations in PAGE.read_text(), "run python -m bench.combinations"


def test_every_combination_has_a_purpose_and_an_expectation(combinations: str) -> None:
    assert len(matrices()) == 16
    for line in combinations.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] not in ("arm", "---", "bf16", "fp32"):
            assert len(cells) == 7 and all(cells), line
    assert "fails" in next(line for line in combinations.splitlines() if line.startswith("| e7m0f |"))
