"""TEST_MATRIX.md names files that are there, and every requirement once."""

import re
from pathlib import Path

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
