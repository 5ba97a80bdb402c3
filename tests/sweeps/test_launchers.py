"""Claims about launchers: one contract for all kinds, and what each does with the engine it talks to."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from altgrad.spec import SpecError
from altgrad.store.heartbeat import Pulse
from altgrad.sweeps import Job, LauncherSpec
from altgrad.sweeps.launchers.local import Local, LocalSpec
from altgrad.sweeps.launchers.slurm import Slurm, SlurmSpec, Task
from tests.sweeps.driving import came_to, drive

MATRIX = "base: base.yaml\nset: {steps: 3}\nseeds: [0, 1]\n"


def job(folder: Path, name: str, spec: str = "broken.yaml") -> Job:
    """A job whose worker ends at once, with exit code 2."""
    (folder / "broken.yaml").write_text("nonsense: 1\n")
    paths = {"spec": folder / spec, "store": folder, "beat": folder / f"{name}.json", "log": folder / f"{name}.log"}
    return Job(name, threads=1, **paths)


def ended(launcher: Local, handle: str) -> None:
    deadline = time.monotonic() + 60
    while launcher.poll([handle])[handle] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_there_are_three_and_each_is_named_as_the_other_families_are() -> None:
    assert list(LauncherSpec.kinds()) == ["local", "ray", "slurm"]
    assert LauncherSpec.made_from({"kind": "slurm", "minutes": 5, "extra": {"constraint": "x"}}).tree()["minutes"] == 5
    with pytest.raises(SpecError, match="Did you mean 'slurm'"):
        LauncherSpec.made_from("slurmm")


@pytest.mark.parametrize("warm", [True, False])
def test_a_local_worker_leaves_its_exit_code_and_its_words(
    tmp_path: Path, launcher: Local, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    used = launcher if warm else LocalSpec(jobs=1, warm=False).build()
    one = job(tmp_path, "a")
    (handle,) = used.submit([one])
    ended(used, handle)
    pulse = Pulse(one.beat)
    pulse.silence()
    assert pulse.exit == 2 and "'nonsense' is not a key" in one.log.read_text()
    assert used.poll([handle.replace("@", "@another-")]) == {handle.replace("@", "@another-"): "unknown"}
    used.cancel([handle])
    used.cancel(["999999999:1@" + handle.partition("@")[2]], kill=True)


def test_a_recycled_pid_is_another_process(launcher: Local) -> None:
    host = os.uname().nodename
    assert launcher.poll([f"{os.getpid()}:1@{host}#0"]) == {f"{os.getpid()}:1@{host}#0": "ended"}


def test_gpus_are_dealt_out_one_or_several_runs_to_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Local(LocalSpec(), 2).gpus == ["0", "1"] and Local(LocalSpec(), 2).room(1) == 1
    assert Local(LocalSpec(per_gpu=2), 2).gpus == ["0", "0", "1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert Local(LocalSpec(), 2).gpus == ["3", "5"]
    assert Local(LocalSpec(jobs=7), 0).room(2) == 5
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert LocalSpec().build().room(0) == 8 and LocalSpec().build(threads=3).room(0) == 2, (
        "cores for the threads of a run"
    )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which sbatch, squeue and scancel are scripts that note how they were called.

    submitit refuses to write a script where there is no srun, which runs on the nodes; here nothing calls it.
    """
    pytest.importorskip("submitit", reason="the slurm launcher is an extra: altgrad[slurm]")
    answers = tmp_path / "answers"
    answers.mkdir()
    for name, does in (
        ("sbatch", "cp $1 DIR/script; echo 'Submitted batch job 77'"),
        ("squeue", "cat DIR/queue"),
        ("scancel", "true"),
        ("srun", "exit 1"),
    ):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> DIR/calls\n{does}\n'.replace("DIR", str(answers)))
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return answers


def test_slurm_gets_one_array_and_is_asked_with_squeue(tmp_path: Path, slurm: Path) -> None:
    launcher = SlurmSpec(jobs=2, minutes=30, gpus=1, partition="gpu", warning_seconds=90).build()
    (tmp_path / "logs").mkdir()
    jobs = [job(tmp_path / "logs", name) for name in "abc"]
    handles = launcher.submit(jobs)
    assert handles == ["77_0", "77_1", "77_2"]
    script = (slurm / "script").read_text()
    for line in ("--array=0-2%2", "--signal=USR2@90", "--time=30", "--partition=gpu", "--requeue", "--cpus-per-task=1"):
        assert f"#SBATCH {line}" in script, line
    (slurm / "queue").write_text("77_0 PENDING\n77_1 RUNNING\n")
    assert launcher.poll(handles) == {"77_0": "pending", "77_1": "running", "77_2": "ended"}
    (slurm / "queue").write_text("77_0 COMPLETING\n77_1 NODE_FAIL\n77_2 REQUEUED\n")
    assert launcher.poll(handles) == {"77_0": "running", "77_1": "ended", "77_2": "pending"}
    launcher.cancel(["77_0"])
    launcher.cancel(["77_1"], kill=True)
    calls = (slurm / "calls").read_text()
    assert "scancel --state=PENDING 77_0" in calls and "scancel --signal=INT 77_0" in calls and "scancel 77_1" in calls
    assert "srun" not in calls


def test_a_squeue_that_does_not_answer_says_nothing_of_the_workers(tmp_path: Path, slurm: Path) -> None:
    launcher = Slurm(SlurmSpec())
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    assert launcher.poll(["77_0"]) == {"77_0": "unknown"}
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    assert launcher.poll(["77_0"]) == {"77_0": "ended"}, "squeue has forgotten it"


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="needs sbatch and squeue"):
        SlurmSpec().build()


def test_a_slurm_task_that_is_warned_has_the_worker_save_and_asks_for_another_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "print('begun', flush=True)\ntime.sleep(60)"
    )
    log = tmp_path / "log"
    log.touch()
    task = pickle.loads(pickle.dumps(Task([sys.executable, "-c", worker], str(log), 1)))
    again: list[object] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, lambda number, frame: again.append(task.checkpoint()))  # as submitit does

    def warn() -> None:
        """As Slurm does: every process of the step gets the signal, the worker too."""
        while "begun" not in log.read_text():
            time.sleep(0.02)
        assert task.process is not None
        os.kill(task.process.pid, signal.SIGUSR2)
        time.sleep(0.2)  # a worker that dies of it does so before it could be asked to save
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = threading.Thread(target=warn)
    thread.start()
    sent: list[int] = []
    kill = os.kill
    monkeypatch.setattr("os.kill", lambda pid, number: (sent.append(number), kill(pid, number)))
    try:
        assert task() == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    thread.join()
    assert sent == [signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM], "it listened, so it is not killed"
    assert log.read_text() == "begun\nsaved\n" and len(again) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_comes_to_the_same_numbers_as_this_machine(bench: Path, launcher: Local) -> None:
    pytest.importorskip("ray", reason="the ray launcher is an extra: altgrad[ray]")
    (bench / "m.yaml").write_text(MATRIX)
    drive(launcher, "m.yaml", "here")
    command = [sys.executable, "-m", "altgrad.cli.main", "sweep", "m.yaml", "--runs", "ray", "--launcher", "ray"]
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert came_to(bench / "here") == came_to(bench / "ray")
