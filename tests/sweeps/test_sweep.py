"""Claims about sweeps: whatever dies, every run ends in the same numbers, once; what is done is not done again.

The quick forms drive in this process with workers of their own; the long ones run the command as a user does.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
import pytest
from typer.testing import CliRunner

import altgrad
from altgrad.cli.main import app
from altgrad.store import LockedError
from altgrad.sweeps import Job, Launcher, Sweep, make_plan
from altgrad.sweeps.launchers.local import Local, LocalSpec
from tests.sweeps.driving import came_to, drive, finish, kill_some, killing, make, start, trained_once, workers

MATRIX = """\
base: base.yaml
arms:
  adamw: {{}}
  manifold: {{set: {{optimizer.kind: manifold_adamw}}}}
axes:
  precision.rules.0.weight.format: {formats}
seeds: {seeds}
"""


def write(bench: Path, formats: list[str], seeds: int, more: str = "") -> None:
    (bench / "m.yaml").write_text(MATRIX.format(formats=formats, seeds=list(range(seeds))) + more)


def wait_for(claim: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_sweep_whose_workers_are_killed_comes_to_the_same_numbers(bench: Path, launcher: Launcher) -> None:
    write(bench, ["e4m3fn"], 1, "set: {steps: 100}\n")
    drive(launcher, "m.yaml", "calm")
    with killing(bench / "fire", 0.5, random.Random(3)) as killed:
        driver = drive(launcher, "m.yaml", "fire", retries=20)
    assert came_to(bench / "calm") == came_to(bench / "fire")
    trained_once(bench / "fire")
    assert 0 < sum(track.died for track in driver.tracks) <= killed[0]


@pytest.mark.long
def test_50_runs_with_a_fifth_of_the_workers_killed_come_to_the_same_numbers(bench: Path) -> None:
    write(bench, ["e4m3fn", "e5m2", "e3m4", "e0m7", "e7m0"], 5)
    began = time.monotonic()
    finish(start(bench, "m.yaml", "--runs", "calm"))
    whole = time.monotonic() - began
    process = start(bench, "m.yaml", "--runs", "fire", "--retries", "20")
    killed = kill_some(bench / "fire", 0.2, random.Random(1), lambda: process.poll() is None)
    finish(process)
    print(f"{killed} of {50 + killed} workers killed; the undisturbed sweep took {whole:.0f} s")
    assert came_to(bench / "calm") == came_to(bench / "fire")
    trained_once(bench / "fire")
    assert killed >= 5 and len(came_to(bench / "fire")) == 50


def test_a_busy_engine_is_asked_again_and_a_dead_one_ends_the_sweep(bench: Path, launcher: Launcher) -> None:
    class Refusing(Local):
        asked = 0

        def submit(self, jobs: Sequence[Job]) -> list[str]:
            self.asked += 1
            raise OSError("sbatch: QOSMaxSubmitJobPerUserLimit")

    write(bench, ["e4m3fn"], 1)
    now = [0.0]
    refusing = Refusing(LocalSpec(jobs=1), 0)
    refusing.poll_seconds = 0.0
    driver = make(refusing, "m.yaml", clock=lambda: now[0])
    waits = []

    def look(driver: Sweep) -> None:
        waits.extend(track.not_before - now[0] for track in driver.tracks if track.not_before > now[0])
        now[0] += 200

    with pytest.raises(OSError, match="QOSMaxSubmit"):
        driver.run(look)
    assert refusing.asked == 6 and sorted(set(waits)) == [10, 20, 40, 80, 160]


class _Death(BaseException):
    """Ends a driver between two rounds, its workers and records left as they are."""


def test_a_driver_that_died_is_continued_and_its_workers_are_found_again(bench: Path, launcher: Launcher) -> None:
    write(bench, ["e4m3fn"], 1, "set: {steps: 120}\n")

    def die(driver: Sweep) -> None:
        if workers(bench / "runs") and list((bench / "runs").glob("*/*/checkpoints/step-*")):
            raise _Death

    with pytest.raises(_Death):
        make(launcher, "m.yaml").run(die)
    again = drive(launcher, "m.yaml")
    assert [track.state for track in again.tracks] == ["completed"] * 2
    assert sum(track.died for track in again.tracks) == 0
    trained_once(bench / "runs")


@pytest.mark.long
def test_a_driver_killed_five_times_is_continued_by_the_same_command(bench: Path) -> None:
    write(bench, ["e4m3fn", "e5m2"], 3)
    finish(start(bench, "m.yaml", "--runs", "calm"))

    def begun() -> int:
        return len(list((bench / "fire").glob("*/*/metrics.jsonl")))

    for _ in range(5):
        process = start(bench, "m.yaml", "--runs", "fire")
        before = begun()
        wait_for(lambda before=before: begun() > before)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out = finish(start(bench, "m.yaml", "--runs", "fire"))
    assert came_to(bench / "calm") == came_to(bench / "fire") and "died" not in out
    trained_once(bench / "fire")


@pytest.mark.long
def test_a_worker_that_stops_beating_is_dead_whatever_its_engine_says(bench: Path, launcher: Launcher) -> None:
    write(bench, ["e4m3fn"], 1, "set: {steps: 120}\nexclude: [{arm: manifold}]\n")
    stopped: list[int] = []

    def stop_one(driver: Sweep) -> None:
        alive = workers(bench / "runs")
        if alive and not stopped and driver.tracks[0].run.checkpoints.steps():
            os.kill(alive[0], signal.SIGSTOP)
            stopped.append(alive[0])

    driver = make(launcher, "m.yaml", patience=9.0)
    assert driver.run(stop_one)
    (track,) = driver.tracks
    assert track.state == "completed" and track.died >= 1
    assert any("no heartbeat for" in line for line in driver.news)


def test_diverged_is_a_result_and_failed_waits_for_rerun(bench: Path, launcher: Launcher) -> None:
    (bench / "m.yaml").write_text(
        "base: base.yaml\n"
        "set: {steps: 2}\n"
        "arms:\n"
        "  wild: {set: {optimizer.lr: 1.0e+30, clip_norm: null, precision: none}}\n"
        "  broken: {set: {init_from: weights.safetensors}}\n"
        "  fine: {}\n"
    )
    (bench / "f.yaml").write_text("base: base.yaml\nset: {steps: 1}\n")
    begun = drive(launcher, "f.yaml").tracks[0].run.path / "checkpoints/step-00000001/model.safetensors"
    weights = begun.rename(bench / "weights.safetensors")
    driver = make(launcher, "m.yaml")
    weights.rename(bench / "elsewhere")  # while the plan waits: what is missing before is refused by it

    def run(driver: Sweep) -> Sweep:
        assert driver.run(lambda _: None)
        return driver

    first = run(driver)
    assert [track.state for track in first.tracks] == ["diverged", "failed", "completed"]
    assert "weights.safetensors" in first.tracks[1].reason
    (bench / "elsewhere").rename(weights)
    again = drive(launcher, "m.yaml")
    assert [track.state for track in again.tracks] == ["diverged", "failed", "completed"]
    events = (first.tracks[0].run.path / "events.jsonl").read_text()
    assert events.count('"started"') == 1
    last = drive(launcher, "m.yaml", rerun_failed=True)
    assert [track.state for track in last.tracks] == ["diverged", "completed", "completed"]


def test_a_run_that_dies_without_getting_further_is_given_up(bench: Path, launcher: Launcher) -> None:
    # Longer than the driver sleeps between two looks, and without a checkpoint: a quick machine cannot finish it first.
    write(bench, ["e4m3fn"], 1, "set: {steps: 20000, checkpoint_every: 20000}\nexclude: [{arm: manifold}]\n")
    driver = make(launcher, "m.yaml", retries=1)

    def kill(driver: Sweep) -> None:
        for pid in workers(bench / "runs"):
            os.kill(pid, signal.SIGKILL)

    assert driver.run(kill)
    assert driver.tracks[0].state == "failed" and "died 2 times without getting further" in driver.tracks[0].reason


def test_a_stopped_sweep_has_saved_its_runs_and_goes_on(bench: Path, launcher: Launcher) -> None:
    write(bench, ["e4m3fn"], 1, "set: {steps: 120}\nexclude: [{arm: manifold}]\n")
    driver = make(launcher, "m.yaml")
    assert not driver.run(lambda _: None, lambda: bool(driver.tracks and driver.tracks[0].run.checkpoints.steps()))
    run = driver.tracks[0].run
    assert run.status == "interrupted" and workers(bench / "runs") == []
    driver = make(launcher, "m.yaml")
    driver.folder.make()
    with driver.folder.lock(), pytest.raises(LockedError):
        make(launcher, "m.yaml").run(lambda _: None)
    assert driver.run(lambda driver: driver.folder.ask_to_cancel()) is False, "--cancel, from another process"
    drive(launcher, "m.yaml")
    assert run.status == "completed"
    trained_once(bench / "runs")


def test_only_picks_runs_and_a_pattern_that_picks_none_says_so(bench: Path) -> None:
    write(bench, ["e4m3fn", "e5m2"], 2)
    plan = make_plan(Path("m.yaml"))
    assert len(plan.runs) == 8
    (run,) = plan.only(["adamw", "format=e5*", "seed=1"]).runs
    assert run.place.arm == "adamw" and run.spec.seed == 1
    assert plan.only([run.id]).runs == [run]
    with pytest.raises(ValueError, match="Did you mean 'seed'"):
        plan.only(["sedd=1"])
    with pytest.raises(ValueError, match="leaves no run of m"):
        plan.only(["nobody"])


def test_an_unset_number_of_threads_is_one_and_stands_in_every_spec(bench: Path) -> None:
    write(bench, ["e4m3fn"], 1)
    for run in make_plan(Path("m.yaml")).runs:
        assert run.spec.threads == 1 and run.spec.engine == "eager" and run.spec.is_resolved


def test_the_command_says_what_it_would_do_and_does_it(bench: Path) -> None:
    (bench / "m.yaml").write_text("base: base.yaml\nseeds: [0, 1]\nsmoke: {set: {steps: 3}, seeds: [4]}\n")
    runner = CliRunner()
    facts = json.loads(runner.invoke(app, ["sweep", "m.yaml", "--dry-run", "--json"]).stdout)
    assert facts["runs"] == 2 and facts["seconds"] > 0 and not (bench / "runs").exists()
    done = runner.invoke(app, ["sweep", "m.yaml", "--smoke", "--jobs", "1", "--launcher", "{kind: local, warm: false}"])
    assert done.exit_code == 0, done.output
    assert "m-smoke: 1 run: 1 completed" in done.stdout and "1/1 completed run-" in done.stdout
    again = json.loads(runner.invoke(app, ["sweep", "m.yaml", "--smoke", "--json"]).stdout)
    assert again["completed"] == 1 and again["runs"][0]["step"] == 3
    wrong = runner.invoke(app, ["sweep", "m.yaml", "--launcher", "slrum"])
    assert (wrong.exit_code == 2 and "Did you mean 'slurm'" in wrong.stderr) or "local" in wrong.stderr


def test_the_library_trains_a_matrix_and_gives_what_came_of_it(bench: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (bench / "m.yaml").write_text("base: base.yaml\nseeds: [0, 1]\nsmoke: {set: {steps: 3}, seeds: [4]}\n")
    found = altgrad.sweep("m.yaml", smoke=True, jobs=1)
    assert found.finished and found.totals["completed"] == 1 and str(found) == "m-smoke: 1 run: 1 completed"
    (row,) = pandas.DataFrame(found.runs).to_dict("records")
    assert (row["state"], row["step"], row["seed"]) == ("completed", 3, "4") and row["validation/loss"] > 0
    assert "1/1  completed" in capfd.readouterr().err and "1 completed" in found._repr_html_()
    again = altgrad.sweep("m.yaml", smoke=True, progress=False)
    assert again.runs == found.runs and capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="leaves no run"):
        altgrad.sweep("m.yaml", only=["nobody"])
