"""Claims about matrices: which runs there are, in which order, and that a wrong one says where."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from altgrad.document import Document, SpecError
from altgrad.matrix import Matrix, runs_of
from altgrad.training import RunSpec

MATRICES = Path(__file__).resolve().parents[1] / "matrices"
WEIGHT = "precision.rules.0.weight.format"


def matrix(**fields: Any) -> Matrix:
    return Matrix.model_validate({"base": "quickstart.yaml", **fields})


def cells(**fields: Any) -> list[dict[str, Any]]:
    return [place.axes for place in matrix(**fields).cells()]


def test_cells_are_the_product_of_the_axes_the_first_slowest() -> None:
    found = cells(axes={"a": [1, 2], "b": ["x", "y", "z"]})
    assert found == [{"a": a, "b": b} for a, b in itertools.product([1, 2], "xyz")]
    assert cells() == [{}]


def test_zipped_axes_advance_together() -> None:
    found = cells(axes={"a": [1, 2], "b": [5, 6, 7], "c": [3, 4]}, zip=[["a", "c"]])
    assert found == [{"a": a, "c": c, "b": b} for (a, c), b in itertools.product([(1, 3), (2, 4)], [5, 6, 7])]


def test_exclude_takes_away_and_include_adds() -> None:
    found = cells(axes={"a": [1, 2], "b": [1, 2]}, exclude=[{"a": 1, "b": 2}, {"a": 2, "b": 1}], include=[{"c": 9}])
    assert found == [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"c": 9}]
    assert cells(include=[{"c": 9}]) == [{"c": 9}]


def test_every_arm_goes_with_every_combination_of_the_axes() -> None:
    found = matrix(set={"c": 0}, arms={"x": {"set": {"d": 1}}, "y": {}}, axes={"a": [1, 2]}).cells()
    assert [(place.arm, place.axes, place.changes) for place in found] == [
        ("x", {"a": 1}, {"c": 0, "d": 1, "a": 1}),
        ("x", {"a": 2}, {"c": 0, "d": 1, "a": 2}),
        ("y", {"a": 1}, {"c": 0, "a": 1}),
        ("y", {"a": 2}, {"c": 0, "a": 2}),
    ]


def test_an_arm_passes_over_the_axes_that_it_decides_itself() -> None:
    found = matrix(
        arms={"all": {}, "none": {"set": {"p": "none"}}, "part": {"set": {"p.a": 5}}, "open": {"set": {"o": {"k": 1}}}},
        axes={"p.a": [1, 2], "o.lr": [3, 4]},
        zip=[["p.a", "o.lr"]],
    ).cells()
    by_arm: dict[str, list[dict[str, int]]] = {}
    for place in found:
        by_arm.setdefault(place.arm, []).append(place.axes)
    whole = [{"p.a": 1, "o.lr": 3}, {"p.a": 2, "o.lr": 4}]
    assert by_arm == {"all": whole, "none": [{"o.lr": 3}, {"o.lr": 4}], "part": by_arm["none"], "open": whole}


def test_an_arm_may_have_axes_of_its_own() -> None:
    whole = matrix(
        arms={"x": {}, "y": {"axes": {"lr": [7, 8], "k": [1]}}}, axes={"lr": [1, 2], "a": [3]},
        smoke={"axes": {"lr": [1]}},
    )  # fmt: skip
    found = [(place.arm, place.axes) for place in whole.cells()]
    assert found == [
        ("x", {"lr": 1, "a": 3}), ("x", {"lr": 2, "a": 3}),
        ("y", {"lr": 7, "a": 3, "k": 1}), ("y", {"lr": 8, "a": 3, "k": 1}),
    ]  # fmt: skip
    short = [(place.arm, place.axes["lr"]) for place in whole.smoked().cells()]
    assert short == [("x", 1), ("y", 7)], "a smoke variant's rate is of the matrix's scale, not of the arm's"


def test_a_twin_is_one_more_arm_that_casts_nothing() -> None:
    found = runs_of(
        matrix(twin="bf16", axes={WEIGHT: ["e4m3fn", "e5m2"], "optimizer.lr": [1e-3, 2e-3]}), MATRICES, RunSpec
    )
    twins = [spec for place, spec in found if place.arm == "bf16"]
    assert len(found) == 6 and [spec.optimizer.lr for spec in twins] == [1e-3, 2e-3]
    assert all(spec.precision.rules == () and spec.compute == "bfloat16" and spec.name == "bf16" for spec in twins)


def test_an_exclusion_and_an_inclusion_may_name_an_arm() -> None:
    found = matrix(
        arms={"x": {}, "y": {"set": {"d": 1}}},
        axes={"a": [1, 2]},
        exclude=[{"arm": "x", "a": 2}],
        include=[{"arm": "y", "a": 7}, {"arm": "frozen", "lr": 0}],
    ).cells()
    assert [(place.arm, place.changes) for place in found] == [
        ("x", {"a": 1}),
        ("y", {"d": 1, "a": 1}),
        ("y", {"d": 1, "a": 2}),
        ("y", {"d": 1, "a": 7}),
        ("frozen", {"lr": 0}),
    ]


def test_seeds_may_come_in_named_sets() -> None:
    found = runs_of(matrix(seeds={"tuning": [0, 1], "confirmation": [5]}), MATRICES, RunSpec)
    assert [(place.seeds, place.seed, spec.seed) for place, spec in found] == [
        ("tuning", 0, 0), ("tuning", 1, 1), ("confirmation", 5, 5),
    ]  # fmt: skip


def test_a_smoke_variant_is_the_same_matrix_made_short() -> None:
    whole = matrix(
        arms={"x": {}, "y": {}}, twin="bf16", axes={"a": [1, 2, 3], "b": [1]}, seeds=[0, 1],
        smoke={"set": {"steps": 5}, "axes": {"a": [2]}, "arms": ["y", "bf16"], "seeds": [0]},
    )  # fmt: skip
    short = whole.smoked()
    assert [(place.arm, place.axes) for place in short.cells()] == [("y", {"a": 2, "b": 1}), ("bf16", {"a": 2, "b": 1})]
    assert short.seeds == (0,) and all(place.changes["steps"] == 5 for place in short.cells())
    with pytest.raises(ValueError, match="no `smoke:`"):
        short.smoked()


def test_assignments_for_all_runs_come_last() -> None:
    found = runs_of(matrix(axes={"steps": [50, 60]}), MATRICES, RunSpec, ["optimizer.lr=5e-4", "project=other"])
    assert [(spec.steps, spec.optimizer.lr, spec.project) for _, spec in found] == [
        (50, 5e-4, "other"), (60, 5e-4, "other"),
    ]  # fmt: skip


def test_a_base_may_be_spelt_out_in_the_matrix(tmp_path: Path) -> None:
    own = Document.load(MATRICES / "quickstart.yaml").data
    changes: dict[str, Any] = {"arms": {"a": {}, "b": {"set": {"steps": 60}}}, "seeds": [0, 1]}
    assert runs_of(matrix(base=own, **changes), tmp_path, RunSpec) == runs_of(matrix(**changes), MATRICES, RunSpec)
    text = "arms: {a: {set: {optimizer.lr: 1e-2}}}\nbase:\n  model: gpt\n  steps: many\n"
    document = Document.parse(text, "m.yaml")
    with pytest.raises(SpecError, match=r"^m.yaml:4:10 with arm=a, seed=0: steps is 'many'"):
        runs_of(Matrix.check(document), tmp_path, RunSpec, document=document)


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", ".hidden", "", "a\x00b", "n" * 61])
def test_no_project_or_name_leads_out_of_the_store(name: str) -> None:
    for changes in ({"set": {"project": name}}, {"set": {"name": name}}, {"arms": {name: {}}}):
        if changes == {"arms": {"": {}}}:
            continue  # an arm without a name leaves the base's
        with pytest.raises(SpecError, match="names a folder"):
            runs_of(matrix(**changes), MATRICES, RunSpec)


def test_runs_are_validated_specs_with_every_seed() -> None:
    found = runs_of(
        matrix(
            axes={WEIGHT: ["e4m3fn", "e5m2"], "optimizer.lr": [1e-3]}, include=[{"precision": "none"}], seeds=[0, 7]
        ),
        MATRICES,
        RunSpec,
    )
    assert len(found) == 6 and [place.seed for place, _ in found] == [0, 7] * 3
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
        ("base: b.yaml\nseeds: [1, 1]", "seed 1 is there twice"),
        ("base: b.yaml\nseeds: {a: [1], b: [1]}", "seed 1 is there twice"),
        ("base: b.yaml\narms: {x: {sets: {}}}", "Did you mean 'set'?"),
        ("base: b.yaml\narms: {x: {axes: {a: 3}}}", "a is 3; an axis is a list"),
        ("base: b.yaml\naxes: {a: [1], b: [1]}\nzip: [[a, b]]\narms: {x: {axes: {a: [3]}}}", "a is zipped, so no arm"),
        ("base: b.yaml\ntwin: bf16\narms: {bf16: {}}", "twin makes an arm 'bf16', and there is one"),
        ("base: b.yaml\naxes: {a: [1]}\nsmoke: {axes: {b: [1]}}", "smoke names 'b', which is not among the axes."),
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
        runs_of(matrix(**fields), MATRICES, RunSpec)
    assert said in str(error.value) and "\n" not in str(error.value)
