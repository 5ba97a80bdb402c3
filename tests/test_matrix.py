"""Claims about matrices: which runs there are, in which order, and that a wrong one says where."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from altgrad.document import SpecError
from altgrad.matrix import Matrix, runs
from altgrad.training import RunSpec

MATRICES = Path(__file__).resolve().parents[1] / "matrices"
WEIGHT = "precision.rules.0.weight.format"


def matrix(**fields: Any) -> Matrix:
    return Matrix.model_validate({"base": "quickstart.yaml", **fields})


def test_cells_are_the_product_of_the_axes_the_first_slowest() -> None:
    found = matrix(axes={"a": [1, 2], "b": ["x", "y", "z"]}).cells()
    assert found == [{"a": a, "b": b} for a, b in itertools.product([1, 2], "xyz")]
    assert matrix().cells() == [{}]


def test_zipped_axes_advance_together() -> None:
    found = matrix(axes={"a": [1, 2], "b": [5, 6, 7], "c": [3, 4]}, zip=[["a", "c"]]).cells()
    assert found == [{"a": a, "c": c, "b": b} for (a, c), b in itertools.product([(1, 3), (2, 4)], [5, 6, 7])]


def test_exclude_takes_away_and_include_adds() -> None:
    found = matrix(axes={"a": [1, 2], "b": [1, 2]}, exclude=[{"a": 1, "b": 2}, {"a": 2, "b": 1}], include=[{"c": 9}])
    assert found.cells() == [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"c": 9}]


def test_runs_are_validated_specs_with_every_seed() -> None:
    found = runs(
        matrix(
            axes={WEIGHT: ["e4m3fn", "e5m2"], "optimizer.lr": [1e-3]}, include=[{"precision": "none"}], seeds=[0, 7]
        ),
        MATRICES,
        RunSpec,
    )
    assert len(found) == 6 and [cell["seed"] for cell, _ in found] == [0, 7] * 3
    weights = [spec.precision.rules[0].weight for _, spec in found[:4]]
    assert [str(weight.format) for weight in weights if weight is not None] == ["e4m3fn"] * 2 + ["e5m2"] * 2
    assert all(weight is not None and weight.scaling.kind == "delayed" for weight in weights)
    assert found[4][1].precision.rules == () and found[5][1].seed == 7
    assert len({spec.fingerprint() for _, spec in found}) == 6


def test_a_matrix_survives_yaml() -> None:
    found = matrix(axes={WEIGHT: ["e4m3fn"], "steps": [5]}, zip=[[WEIGHT, "steps"]], seeds=[1, 2])
    assert Matrix.parse(found.to_yaml()) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axes: {}", "m.yaml:1:1: base is missing"),
        ("base: b.yaml\naxes: {lr: 3}", "m.yaml:2:12: lr is 3; an axis is a list"),
        ("base: b.yaml\naxes: {lr: []}", "an axis is a list of one value or more"),
        ("base: b.yaml\naxes: {lr: [1], b: [1]}\nzip: [[lr, bb]]", "m.yaml:3:7: zip names 'bb', which is not an axis."),
        ("base: b.yaml\naxes: {a: [1], b: [1, 2]}\nzip: [[a, b]]", "equally long: a has 1, b has 2"),
        ("base: b.yaml\naxes: {a: [1]}\nzip: [[a], [a]]", "zip names 'a' twice"),
        ("base: b.yaml\naxes: {weight: [1]}\nexclude: [{wieght: 1}]", "Did you mean 'weight'?"),
        ("base: b.yaml\nseeds: []", "seeds"),
        ("base: b.yaml\nseeds: [1, 1]", "seed 1 stands there twice"),
        ("base: b.yaml\naxis: {}", "Did you mean 'axes'?"),
    ],
)
def test_a_wrong_matrix_is_one_line(text: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        Matrix.parse(text, "m.yaml")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"axes": {"optimizer.lrr": [1e-3]}}, "'lrr' is not a key of optimizer adamw"),
        ({"axes": {WEIGHT: ["e4m3"]}}, "say e4m3fn"),
        ({"axes": {"steps": [500, 500]}}, "two cells come to the same run"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_a_cell_that_does_not_fit_is_refused_before_anything_runs(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as error:
        runs(matrix(**fields), MATRICES, RunSpec)
    assert said in str(error.value) and "\n" not in str(error.value)
