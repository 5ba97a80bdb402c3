"""Claims about twins: what is logged is the difference at the same step, and only runs with the same data compare."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run

TINY = """
project: tests
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 3e-3}
steps: 8
threads: 1
engine: eager
evaluate_every: 4
checkpoint_every: 3
precision: none
monitors: [{kind: rank, every: 2}]
"""
CAST = ("precision={rules: [{match: 'blocks.*', weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}",)


@pytest.fixture(scope="module")
def dataset(short_data: Callable[..., Any]) -> Any:
    return short_data(RunSpec.parse(TINY))


def start(folder: Path, dataset: Any, *sets: str) -> tuple[RunSpec, Run]:
    spec = RunSpec.parse(TINY, "tiny.yaml", sets)
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    return spec, run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps, "data": dataset.describe()})


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, dataset: Any) -> Run:
    spec, run = start(tmp_path_factory.mktemp("runs"), dataset, "compute=bfloat16")
    assert train_run(spec, run, dataset).status == "completed"
    return run


def rows(run: Run, *keys: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {key: {} for key in keys}
    for row in run.metrics(keys):
        for key in row.keys() - {"step"}:
            found[key][int(row["step"])] = row[key]
    return found


def refused(twin: Run, dataset: Any, *sets: str) -> str:
    spec, run = start(twin.path.parent.parent, dataset, f"twin={twin.id}", *sets)
    with pytest.raises(LocatedError) as error:
        train_run(spec, run, dataset)
    assert error.value.location == ("twin",) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("named", ["id", "path"])
def test_the_differences_of_both_losses_are_logged_at_the_same_steps(twin: Run, dataset: Any, named: str) -> None:
    name = twin.id if named == "id" else str(twin.path)
    spec, run = start(twin.path.parent.parent, dataset, *CAST, f"twin={name}")
    assert train_run(spec, run, dataset).status == "completed"
    for key, difference in (
        ("train/loss", "twin/train_loss_difference"),
        ("validation/loss", "twin/validation_loss_difference"),
    ):
        ours, theirs = rows(run, key, difference), rows(twin, key)[key]
        assert ours[difference] == {step: ours[key][step] - theirs[step] for step in ours[key]}
        assert ours[difference] and any(ours[difference].values())


def test_a_run_is_its_own_twin(twin: Run, dataset: Any) -> None:
    spec, run = start(twin.path.parent.parent, dataset, "compute=bfloat16", f"twin={twin.id}")
    assert train_run(spec, run, dataset).status == "completed"
    found = rows(run, "twin/train_loss_difference", "twin/validation_loss_difference")
    assert all(value == 0 for values in found.values() for value in values.values())
    assert [len(values) for values in found.values()] == [8, 3]


def test_a_longer_run_is_compared_as_far_as_its_twin_went(twin: Run, dataset: Any) -> None:
    spec, run = start(twin.path.parent.parent, dataset, *CAST, "steps=10", f"twin={twin.id}")
    train_run(spec, run, dataset)
    assert list(rows(run, "twin/train_loss_difference")["twin/train_loss_difference"]) == list(range(1, 9))


def test_a_resumed_run_logs_the_same_differences(twin: Run, dataset: Any) -> None:
    sets = (*CAST, f"twin={twin.id}", "name=resumed")
    spec, run = start(twin.path.parent.parent, dataset, *sets)
    asked = iter(range(100))
    assert train_run(spec, run, dataset, interrupted=lambda: next(asked) == 8).status == "interrupted"
    assert train_run(spec, run, dataset).status == "completed"
    keys = ("twin/train_loss_difference", "twin/validation_loss_difference")
    spec, whole = start(twin.path.parent.parent, dataset, *sets[:2], "name=whole")
    train_run(spec, whole, dataset)
    assert rows(run, *keys) == rows(whole, *keys)


@pytest.mark.parametrize(
    ("change", "key", "theirs", "ours"),
    [
        ("seed=1", "seed", 0, 1),
        ("accumulate=2", "accumulate", 1, 2),
        ("data.batch_size=4", "data.batch_size", 2, 4),
        ("model.context=8", "model.context", 16, 8),
        ("evaluate_limit=2", "evaluate_limit", None, 2),
    ],
)
def test_another_data_order_is_refused_in_one_line(
    twin: Run, dataset: Any, change: str, key: str, theirs: int, ours: int
) -> None:
    message = refused(twin, dataset, change)
    assert message == f"twin {twin.id} has another data order: {key} is {theirs} there and {ours} here."


def test_another_content_of_the_same_source_is_refused(twin: Run, dataset: Any, tmp_path: Path) -> None:
    spec, other = start(tmp_path, dataset, "compute=bfloat16", "steps=1")
    train_run(spec, other, dataset)
    other.update_meta(data=dataset.describe() | {"sha256": "0" * 64})
    assert "another data order: source sha256 is 000" in refused(other, dataset)


def test_what_can_be_no_twin_is_refused(twin: Run, dataset: Any, tmp_path: Path) -> None:
    store = twin.path.parent.parent
    spec, cast = start(store, dataset, *CAST, "steps=1")
    assert "is dead; a twin is a completed run" in refused(cast, dataset, "steps=3")
    train_run(spec, cast, dataset)
    assert "is quantised itself (precision)" in refused(cast, dataset, "steps=3")
    rule = json.dumps([{"match": "blocks.*.mlp.*", "kind": "stochastic", "format": "e4m3fn"}])
    spec, stored = start(store, dataset, f"storage={rule}", "steps=1")
    train_run(spec, stored, dataset)
    assert "is quantised itself (storage)" in refused(stored, dataset, "steps=3")
    spec, lost = start(tmp_path, dataset, "twin=nowhere")
    with pytest.raises(LocatedError, match="twin 'nowhere' is not a run in "):
        train_run(spec, lost, dataset)


def test_ranks_are_compared_with_those_of_the_twin_which_must_have_some(twin: Run, dataset: Any) -> None:
    spec, bare = start(twin.path.parent.parent, dataset, "compute=bfloat16", "monitors=[]")
    train_run(spec, bare, dataset)
    spec, run = start(twin.path.parent.parent, dataset, *CAST, f"twin={bare.id}")
    with pytest.raises(LocatedError, match="rank: the twin has no rank metrics") as error:
        train_run(spec, run, dataset)
    assert error.value.location == ("monitors",)
