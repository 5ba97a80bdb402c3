"""The smoke check of the study runs seeds that no run of any study had, and judges those alone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from study.rates import ROOT
from study.results import FOLDER, Results
from study.smoke import NAME, SEEDS, SIGNED, plan

RESULTS = sorted(FOLDER.glob("*.parquet"))
MATRICES = sorted([*(ROOT / "matrices").rglob("*.yaml"), *(ROOT / "study" / "matrices").glob("*.yaml")])


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


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_no_result_of_the_study_has_a_seed_of_the_smoke_check(path: Path) -> None:
    specs = pq.read_table(path, columns=["spec"]).column("spec").to_pylist()
    used = {json.loads(spec)["seed"] for spec in specs if spec}
    assert used and not used & set(SEEDS)


def test_no_matrix_and_no_pilot_has_one_either() -> None:
    assert {path.stem for path in RESULTS} >= {"study-primary", "study-finetune", "geometry-grid"}
    for path in MATRICES:
        if not path.stem.startswith(NAME):
            assert not set(seeds_in(yaml.safe_load(path.read_text()))) & set(SEEDS), path.name
    first, last = re.findall(r"seeds (\d+) to (\d+), in no table", (ROOT / "study" / "README.md").read_text())[0]
    assert not set(range(int(first), int(last) + 1)) & set(SEEDS)


def test_it_runs_every_format_with_a_sign_in_both_arms_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr("study.smoke.write_matrix", lambda name, content: written.update({name: content}) or Path(name))
    study = Results("study-primary")
    signed = [name for name, verdict in study.family.verdicts.items() if verdict in SIGNED]
    assert [str(path) for path in plan(study)] == list(written) and len(written) == 2 and signed
    for content in written.values():
        assert content["axes"]["storage.0.format"] == signed and content["set"]["project"] == NAME
        assert content["seeds"] == {"fresh": list(SEEDS)}
