"""The notebook in docs/, a first cast, recipe and diagnosis, runs as it is, in a kernel of its own."""

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat, nbclient and ipykernel are of the extra `dev`")
nbclient = pytest.importorskip("nbclient", reason="nbformat, nbclient and ipykernel are of the extra `dev`")
pytest.importorskip("ipykernel", reason="nbformat, nbclient and ipykernel are of the extra `dev`")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def codes(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(codes(notebook)) == 5
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.long
def test_it_runs(tmp_path: Path, small_quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PYTHONPATH", str(ROOT)),
        ("IPYTHONDIR", str(tmp_path)),
        ("JUPYTER_CONFIG_DIR", str(tmp_path)),
    ):
        monkeypatch.setitem(os.environ, name, value)
    (tmp_path / "docs").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    check = nbformat.v4.new_code_cell(
        'assert (run.status, run.step) == ("completed", 60) and list(losses["step"]) == [1, *range(5, 61, 5)]\n'
        "assert run.model() is not None and weights and altgrad.load_run(run.id).id == run.id"
    )
    notebook.cells.append(check)
    where = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    tables = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert tables and not [output for output in tables if output.output_type == "error"]
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "docs" / "runs" / "quickstart").iterdir()) == [
        "float32",
        "te",
    ]
