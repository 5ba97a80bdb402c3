"""What study.rates writes next is what the plan says, on results whose best rates are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from altgrad.formats import FloatFormat
from altgrad.matrix import Matrix, runs_of
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord, take_spec
from altgrad.training import RunSpec
from study.first import Results
from study.rates import ROOT, START, Tuned, beside, chosen, edges, finer, further, matrix, source_of, start, tuned

FOLDER = ROOT / "matrices"
SOURCE = yaml.safe_load((FOLDER / "study_primary.yaml").read_text())
KINDS = {"adamw": "adamw", "manifold": "manifold_adamw"}


def results(best: dict[str, dict[str, float]], rates: tuple[float, ...] = START) -> Tuned:
    """What is chosen from specs of the matrix whose loss is least at the given rate of each arm and format."""
    _, first = runs_of(Matrix.load(FOLDER / "study_primary.yaml"), FOLDER, RunSpec)[0]
    records = []
    for arm, by_format in best.items():
        for format_, optimum in by_format.items():
            for number, (rate, seed) in enumerate((rate, seed) for rate in rates for seed in (0, 1, 2)):
                spec: dict[str, Any] = first.tree() | {"seed": seed}
                spec["optimizer"] = {**spec["optimizer"], "kind": KINDS[arm], "lr": rate}
                spec["storage"] = [{**spec["storage"][0], "format": format_}]
                record = RunRecord(f"{arm}-{format_}-{number}", "completed")
                take_spec(record, spec)
                record.series["validation/loss"] = np.array([300.0]), np.array([max(rate / optimum, optimum / rate)])
                records.append(record)
    return tuned(Project("study-primary", "", records, frozenset({0, 1, 2})))


def test_a_rate_at_an_end_is_extended_for_that_format_alone() -> None:
    best = {"adamw": {"e4m3f": 3.56e-3, "e7m0f": 6.32e-3}, "manifold": {"e4m3f": 6.32e-3, "e7m0f": 1.12e-2}}
    assert edges(results(best)) == {"e7m0f": {1.99e-2}}
    assert edges(results({"adamw": {"e4m3f": 2.0e-3}, "manifold": {"e4m3f": 1.12e-2}})) == {"e4m3f": {1.12e-3, 1.99e-2}}


def test_a_best_rate_is_looked_at_an_eighth_of_a_decade_to_either_side_and_then_no_more() -> None:
    best = {"adamw": {"e4m3f": 3.56e-3}, "manifold": {"e4m3f": 6.32e-3}}
    rates = {"adamw": [("e4m3f", 2.67e-3), ("e4m3f", 4.75e-3)], "manifold": [("e4m3f", 4.74e-3), ("e4m3f", 8.43e-3)]}
    assert finer(results(best)) == rates
    everything = tuple(sorted({*START, *(rate for cells in rates.values() for _, rate in cells)}))
    assert finer(results(best, everything)) == {}


def test_without_ends_each_arm_is_confirmed_at_its_own_rate_by_a_matrix_that_can_be_started(tmp_path: Path) -> None:
    best = {"adamw": {"e4m3f": 3.56e-3, "e5m2f": 6.32e-3}, "manifold": {"e4m3f": 6.32e-3, "e5m2f": 3.56e-3}}
    found = results(best)
    assert edges(found) == {} and chosen(found) == best
    for arm, cells in best.items():
        content = matrix(SOURCE, [arm], list(cells.items()), {"confirmation": [10, 11]})
        (tmp_path / "study_first.yaml").write_text((FOLDER / "bases" / "study_first.yaml").read_text())
        (tmp_path / f"{arm}.yaml").write_text(yaml.safe_dump(content | {"base": "study_first.yaml"}))
        made = [spec.tree() for _, spec in runs_of(Matrix.load(tmp_path / f"{arm}.yaml"), tmp_path, RunSpec)]
        rows = {(s["seed"], s["optimizer"]["kind"], s["storage"][0]["format"], s["optimizer"]["lr"]) for s in made}
        assert rows == {(seed, KINDS[arm], format_, rate) for seed in (10, 11) for format_, rate in cells.items()}
        assert all(s["steps"] == 800 and s["model"]["context"] == 32 for s in made)


@pytest.mark.parametrize(("rates", "edge", "expected"), [
    (START, "high", 1.99e-2), (START, "low", 1.12e-3),
    ((*START, 1.99e-2, 3.54e-2, 6.29e-2), "high", None),
])  # fmt: skip
def test_grids_grow_by_quarter_decades_and_three_at_most(
    rates: tuple[float, ...], edge: str, expected: float | None
) -> None:
    assert further(rates, edge) == expected


def test_other_parts_of_the_study_start_around_the_rates_of_primary_and_can_be_swept() -> None:
    primary = tuned(Results("study-primary").project)
    source = source_of("study-stiffness")
    first = start(primary, list(source["arms"]), source["axes"]["storage.0.format"])
    assert first.keys() == source["arms"].keys()
    for arm, cells in first.items():
        best = chosen(primary)["adamw" if arm == "adamw" else "manifold"]["e7m0"]
        assert [rate for format_, rate in cells if format_ == "e7m0f"] == [beside(best)[0], best, beside(best)[1]]
        assert len(cells) == 9


def test_what_follows_the_grid_of_geometry_can_be_swept(tmp_path: Path) -> None:
    source = source_of("geometry-grid")
    (tmp_path / "study_first.yaml").write_text((FOLDER / "bases" / "study_first.yaml").read_text())
    cells = [(str(FloatFormat.parse(name)), rate) for name, rate in (("e2m1f", 1.49e-2), ("e5m4f", 3.56e-3))]
    content = matrix(source, ["manifold"], cells, {"tuning": (0, 1)})
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content | {"base": "study_first.yaml"}))
    made = [spec.tree() for _, spec in runs_of(Matrix.load(tmp_path / "m.yaml"), tmp_path, RunSpec)]
    assert {(s["storage"][0]["format"], s["optimizer"]["lr"]) for s in made} == set(cells) and len(made) == 4
