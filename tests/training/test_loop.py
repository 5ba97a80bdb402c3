"""Claims about training: a run is a function of its spec, and stopping it anywhere changes no bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.document import Document
from altgrad.spec import LocatedError, SpecError
from altgrad.store import CheckpointError, DamagedError, Run, RunStore, run_id
from altgrad.symptoms import PHASES
from altgrad.training import Outcome, RunSpec, train_run
from altgrad.training.state import TrainState
from tests.training.running import after, lines

TINY = """
project: tests
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 3e-3, weight_decay: 0.1}
schedule: {kind: wsd, warmup: 2}
steps: 12
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 4
precision:
  rules:
  - weight: {format: e4m3fn, scaling: delayed}
    input: {format: e4m3fn, scaling: {kind: delayed, history: 3}, rounding: stochastic}
    grad_output: {format: e5m2, rounding: stochastic}
monitors: [{kind: range, every: 5}, finite]
"""


@pytest.fixture(scope="module")
def dataset(short_data: Callable[..., Any]) -> Any:
    """The sample with a short validation split: one pass over it is not what these tests are about."""
    return short_data(RunSpec.parse(TINY))


def make(folder: Path, *sets: str) -> tuple[RunSpec, Run]:
    spec = RunSpec.parse(TINY, "tiny.yaml", sets)
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    return spec, run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps})


def weights(run: Run) -> dict[str, bytes]:
    newest = run.checkpoints.newest()
    assert newest is not None
    return {name: newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def test_a_run_is_a_function_of_its_spec(tmp_path: Path, dataset: Any) -> None:
    made = []
    for folder in ("a", "b"):
        spec, run = make(tmp_path / folder)
        assert train_run(spec, run, dataset).status == "completed"
        made.append((lines(run), weights(run)))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "variant",
    [pytest.param((), marks=pytest.mark.long), ("accumulate=2",), ("compute=bfloat16",), ("model.dropout=0.2",)],
)
def test_stopped_and_resumed_at_any_step_is_the_same_run(
    tmp_path: Path, dataset: Any, variant: tuple[str, ...]
) -> None:
    spec, run = make(tmp_path / "whole", *variant)
    train_run(spec, run, dataset)
    whole = lines(run), weights(run)
    steps = range(1, spec.steps + 1) if not variant else (1, 6)
    for step in steps:
        spec, run = make(tmp_path / f"stopped-{step}", *variant)
        # Three batches of evaluation, then one question before each step.
        first = train_run(spec, run, dataset, interrupted=after(3 + step))
        assert (first.status, first.step) == ("interrupted", step - 1)
        assert train_run(spec, run, dataset).status == "completed"
        assert (lines(run), weights(run)) == whole


def test_stopped_at_every_step_in_turn_is_the_same_run(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path / "whole")
    train_run(spec, run, dataset)
    spec, stopped = make(tmp_path / "stopped")
    # Stopped in the first evaluation, after it, after each step, and in the last evaluation.
    asked = (3, 4, *[2] * spec.steps, 4)
    sittings = [train_run(spec, stopped, dataset, interrupted=after(calls)) for calls in asked]
    assert [each.step for each in sittings] == [0, 0, *range(1, spec.steps + 1), spec.steps]
    assert [each.status for each in sittings] == ["interrupted"] * (spec.steps + 2) + ["completed"]
    assert lines(stopped) == lines(run)


@pytest.mark.parametrize("steps", [(1, 5), pytest.param((0, 1, 3, 4, 5, 11), marks=pytest.mark.long)])
def test_a_run_that_died_goes_back_to_its_checkpoint(tmp_path: Path, dataset: Any, steps: tuple[int, ...]) -> None:
    class Death(Exception):
        pass

    def die_at(step: int) -> Callable[[], bool]:
        left = iter(range(2 + step))

        def ask() -> bool:
            if next(left, None) is None:
                raise Death
            return False

        return ask

    spec, run = make(tmp_path / "whole")
    train_run(spec, run, dataset)
    for step in steps:
        spec, dead = make(tmp_path / f"dead-{step}")
        with pytest.raises(Death):
            train_run(spec, dead, dataset, interrupted=die_at(step + 1))
        assert train_run(spec, dead, dataset).status == "completed"
        assert (lines(dead), weights(dead)) == (lines(run), weights(run))


def test_monitors_change_nothing(tmp_path: Path, dataset: Any) -> None:
    found = []
    for monitors in ("[]", "[{kind: range, every: 1}, finite]"):
        spec, run = make(tmp_path, f"monitors={monitors}")
        train_run(spec, run, dataset)
        kept = [{k: v for k, v in row.items() if not k.startswith("range/")} for row in lines(run)]
        found.append((kept, weights(run)))
    assert found[0] == found[1]


def test_uniform_grids_of_e0m7_and_e1m6_train_alike(tmp_path: Path, dataset: Any) -> None:
    """grid(e1m6) = 4 grid(e0m7): with power-of-two scales whole runs agree to the last bit."""
    found = []
    for name in ("e0m7", "e1m6"):
        sets = [f"precision.rules.0.{operand}.format={name}" for operand in ("weight", "input", "grad_output")]
        spec, run = make(tmp_path, *sets, "monitors=[finite]")
        train_run(spec, run, dataset)
        found.append((lines(run), run))
    assert found[0][0] == found[1][0]


def test_accumulation_is_the_large_batch_within_rounding(tmp_path: Path, dataset: Any) -> None:
    """Two micro-batches of 2 against one batch of 4 of the same examples, unquantised."""
    sets = ["precision=none", "steps=6"]
    spec, run = make(tmp_path, *sets, "accumulate=2")
    train_run(spec, run, dataset)
    large_spec, large = make(tmp_path, *sets, "data.batch_size=4")
    big = large_spec.data.build(large_spec.seed, large_spec.model.context)
    big.evaluation = lambda split: iter([next(type(big).evaluation(big, split))])  # type: ignore[method-assign]
    train_run(large_spec, large, big)
    losses = [[row["train/loss"] for row in each.metrics(["train/loss"])] for each in (run, large)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_falls_on_real_text(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, "steps=60", "optimizer.lr=1e-2")
    outcome = train_run(spec, run, dataset)
    losses = [row["train/loss"] for row in run.metrics(["train/loss"])]
    # Over eight seeds: the first loss 5.555, sd 0.014; training falls by 2.42, sd 0.10, validation by 1.97, sd 0.08.
    assert losses[0] == pytest.approx(math.log(256), abs=0.01 + 3 * 0.014)
    assert losses[0] - sum(losses[-5:]) / 5 > 2.42 - 3 * 0.10
    start = next(row["validation/loss"] for row in run.metrics(["validation/loss"]))
    assert start - outcome.validation["validation/loss"] > 1.97 - 3 * 0.08


def test_a_run_that_diverges_is_a_result(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, "optimizer.lr=1e30", "clip_norm=null", "precision=none", "checkpoint_every=1")
    outcome = train_run(spec, run, dataset)
    assert outcome.status == "diverged" and "not finite" in outcome.reason
    assert run.meta()["status"] == "diverged" and run.meta()["step"] == outcome.step
    alarm, stopped = list(run.events())[-2:]
    assert (alarm["event"], stopped["event"]) == ("alarm", "stopped")
    assert alarm["monitor"] == "finite" and alarm["message"].endswith("The step was not applied.")
    assert not math.isfinite(alarm["value"]) and alarm["limit"] == math.inf and alarm["phase"] in PHASES
    assert alarm["site"] and alarm["quantity"] in ("loss", "linf")
    newest = run.checkpoints.newest()
    assert newest is not None and newest.step < outcome.step


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path)
    whole, _ = make(tmp_path / "whole")[1], None
    train_run(spec, whole, dataset)
    train_run(spec, run, dataset, interrupted=after(3 + 10))
    newest = run.checkpoints.newest()
    assert newest is not None and newest.step == 9
    damaged = bytearray(newest.file("model.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.file("model.safetensors").write_bytes(damaged)
    assert train_run(spec, run, dataset).status == "completed"
    assert lines(run) == lines(whole)
    assert any("passed over" in event["message"] for event in run.events())


def test_no_usable_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, "keep=1")
    train_run(spec, run, dataset, interrupted=after(3 + 5))
    newest = run.checkpoints.newest()
    assert newest is not None
    newest.file("state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_run(spec, run, dataset)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("damage", ["digit", "lost line", "gone"])
def test_a_log_that_lacks_what_its_checkpoint_saw_is_not_continued(
    tmp_path: Path, dataset: Any, name: str, damage: str
) -> None:
    spec, run = make(tmp_path)
    train_run(spec, run, dataset, interrupted=after(3 + 7))
    lines = (run.path / name).read_bytes().splitlines(keepends=True)
    changed = {
        "digit": b"".join([lines[0].replace(b'"step": 0', b'"step": 1'), *lines[1:]]),
        "lost line": b"".join(lines[:1]), "gone": b"",
    }  # fmt: skip
    (run.path / name).write_bytes(changed[damage])
    with pytest.raises(DamagedError, match=name):
        train_run(spec, run, dataset)
    assert (run.path / name).read_bytes() == changed[damage], "what is left stays for whoever looks"


def test_the_stored_spec_is_the_resolved_one(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path)
    train_run(spec, run, dataset)
    assert RunSpec.parse(run.spec_text()) == spec
    assert "threads: 1" in run.spec_text() and "engine: eager" in run.spec_text()


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ("precision.rules.0.match=blks.*", ("precision", "rules", 0, "match")),
        ("optimizer.groups=[{match: nothing}]", ("optimizer", "groups", 0, "match")),
    ],
)
def test_rules_that_do_not_fit_the_model_say_where(
    tmp_path: Path, dataset: Any, change: str, location: tuple[Any, ...]
) -> None:
    spec, run = make(tmp_path, change)
    with pytest.raises(LocatedError) as error:
        train_run(spec, run, dataset)
    assert error.value.location == location


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate_limit=0", "evaluate_limit is 0; it takes a whole number, 1 or more, or null"),
        ("monitors=[range, range]", "monitors names range twice"),
        ("name=../up", "names a folder"),
        ("steps=0", "steps is 0"),
        ("optimizer.lr=.inf", "lr is .inf"),
    ],
)
def test_specs_that_make_no_sense_are_refused(change: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RunSpec.check(Document.parse(TINY, "tiny.yaml"), [change])


def test_validation_may_be_limited_to_its_first_batches(
    tmp_path: Path, dataset: Any, short_data: Callable[..., Any]
) -> None:
    def trained(data: Any, *sets: str) -> list[dict[str, Any]]:
        spec, run = make(tmp_path / "-".join(("run", *sets)), "steps=2", "evaluate_every=1", *sets)
        assert train_run(spec, run, data).status == "completed"
        return lines(run)

    whole = trained(dataset)  # of three batches
    assert trained(dataset, "evaluate_limit=9") == whole != trained(dataset, "evaluate_limit=2")
    two = short_data(RunSpec.parse(TINY), 2)
    assert trained(dataset, "evaluate_limit=2", "name=limited") == trained(two, "name=two")
    assert "evaluate_limit" not in RunSpec.parse(TINY).tree()


def test_specs_may_be_json(tmp_path: Path) -> None:
    spec = RunSpec.parse(TINY)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.tree()))
    assert RunSpec.load(path) == spec
    assert isinstance(spec.optimizer.lr, float) and spec.optimizer.lr == 3e-3


def test_throughput_and_time_are_logged(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path)
    outcome: Outcome = train_run(spec, run, dataset)
    last = run.last("time/median_tokens_per_second", "time/wall_seconds", "train/tokens")
    assert outcome.status == "completed" and last["train/tokens"] == 12 * 2 * 16
    assert last["time/median_tokens_per_second"] > 0 and last["time/wall_seconds"] > 0
    assert torch.get_num_threads() == 1


def test_a_run_can_start_from_another_runs_weights(tmp_path: Path, dataset: Any) -> None:
    spec, first = make(tmp_path)
    train_run(spec, first, dataset)
    spec, second = make(tmp_path, f"init_from={first.path}", "precision=none", "steps=2", "schedule.warmup=0")
    train_run(spec, second, dataset)
    start, *_, ended = (row["validation/loss"] for row in first.metrics(["validation/loss"]))
    began = next(row["validation/loss"] for row in second.metrics(["validation/loss"]))
    # Over eight seeds the first run falls by 0.486, sd 0.061; taking its casts off moves it by 0.0000, sd 0.0001.
    assert start - ended > 0.486 - 3 * 0.061 and began == pytest.approx(ended, abs=3 * 0.0001)


def test_a_power_of_two_loss_scale_changes_no_bit_in_float32(tmp_path: Path, dataset: Any) -> None:
    found = []
    for scale in ("1", "1024"):
        spec, run = make(tmp_path, "precision=none", f"loss_scale={scale}")
        train_run(spec, run, dataset)
        found.append(lines(run))
    assert found[0] == found[1]


def test_a_loss_scale_lifts_gradients_out_of_underflow(tmp_path: Path, dataset: Any) -> None:
    unscaled = "precision.rules=[{grad_output: {format: e5m2, scaling: unscaled}}]"
    rates = []
    for scale in ("1", "4096"):
        spec, run = make(tmp_path, unscaled, f"loss_scale={scale}", "steps=3")
        train_run(spec, run, dataset)
        last = run.last("range/blocks.0.mlp.up/grad_output/underflow_rate")
        rates.append(last["range/blocks.0.mlp.up/grad_output/underflow_rate"])
    assert rates[0] > 0.0142 - 3 * 0.0030 and rates[1] < rates[0] / 10  # 0 in each of eight seeds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loss_scale=1000", "only powers of two"),
        ("loss_scale=2", "does nothing with the scaled grad_output of rule 0"),
    ],
)
def test_loss_scales_that_make_no_sense_are_refused(change: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RunSpec.check(Document.parse(TINY, "tiny.yaml"), [change])
    RunSpec.check(Document.parse(TINY, "tiny.yaml"), ["loss_scale={factor: 2, force: true}"])


def test_a_run_of_the_first_edition_goes_on_and_says_so_once(
    tmp_path: Path, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints do not say whose arithmetic they have; the first one that is written here does."""
    spec, run = make(tmp_path)
    record = TrainState.record
    with monkeypatch.context() as patched:
        patched.setattr(TrainState, "record", lambda self: {k: v for k, v in record(self).items() if k != "edition"})
        assert train_run(spec, run, dataset, interrupted=after(5)).status == "interrupted"
    for calls in (3, 3, 1000):
        train_run(spec, run, dataset, interrupted=after(calls))
    said = [event for event in run.events() if "first edition" in event["message"]]
    assert run.status == "completed" and len(said) == 1 and said[0]["event"] == "notice"
