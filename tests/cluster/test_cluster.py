"""Claims about sweeps on a real Slurm, one node of it on this machine: `make cluster` (as root; slurm-wlm and munge).

Where no Slurm answers, slurm_node.sh starts one for the session and stops it at the end.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeps.driving import BASE, ROOT, WORDS, came_to, finish, kill_some, start, trained_once, workers

pytestmark = [pytest.mark.cluster, pytest.mark.needs("sbatch")]
NODE = Path(__file__).with_name("slurm_node.sh")
MATRIX = """\
base: base.yaml
arms: {adamw: {}, manifold: {set: {optimizer.kind: manifold_adamw}}}
axes: {"precision.rules.0.weight.format": [e4m3fn, e5m2]}
"""


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that answers."""
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        yield
        return
    folder = tmp_path_factory.mktemp("slurm")
    os.environ["SLURM_NODE"], os.environ["SLURM_CONF"] = str(folder), str(folder / "slurm.conf")
    # Its daemons inherit what is open: into a file, or this process would wait for their end.
    with (folder / "started.log").open("w") as log:
        started = subprocess.run([NODE, "start"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    assert started.returncode == 0, (folder / "started.log").read_text()
    yield
    subprocess.run([NODE, "stop"], check=False)


@pytest.fixture
def bench(tmp_path: Path, node: None) -> Path:
    draw, words = random.Random(0), WORDS.split()
    (tmp_path / "words.txt").write_text("\n\n".join(" ".join(draw.choice(words) for _ in range(40)) for _ in range(40)))
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "m.yaml").write_text(MATRIX)
    os.environ["PYTHONPATH"] = str(ROOT)
    finish(start(tmp_path, "m.yaml", "--runs", "local"))
    return tmp_path


def queued() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def wait_for(claim: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not claim():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def test_local_ray_and_slurm_come_to_the_same_numbers(bench: Path) -> None:
    for engine in ("ray", "slurm"):
        finish(start(bench, "m.yaml", "--runs", engine, "--launcher", engine, "--jobs", "2"))
        trained_once(bench / engine)
        assert came_to(bench / "local") == came_to(bench / engine), engine


def test_killed_workers_are_handed_out_again(bench: Path) -> None:
    process = start(bench, "m.yaml", "--runs", "slurm", "--launcher", "slurm", "--retries", "20")
    killed = kill_some(bench / "slurm", 0.5, random.Random(2), lambda: process.poll() is None)
    out = finish(process)
    assert killed > 0 and out.count(" died ") >= killed
    assert came_to(bench / "local") == came_to(bench / "slurm")
    trained_once(bench / "slurm")


def test_a_job_that_slurm_cancels_is_handed_out_again(bench: Path) -> None:
    process = start(bench, "m.yaml", "--runs", "slurm", "--launcher", "slurm", "--set", "steps=300", "--only", "adamw")
    wait_for(lambda: list((bench / "slurm").glob("*/*/checkpoints/step-*")))
    subprocess.run(["scancel", queued()[0]], check=True)
    assert " died " in finish(process)
    trained_once(bench / "slurm")


def test_a_killed_driver_finds_its_jobs_in_the_queue(bench: Path) -> None:
    arguments = ("m.yaml", "--runs", "slurm", "--launcher", "slurm", "--set", "steps=100", "--jobs", "1")
    process = start(bench, *arguments)
    wait_for(lambda: workers(bench / "slurm"))
    process.kill()
    process.communicate()
    before = len(list((bench / "slurm/.sweeps/m/logs/slurm").glob("*_submitted.pkl")))
    assert " died " not in finish(start(bench, *arguments))
    assert len(list((bench / "slurm/.sweeps/m/logs/slurm").glob("*_submitted.pkl"))) == before, "nothing twice"
    trained_once(bench / "slurm")


def test_cancel_empties_the_queue_and_the_runs_are_saved(bench: Path) -> None:
    arguments = ("m.yaml", "--runs", "slurm", "--launcher", "slurm", "--set", "steps=2000", "--jobs", "1")
    process = start(bench, *arguments)
    wait_for(lambda: list((bench / "slurm").glob("*/*/checkpoints/step-*")))
    finish(start(bench, *arguments, "--cancel"))
    finish(process, 130)
    wait_for(lambda: not queued())
    (meta,) = [json.loads(path.read_text()) for path in (bench / "slurm").glob("*/*/meta.json")]
    assert meta["status"] == "interrupted" and meta["step"] > 0


def test_a_task_that_is_warned_saves_and_goes_on_in_its_next_turn(bench: Path) -> None:
    process = start(
        bench, "m.yaml", "--runs", "slurm", "--launcher", "slurm", "--only", "adamw", "--only", "format=e5m2",
        "--set", "steps=400",
    )  # fmt: skip
    wait_for(lambda: list((bench / "slurm").glob("*/*/checkpoints/step-*")))
    (handle,) = queued()
    subprocess.run(["scancel", "--signal=USR2", handle], check=True)
    wait_for(lambda: not workers(bench / "slurm"))
    # Slurm holds a requeued job back for two minutes, against loops; nobody has to wait for that here.
    wait_for(lambda: queued() == [handle])
    subprocess.run(["scontrol", "update", f"jobid={handle}", "starttime=now"], check=False)
    out = finish(process)
    trained_once(bench / "slurm")
    (events,) = (bench / "slurm").glob("*/*/events.jsonl")
    assert events.read_text().count('"resumed"') == 1 and " died " not in out
