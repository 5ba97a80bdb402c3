"""The smoke check of the study runs seeds that no run of any study had, and judges those alone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from study import parts, rows
from study.cell import cell_of, format_of
from study.rates import ROOT
from study.results import FOLDER
from study.second_tables import Second, place
from study.smoke import SEEDS, SIGNED, asked, main, planned, told
from tests.study.made_rows import filled, row_for

RESULTS = sorted(FOLDER.rglob("*.parquet"))
FOLDERS = ("matrices", "study/matrices", "study/parts")
MATRICES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml"))


def seeds_in(tree: Any) -> Iterator[int]:
    """Every seed under a key `seed` or `seeds`, however deep."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value) if key in ("seed", "seeds") else seeds_in(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from seeds_in(value)


def numbers(value: Any) -> Iterator[int]:
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(each, list):
            yield from numbers(each)
        else:
            yield int(each)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_result_of_the_study_has_a_seed_of_the_smoke_check(path: Path) -> None:
    specs = pq.read_table(path, columns=["spec"]).column("spec").to_pylist()
    used = {json.loads(spec)["seed"] for spec in specs if spec}
    assert used and not used & set(SEEDS)


def test_no_matrix_and_no_pilot_has_one_either() -> None:
    assert {path.stem for path in RESULTS} >= {"study-primary", "study-finetune", "geometry-grid", "screen", "confirm"}
    for path in MATRICES:
        assert not set(seeds_in(yaml.safe_load(path.read_text()))) & set(SEEDS), path.name
    first, last = re.findall(r"seeds (\d+) to (\d+), in no table", (ROOT / "study" / "FIRST_PLAN.md").read_text())[0]
    assert not set(range(int(first), int(last) + 1)) & set(SEEDS)


@pytest.fixture(scope="module")
def confirmed_rows() -> pd.DataFrame:
    return filled(filled(filled(rows.read(FOLDER / "nowhere"), ["screen"]), ["edges"]), ["confirm"])


def test_it_runs_every_cell_whose_verdict_has_a_sign_and_its_reference(confirmed_rows: pd.DataFrame) -> None:
    while len(more := filled(confirmed_rows, ["confirm"])) > len(confirmed_rows):
        confirmed_rows = more
    study = Second(confirmed_rows)
    signed = [one.cell for one in study.judged if one.word in SIGNED]
    found = asked(study)
    assert [one.cell for one in found] == signed and len(signed) >= 4 and {one.known < 0 for one in found} == {True}
    runs = planned(found, SEEDS)
    assert {each.spec.seed for each in runs} == set(SEEDS) and len({each.fingerprint for each in runs}) == len(runs)
    assert {cell_of(each.spec) for each in runs} == {*signed, *(one.base for one in found)}
    assert {format_of(one.cell) for one in asked(study, "e4m3f")} == {"e4m3f"}


def test_before_cells_are_confirmed_it_takes_the_screens(confirmed_rows: pd.DataFrame) -> None:
    found = asked(Second(confirmed_rows[confirmed_rows["part"] == "screen"]))
    assert [(format_of(one.cell), place(one.cell)) for one in found] == [
        (n, "p = 1, kappa = 2^-6") for n in parts.STORED
    ]


def test_a_format_whose_cells_have_no_sign_is_said_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the results that are in, e3m4f's are undecided."""
    monkeypatch.setattr("sys.argv", ["study.smoke", "--format", "e3m4f"])
    monkeypatch.setattr("study.driver.drive", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(SystemExit, match="no cell of e3m4f has a verdict with a sign, so nothing can be repeated"):
        main()


@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (-0.2, False)])
def test_another_sign_fails_it(confirmed_rows: pd.DataFrame, shift: float, same: bool, capsys: Any) -> None:
    study = Second(confirmed_rows[confirmed_rows["part"] == "screen"])
    one = asked(study, "e7m0")[0]
    fresh = pd.DataFrame([row_for(each) for each in planned([one], [*SEEDS, 2000])])
    fresh["loss"] += shift * (fresh["optimizer"] == "manifold_adamw")
    assert told(study, Second(fresh), one, [*SEEDS, 2000]) == same
    out = capsys.readouterr().out
    assert ("OTHER" in out) != same and out.count("the study's run") == 2 and "on 4 seeds" in out
