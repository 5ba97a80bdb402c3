"""Claims about the library's face: one line trains, and what it gives is the run that the command line would make."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import altgrad
from altgrad.nn import QuantizedLinear
from altgrad.progress import heard_by
from altgrad.spec import MachineError, SpecError
from altgrad.store import Run
from altgrad.training.progress import TrainingProgress
from altgrad.training.trained_run import TrainedRun
from tests.training.running import lines

ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "project": "library", "name": "tiny", "model": {"kind": "gpt", "layers": 1, "width": 8, "heads": 2, "context": 16},
    "data": {"kind": "text", "source": "rows.jsonl", "batch_size": 4},
    "precision": {"rules": [{"match": "blocks.*", "weight": {"format": "e4m3fn", "scaling": "delayed"}}]},
    "optimizer": {"kind": "adamw", "lr": 3e-3}, "schedule": "constant", "steps": 8, "threads": 1, "engine": "eager",
    "monitors": [{"kind": "range", "every": 2}], "evaluate_every": 4, "checkpoint_every": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a little text in it."""
    monkeypatch.chdir(tmp_path)
    texts = [
        f"The act of {year} on goods and services shall apply from the day {year % 31}. " * 3 for year in range(30)
    ]
    rows = [{"text": text, "split": "train"} for text in texts] + [{"text": texts[0], "split": "validation"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(source: Any = SPEC, **options: Any) -> TrainedRun:
    """Without a bar."""
    found: TrainedRun = altgrad.train(source, progress=False, **options)
    return found


def weights(run: TrainedRun) -> list[bytes]:
    newest = run.run.newest_checkpoint()
    return [newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def losses(run: TrainedRun) -> list[tuple[str, ...]]:
    found = run.metrics.dropna(subset=["train/loss"])
    return [(str(row.step), float(row["train/loss"]).hex()) for _, row in found.iterrows()]


def test_a_path_a_dict_and_a_spec_are_one_run_and_the_same_call_gives_it_back(here: Path) -> None:
    run = train()
    (here / "spec.yaml").write_text(run.spec.to_yaml())
    for source in ("spec.yaml", here / "spec.yaml", run.spec):
        assert train(source) == run
    assert (run.status, run.step, run.reason, run.path) == ("completed", 8, "", Path("runs/library") / run.id)
    assert altgrad.load_run(run.id[:8]).id == altgrad.load_run(here / run.path).id == run.id
    assert altgrad.load_run(f"library/{run.id}", runs=here / "runs").spec == run.spec == altgrad.RunSpec.made_from(
        {**SPEC, "monitors": run.spec.tree()["monitors"]}
    )  # fmt: skip


def test_a_run_is_read_as_data_frames_and_events() -> None:
    run = train()
    assert list(run.metrics["step"].unique()) == list(range(9)) and run.metrics["train/loss"].count() == 8
    sites = run.sites("range")
    assert list(sites.columns) == ["step", "site", "quantity", "value"] and set(sites["step"]) == {1, 2, 4, 6, 8}
    assert run.events[0]["event"] == "started"
    assert run.events[-1]["event"] == "stopped" and run.events[-1]["status"] == "completed"
    assert run.id in repr(run) and "status completed" in repr(run) and "step 8 of 8" in repr(run)
    assert "<table>" in run._repr_html_() and "validation/loss" in run._repr_html_()


def test_overrides_are_fields_of_the_spec() -> None:
    run = train(steps=2, optimizer__lr=1e-4, set={"optimizer.weight_decay": 0.5, "model.layers": 2})
    lr = run.spec.tree()["optimizer"]
    assert (run.spec.steps, lr["lr"], lr["weight_decay"], run.spec.tree()["model"]["layers"]) == (2, 1e-4, 0.5, 2)
    assert train(steps=2, optimizer={"kind": "sgd", "lr": 0.1}).spec.optimizer.kind == "sgd"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.yaml", {}, r"nowhere.yaml: cannot be read"),
        ({**SPEC, "stepz": 3}, {}, "the spec: 'stepz' is not a key of a run spec. Did you mean 'steps'"),
        (SPEC, {"steps": "many"}, r"--set steps=\"many\": steps is 'many'"),
        (SPEC, {"optimizer__lrr": 1}, "'lrr' is not a key"),
        ({**SPEC, "data": {"kind": "text", "source": "none.txt"}}, {}, "the spec: none.txt is not a file"),
        ({**SPEC, "precision": {"rules": [{"match": "x.*", "weight": "e4m3fn"}]}}, {}, "'x.*' matches no Linear"),
    ],
)
def test_a_wrong_spec_is_a_spec_error_and_leaves_nothing(
    here: Path, source: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        train(source, **options)
    assert not (here / "runs").exists()


def test_what_the_machine_cannot_do_is_no_spec_error(here: Path) -> None:
    with pytest.raises(MachineError, match="cuda:9 is not available; available devices: cpu"):
        train(device="cuda:9")
    with pytest.raises(MachineError, match="--exact: this would be another run"):
        train({**SPEC, "engine": "auto"}, exact=True)
    with pytest.raises(ValueError, match="is not a run in"):
        altgrad.load_run("nothing")
    assert not (here / "runs").exists()


def test_a_run_that_diverges_is_returned_with_its_reason() -> None:
    run = train(optimizer__lr=1e30, clip_norm=None, precision="none", monitors=["finite"])
    assert run.status == "diverged" and "not finite" in run.reason and run.step < 8


def test_stopped_on_its_way_and_resumed_is_the_same_run_to_the_bit() -> None:
    whole = train(schedule="cosine")
    for stop in (3, 4):
        run = train(schedule="cosine", runs=f"stop-{stop}", until=stop)
        assert (run.status, run.step) == ("interrupted", stop) and run.id == whole.id
        run = run.resume(progress=False, until=6)
        assert (run.status, run.step) == ("interrupted", 6)
        run = run.resume(progress=False)
        assert run.status == "completed" and weights(run) == weights(whole) and lines(run.run) == lines(whole.run)


def test_averages_of_weights_go_on_from_the_last_checkpoint_to_the_bit() -> None:
    """Stopped at step 6, and again with that checkpoint lost, as a kill leaves it: steps 5 and 6 come again."""
    cast = {"format": "e2m1", "rounding": "toward_average", "average_decay": 0.9, "scaling": "mx"}
    source = {**SPEC, "precision": {"rules": [{"match": "blocks.*", "weight": cast}]}}
    whole = train(source)
    assert weights(whole) != weights(train({**source, "precision": {"rules": [
        {"match": "blocks.*", "weight": {"format": "e2m1", "scaling": "mx"}}]}}, runs="nearest"))  # fmt: skip
    for lost in (False, True):
        run = train(source, runs=f"lost-{lost}", until=6)
        if lost:
            shutil.rmtree(run.run.newest_checkpoint().path)
        run = run.resume(progress=False)
        assert run.status == "completed" and weights(run) == weights(whole)


def test_a_completed_run_goes_on_as_the_run_of_more_steps_to_the_bit() -> None:
    whole = train(steps=12)
    short = train(runs="other")
    longer = short.resume(steps=12, progress=False)
    assert longer.id == whole.id != short.id and longer.status == "completed"
    assert weights(longer) == weights(whole) and losses(longer) == losses(whole)
    assert longer.run.meta()["began_as"] == short.id and longer.run.meta()["steps"] == 12
    assert (short.status, short.step) == ("completed", 8)
    assert [event["event"] for event in longer.events].count("resumed") == 1
    again = short.resume(steps=12, progress=False)
    assert again == longer


def test_where_the_schedule_spreads_over_all_steps_the_longer_run_is_trained_from_the_beginning() -> None:
    whole, short = train(schedule="cosine", steps=12), train(schedule="cosine", runs="other")
    with pytest.warns(UserWarning, match="schedule cosine spreads over all steps: the first 8 of 12"):
        longer = short.resume(steps=12, progress=False)
    assert weights(longer) == weights(whole) and lines(longer.run) == lines(whole.run)
    assert "began_as" not in longer.run.meta()


def test_resume_changes_nothing_that_has_decided_a_number() -> None:
    run = train(until=6)
    with pytest.raises(ValueError, match=r"resume cannot change optimizer, .* altgrad.train\(run.spec, optimizer="):
        run.resume(optimizer="sgd", progress=False)
    with pytest.raises(ValueError, match="has 6 steps already; 5 are fewer"):
        run.resume(steps=5, progress=False)
    moved = TrainedRun(Run(run.path.rename(run.path.with_name("moved"))))
    with pytest.raises(ValueError, match="is not where its spec belongs"):
        moved.resume(progress=False)


def test_resume_never_begins_again_and_says_where_the_earlier_run_is() -> None:
    first = train()
    with pytest.warns(UserWarning, match=r"the earlier run is archived as .*\.old-1"):
        second = train(resume="never")
    assert lines(second.run) == lines(Run(first.path.with_name(f"{first.id}.old-1")))


def test_the_model_is_the_checkpoints_quantised_and_leaves_no_trace() -> None:
    run = train()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    model = run.model()
    assert not model.training and any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert torch.isfinite(model(torch.zeros(1, 16, dtype=torch.int64))).all()
    early = dict(run.model(step=4).named_parameters())
    assert any(not torch.equal(p, early[name]) for name, p in model.named_parameters())
    assert run.evaluate("validation").found["loss"] == run.run.last("validation/loss")["validation/loss"]
    with pytest.raises(ValueError, match="has no checkpoint of step 5; it has 4, 8"):
        run.model(step=5)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_pipe_hears_a_line_a_minute_at_most_and_silence_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    train(runs="silent")
    assert capfd.readouterr() == ("", "")
    altgrad.train(SPEC)
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.endswith(": 8 steps\n")


def test_a_line_shows_the_step_and_the_loss_and_says_alarms() -> None:
    class Shown:
        lasting = True

        def __init__(self) -> None:
            self.lines: list[str] = []

        def hear(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
            self.lines.append(f"{phase} {done}/{total} {note}".rstrip())

        def say(self, line: str) -> None:
            self.lines.append(line)

        def close(self) -> None:
            self.lines.append("closed")

    shown = Shown()
    bar = TrainingProgress(shown)
    bar.hear("tokenising", 1, 4)
    bar.begin("tiny", 10)
    bar.metrics(5, {"train/loss": 2.0})
    bar.metrics(5, {"range/x/underflow_rate": 1.0})
    bar.hear("training", 5, 10)
    bar.event(5, "alarm", "stall: all")
    bar.event(5, "checkpoint", "saved")
    bar.close()
    assert shown.lines == [
        "tokenising 1/4", "tiny: 10 steps", "tiny: training 5/10 loss 2.0000", "step 5  alarm: stall: all", "closed",
    ]  # fmt: skip


def test_a_validation_says_how_many_batches_are_done_of_how_many() -> None:
    heard: list[tuple[str, int, int]] = []
    with heard_by(lambda *word: heard.append(word)):
        train(runs="heard")
    passes = [(done, total) for phase, done, total in heard if phase == "validating"]
    assert passes[0][0] == 0 and {total for _, total in passes} == {passes[0][1]} and passes[0][1] > 0
    assert [done for done, _ in passes[: passes[0][1]]] == list(range(passes[0][1]))
    assert [done for phase, done, _ in heard if phase == "training"] == list(range(8))
    phases = {each[0] for each in heard}
    assert {"reading the data", "checking the spec against the model", "making the model"} <= phases


def test_import_altgrad_loads_no_torch_and_its_verbs_are_there() -> None:
    code = "import sys, altgrad; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert {"train", "load_run"} <= set(dir(altgrad)) and callable(altgrad.train) and callable(altgrad.load_run)
