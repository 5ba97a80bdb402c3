"""`altgrad runs`: what it prints, as text and as JSON, and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from altgrad.cli.runs import app
from altgrad.store import Run, RunFiles, RunStore

SPEC = "model: {layers: 2}\nseed: 1\n"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@pytest.fixture
def runs(store: RunStore) -> Callable[..., Any]:
    """Call `altgrad runs ...` on the store of this test."""

    def call(*arguments: str, typed: str | None = None) -> Any:
        return CliRunner().invoke(app, [*arguments, "--runs", str(store.root)], input=typed)

    return call


def make(store: RunStore, name: str, spec: str = SPEC, *, project: str = "demo", loss: float = 1.5, **meta: Any) -> Run:
    run = store.run(project, name).create(spec, {"steps": 4, **meta})
    files = RunFiles(run)
    for step in range(1, 4):
        files.metrics(step, {"train/loss": loss / step, "time/wall_seconds": 0.1, "range/a/weight/amax": 3.0})
    files.metrics(3, {"validation/loss": loss})
    files.event(3, "notice", "a [bold]\x1b[31mmessage", value=math.nan)
    files.close()
    run.checkpoints.write(3, {"state": lambda path: path.write_bytes(b"x")})
    return run


def test_a_listing_has_status_step_loss_and_age(store: RunStore, runs: Callable[..., Any]) -> None:
    make(store, "a")
    make(store, "b", status="completed", loss=math.nan)
    make(store, "c", project="other", status="diverged")
    (make(store, "broken").path / "meta.json").write_text("{")
    listing = runs("list")
    assert listing.exit_code == 0
    rows = [line.split() for line in listing.stdout.splitlines()]
    assert rows[0] == ["id", "status", "step", "validation", "loss", "score", "age", "size"]
    assert [row[:4] for row in rows[1:]] == [
        ["demo/a", "dead", "3/4", "1.5000"],
        ["demo/b", "completed", "3/4", "nan"],
        ["demo/broken", "damaged", "0", "-"],
        ["other/c", "diverged", "3/4", "1.5000"],
    ]
    assert [line.split()[0] for line in runs("list", "--project", "demo").stdout.splitlines()[1:]] == [
        "a",
        "b",
        "broken",
    ]
    assert [line.split()[0] for line in runs("list", "--status", "diverged").stdout.splitlines()[1:]] == ["other/c"]


def test_a_listing_as_json_is_strict_json_with_the_same_facts(store: RunStore, runs: Callable[..., Any]) -> None:
    make(store, "b", status="completed", loss=math.nan)
    (row,) = json.loads(runs("list", "--json").stdout, parse_constant=lambda name: pytest.fail(name))
    assert row.pop("age") >= 0
    assert row.pop("size") == sum(path.stat().st_size for path in store.root.rglob("demo/b/**/*") if path.is_file())
    assert row.pop("path") == str(store.root / "demo" / "b")
    known = {"project": "demo", "id": "b", "status": "completed"}
    assert row == known | {"step": 3, "steps": 4, "validation/loss": "nan", "score": None}


def test_a_listing_shows_the_score_a_run_says_it_is_judged_by(store: RunStore, runs: Callable[..., Any]) -> None:
    for name, scores, logged in (("c", ["f1_micro", "f1_macro"], "f1_micro"), ("t", None, "bits_per_byte")):
        run = make(store, name, **({} if scores is None else {"scores": scores}))
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 3, f"validation/{logged}": 0.625}) + "\n")
    lines = runs("list").stdout.splitlines()
    assert "0.6250 f1 micro" in lines[1] and "0.6250 bits/byte" in lines[2]
    (row, _) = json.loads(runs("list", "--json").stdout)
    assert row["score"] == {"name": "f1_micro", "value": 0.625}


def test_an_empty_store_is_no_error(store: RunStore, runs: Callable[..., Any]) -> None:
    assert runs("list").stdout == f"No runs in {store.root}.\n"
    assert runs("list", "--project", "x").stdout == f"No such runs in {store.root}.\n"
    assert json.loads(runs("list", "--json").stdout) == []
    assert not store.root.exists()


def test_a_run_that_has_logged_nothing_can_be_listed_and_shown(store: RunStore, runs: Callable[..., Any]) -> None:
    store.run("demo", "a").create(SPEC, {})
    assert runs("list").stdout.splitlines()[1].split()[:4] == ["demo/a", "dead", "0", "-"]
    shown = runs("show", "a")
    assert shown.exit_code == 0
    assert "checkpoints  none" in shown.stdout


def test_a_run_is_shown_with_its_numbers_checkpoints_and_events(store: RunStore, runs: Callable[..., Any]) -> None:
    data = {"source": "my.txt", "train_documents": 1, "train_bytes": 26213}
    run = make(store, "gpt-1", device="cpu", parameters=45216, seed=12345, references={}, data=data)
    with run.lock() as holder:
        lines = runs("show", "gpt").stdout.splitlines()
        facts = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
        assert facts["status"].startswith(f"running (pid {holder.pid} on {holder.host}, heartbeat ")
    assert facts["run"] == "demo/gpt-1"
    assert facts["step"] == "3/4"
    assert facts["checkpoints"] == "3"
    assert facts["device"] == "cpu" and "references" not in facts
    assert (facts["parameters"], facts["seed"]) == ("45,216", "12345") and facts["train"] == "1 document, 26,213 bytes"
    assert facts["monitors"] == "range 1 numbers (--json)"
    numbers = dict(line.split(maxsplit=1) for line in lines[lines.index("last numbers") + 1 : -3])
    assert numbers["train/loss"] == "0.5000" and numbers["validation/loss"] == "1.500"
    assert not any(key.startswith("range/") for key in numbers)
    assert lines[-2].split() == ["step", "event"]
    assert lines[-1].split(maxsplit=2) == ["3", "notice:", "a [bold]?[31mmessage"]  # no escape reaches a terminal


def test_a_run_is_shown_as_json(store: RunStore, runs: Callable[..., Any]) -> None:
    make(store, "a", status="failed")
    facts = json.loads(runs("show", "a", "--json").stdout)
    assert facts["holder"] is None
    assert facts["spec"] == {"model": {"layers": 2}, "seed": 1}
    assert facts["metrics"]["range/a/weight/amax"] == 3.0
    assert facts["checkpoints"] == [3]
    assert facts["events"][0]["value"] == "nan"
    assert facts["meta"]["status"] == facts["status"] == "failed"


def test_a_difference_names_spec_lines_and_the_first_metric(store: RunStore, runs: Callable[..., Any]) -> None:
    make(store, "a")
    make(store, "b", "model: {layers: 3}\nseed: 1\nlr: .inf\n", loss=1.5000000000000002)
    rows = [line.split() for line in runs("diff", "a", "b").stdout.splitlines()]
    assert rows[:5] == [["a", "b"], ["train/loss", "0.50000", "0.50000"], ["validation/loss", "1.5000", "1.5000"],
                        ["model.layers", "2", "3"], ["lr", "absent", '"inf"']]  # fmt: skip
    assert " ".join(rows[5]) == "First difference at step 1: train/loss = 1.5 and 1.5000000000000002."
    facts = json.loads(runs("diff", "a", "b", "--json").stdout)
    assert facts["spec"][0] == {"path": "model.layers", "a": 2, "b": 3}
    assert facts["metrics"] == {"step": 1, "key": "train/loss", "a": 1.5, "b": 1.5000000000000002}
    assert facts["final"]["a"] == {"train/loss": 0.5, "validation/loss": 1.5}


def test_a_rule_that_one_run_lacks_is_one_line_of_the_difference(store: RunStore, runs: Callable[..., Any]) -> None:
    cast = "{format: e4m3fn, rounding: nearest_even, scaling: {kind: delayed, margin: 0}, overflow: saturate}"
    rule = f"{{match: 'blocks.*', weight: {cast}, input: {cast}, operands: shared}}"
    make(store, "a", f"precision: {{rules: [{rule}]}}\n")
    make(store, "b", "precision: {rules: []}\n")
    lines = runs("diff", "a", "b").stdout.splitlines()
    assert lines[3].split("  ") == [
        "precision.rules", "match blocks.*, weight e4m3fn delayed, input e4m3fn delayed", "none",
    ]  # fmt: skip
    assert len(json.loads(runs("diff", "a", "b", "--json").stdout)["spec"]) == 13


def test_two_alike_have_no_difference(store: RunStore, runs: Callable[..., Any]) -> None:
    make(store, "a")
    make(store, "b")
    said = "The specs are the same.\nThe metrics are the same up to the last step, 3.\n"
    assert runs("diff", "a", "b").stdout.endswith(said)
    assert json.loads(runs("diff", "a", "b", "--json").stdout)["metrics"] is None


def test_the_path_is_absolute(store: RunStore, runs: Callable[..., Any]) -> None:
    run = make(store, "a")
    assert runs("path", "a").stdout == f"{run.path}\n"
    assert json.loads(runs("path", "a", "--json").stdout) == {"path": str(run.path)}


def test_nothing_is_deleted_without_a_yes(store: RunStore, runs: Callable[..., Any]) -> None:
    run = make(store, "a")
    for typed in ("n\n", "\n", ""):
        refused = runs("rm", "a", typed=typed)
        assert refused.exit_code == 1
        assert "Permanently delete demo/a (" in refused.stderr
        assert refused.stderr.endswith("Nothing was deleted.\n")
        assert run.exists
    assert runs("rm", "a", typed="y\n").stdout.endswith("Deleted demo/a.\n")
    assert not run.path.exists()
    make(store, "a")
    assert json.loads(runs("rm", "a", "--yes", "--json").stdout) == {"deleted": str(run.path)}
    assert not run.path.exists()


def listed(result: Any) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_a_listing_is_sorted_cut_and_shown_as_asked(store: RunStore, runs: Callable[..., Any]) -> None:
    for name, loss, lr in (("a", 1.5, "1e-3"), ("b", math.nan, "1e-2"), ("c", 12.25, "3e-4"), ("d", 0.75, "1e-3")):
        make(store, name, f"optimizer: {{kind: adamw, lr: {lr}}}\nseed: 1\n", loss=loss)
    ids = [row[0] for row in listed(runs("list", "--sort", "loss"))]
    assert ids == ["demo/d", "demo/a", "demo/c", "demo/b"]  # NaN is no loss, so it is last in either direction
    assert [row[0] for row in listed(runs("list", "--sort", "-loss"))] == ["demo/c", "demo/a", "demo/d", "demo/b"]
    chosen = runs("list", "--columns", "id,loss,optimizer.lr,train/loss", "--sort", "optimizer.lr", "--limit", "3")
    assert chosen.stdout.splitlines()[0].split() == ["id", "validation", "loss", "optimizer.lr", "train/loss"]
    assert listed(chosen) == [
        ["demo/c", "12.250", "0.0003", "4.0833"], ["demo/a", "1.500", "0.001", "0.5000"],
        ["demo/d", "0.750", "0.001", "0.2500"],
    ]  # fmt: skip
    ends = {line.index(line.split()[1]) + len(line.split()[1]) for line in chosen.stdout.splitlines()[1:]}
    assert len(ends) == 1, "numbers end in the same column"
    (row,) = json.loads(runs("list", "--sort", "loss", "--limit", "1", "--columns", "optimizer.lr", "--json").stdout)
    assert row["id"] == "d" and row["optimizer.lr"] == 1e-3 and row["validation/loss"] == 0.75
    for asked, said in (("los", "none of 4 runs has 'los'"), ("a b", "'a b' names no column")):
        wrong = runs("list", "--columns", asked)
        assert wrong.exit_code == 2 and said in wrong.stderr and wrong.stderr.count("\n") == 1


def test_patterns_name_many_runs_and_none_is_deleted_if_one_is_held(store: RunStore, runs: Callable[..., Any]) -> None:
    made = {name: make(store, name) for name in ("e5-s0", "e5-s1", "e4-s0")}
    with made["e5-s1"].lock():
        assert runs("rm", "e5-*", "--yes").exit_code == 3
    assert all(run.exists for run in made.values())
    refused = runs("rm", "e5-*", typed="n\n")
    assert refused.exit_code == 1 and "demo/e5-s0  " in refused.stderr
    assert "Permanently delete 2 runs (" in refused.stderr
    facts = json.loads(runs("rm", "demo/e5-*", "e5-s0", "--yes", "--json").stdout)
    assert facts == {"deleted": [str(made["e5-s0"].path), str(made["e5-s1"].path)]}
    assert [run.exists for run in made.values()] == [False, False, True]
    nothing = runs("rm", "x*", "--yes")
    assert nothing.exit_code == 2 and "matches 'x*'" in nothing.stderr


def test_pruning_keeps_every_run_and_its_last_checkpoint(store: RunStore, runs: Callable[..., Any]) -> None:
    kept, failed = make(store, "kept", status="completed"), make(store, "failed", status="failed")
    archived, held = make(store, "again", status="completed").set_aside(), make(store, "held")
    for run in (kept, held):
        run.checkpoints.write(4, {"state": lambda path: path.write_bytes(b"y" * 1000)})
    before = kept.size()
    assert runs("prune", typed="n\n").exit_code == 1 and archived.exists
    with held.lock():
        facts = json.loads(runs("prune", "--yes", "--json").stdout)
    assert facts["deleted"] == [str(archived.path)] and facts["thinned"] == [str(kept.path)]
    assert not archived.exists and failed.exists
    assert kept.checkpoints.steps() == [4] and held.checkpoints.steps() == [3, 4]
    assert facts["bytes"] > before - kept.size() > 0
    recent = runs("prune", "--project", "demo", "--status", "failed", "--older-than", "1", "--yes")
    assert recent.stdout == "Nothing to prune.\n"
    assert "Deleted 1 run, " in runs("prune", "--status", "failed", "--yes").stdout and not failed.exists
    assert "'running' is not a status that can be pruned" in runs("prune", "--status", "running").stderr


def test_a_run_without_a_sound_checkpoint_is_not_pruned(store: RunStore, runs: Callable[..., Any]) -> None:
    run = make(store, "a", status="completed")
    run.checkpoints.write(4, {"state": lambda path: path.write_bytes(b"y")})
    (run.path / "checkpoints" / "step-00000004" / "state").write_bytes(b"z")
    assert runs("prune", "--yes").exit_code == 0 and run.checkpoints.steps() == [3]  # the last that verifies stays
    (run.path / "checkpoints" / "step-00000003" / "state").write_bytes(b"z")
    run.checkpoints.folder.joinpath("step-00000009").mkdir()
    assert runs("prune", "--yes").exit_code == 5 and run.checkpoints.steps() == [3, 9]


def test_a_run_that_is_held_is_not_deleted(store: RunStore, runs: Callable[..., Any]) -> None:
    run = make(store, "a")
    with run.lock() as holder:
        refused = runs("rm", "a", "--yes")
    assert refused.exit_code == 3
    assert f"in use by pid {holder.pid}" in refused.stderr
    assert run.exists


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "x"], "is not a run in"),
        (["path", "../.."], "is not a run in"),
        (["diff", "one", "x"], "is not a run in"),
        (["rm", "x", "--yes"], "is not a run in"),
        (["show", "o"], "'o' is ambiguous: it matches 2 runs, demo/one, demo/other."),
        (["show", "oen"], "Did you mean 'one'?"),
        (["list", "--status", "done"], "'done' is not a status; use one of running, completed"),
        (["list", "--project", "../x"], "cannot name a project"),
    ],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_mistake_is_one_line_and_exit_code_2(
    store: RunStore, runs: Callable[..., Any], arguments: list[str], said: str, as_json: list[str]
) -> None:
    make(store, "one")
    make(store, "other")
    result = runs(*arguments, *as_json)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_damage_is_one_line_too(store: RunStore, runs: Callable[..., Any]) -> None:
    run = make(store, "a")
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 1}\ngarbage\n{"step": 2}\n')
    result = runs("show", "a")
    assert result.exit_code == 5
    assert "metrics.jsonl:2: not a JSON object" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_table_in_a_terminal_keeps_every_id_whole(
    store: RunStore, runs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "gpt-e4m3fn-0123abcd-s1")
    monkeypatch.setattr("altgrad.cli.console.interactive", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert "demo/gpt-e4m3fn-0123abcd-s1" in runs("list").stdout
