"""Claims about runs under faults: killed anywhere they end in the same bits; damaged checkpoints are always noticed."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.store import Checkpoints, Run
from altgrad.training import RunSpec, checkpoint, train_run
from altgrad.training.state import TrainState

ROOT = Path(__file__).resolve().parents[2]

SPEC = """
project: kills
model: {{kind: gpt, layers: 2, width: 32, heads: 2, context: 16}}
data: {{kind: text, batch_size: 4}}
optimizer: {{kind: adamw, lr: 3e-3}}
steps: 45
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 2
precision:
  rules:
  - weight: {{format: e4m3fn, scaling: {scaling}, rounding: {rounding}}}
    input: {{format: e4m3fn, scaling: {scaling}}}
    grad_output: {{format: e5m2, scaling: {scaling}, rounding: stochastic}}
"""

# The validation split is cut short: these claims are about steps and checkpoints.
WORKER = """
import sys
from itertools import islice
from pathlib import Path
from altgrad.store import RunStore
from altgrad.training import RunSpec, train_run
spec = RunSpec.load(sys.argv[1])
data = spec.data.build(spec.seed, spec.model.context)
whole = data.evaluation
data.evaluation = lambda split: islice(whole(split), 2)
run = RunStore(Path(sys.argv[2])).run("kills", "run")
train_run(spec, run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps}), data)
"""


def start(spec: Path, runs: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(spec), str(runs)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[bytes]") -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def came_to(run: Run) -> tuple[list[str], dict[str, bytes]]:
    rows = [
        json.dumps({key: float(value).hex() for key, value in row.items() if not key.startswith("time/")})
        for row in run.metrics()
    ]
    newest = run.checkpoints.newest()
    assert newest is not None and newest.step == 45
    return rows, {name: newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def kill_often(tmp_path: Path, scaling: str, kills: int, rounding: str = "stochastic") -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(scaling=scaling, rounding=rounding))
    whole, often = (Run(tmp_path / name / "kills" / "run") for name in ("whole", "often"))
    finish(start(spec, tmp_path / "whole"))
    draw = random.Random(kills)
    for _ in range(kills):
        process = start(spec, tmp_path / "often")
        mark = len(list(often.events())) if often.exists else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if often.exists and len(list(often.events())) > mark:
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if often.exists and often.status == "completed":
            break
    finish(start(spec, tmp_path / "often"))
    assert came_to(often) == came_to(whole)


@pytest.mark.long
@pytest.mark.parametrize("scaling", ["current", "delayed"])
def test_a_run_killed_once_ends_in_the_same_bits(tmp_path: Path, scaling: str) -> None:
    kill_often(tmp_path, scaling, 1)


@pytest.mark.long
@pytest.mark.parametrize("scaling", ["current", "delayed"])
def test_a_run_killed_20_times_ends_in_the_same_bits(tmp_path: Path, scaling: str) -> None:
    kill_often(tmp_path, scaling, 20)


@pytest.mark.long
def test_a_run_whose_weights_go_towards_their_average_is_killed_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    kill_often(tmp_path, "current", 3, "toward_average")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    spec = RunSpec.parse(SPEC.format(scaling="delayed", rounding="stochastic"), sets=["steps=4", "checkpoint_every=2"])
    data: Any = spec.data.build(spec.seed, spec.model.context)
    whole = data.evaluation
    data.evaluation = lambda split: islice(whole(split), 2)
    run = Run(tmp_path_factory.mktemp("runs") / "kills" / "run").create(spec.to_yaml(), {"steps": 4})
    train_run(spec, run, data)
    return run.checkpoints


def test_every_flipped_bit_and_every_truncation_is_noticed_and_the_checkpoint_before_is_used(
    snapshots: Checkpoints,
) -> None:
    newest = snapshots.newest()
    assert newest is not None and newest.step == 4
    files = sorted(newest.path.iterdir())
    sizes = [path.stat().st_size for path in files]
    draw = random.Random(0)
    for number in range(250):
        (path,) = draw.choices(files, sizes)
        good = path.read_bytes()
        if number < 200:
            place = draw.randrange(8 * len(good))
            damaged = bytearray(good)
            damaged[place // 8] ^= 1 << place % 8
        else:
            damaged = bytearray(good[: draw.randrange(len(good))])
        path.write_bytes(damaged)
        found = snapshots.newest()
        assert found is not None and found.step == 2 and found.rejected[0].path == newest.path, (path.name, number)
        path.write_bytes(good)
    again = snapshots.newest()
    assert again is not None and again.step == 4


def test_every_file_of_a_checkpoint_is_for_whom_the_umask_says(tmp_path: Path) -> None:
    """safetensors makes files that nobody but their owner can read."""
    spec = RunSpec.parse(SPEC.format(scaling="delayed", rounding="stochastic"))
    state = TrainState.build(spec, spec.data.build(spec.seed, spec.model.context), torch.device("cpu"))
    before = os.umask(0o027)
    try:
        snapshot = checkpoint.save(state, Checkpoints(tmp_path / "checkpoints"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in snapshot.path.iterdir()} == {0o640}


def test_a_full_disk_is_the_systems_error_and_not_the_librarys(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        checkpoint._write({"a": torch.zeros(4)}, tmp_path / "gone" / "a.safetensors")
    assert caught.value.errno == errno.ENOENT and caught.value.filename == str(tmp_path / "gone" / "a.safetensors")
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            checkpoint._write({"a": torch.zeros(4096)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG


def test_a_run_whose_folder_was_taken_away_is_not_begun_again_in_its_place(tmp_path: Path) -> None:
    spec = RunSpec.parse(SPEC.format(scaling="delayed", rounding="stochastic"), sets=["steps=6", "checkpoint_every=2"])
    data: Any = spec.data.build(spec.seed, spec.model.context)
    batch, whole = data.batch, data.evaluation
    data.evaluation = lambda split: islice(whole(split), 2)
    run = Run(tmp_path / "runs" / "kills" / "run").create(spec.to_yaml(), {"steps": 6})

    def moved(index: int) -> Any:
        if index == 3:
            run.path.rename(tmp_path / "away")
        return batch(index)

    data.batch = moved
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        train_run(spec, run, data)
    assert not run.path.exists()
    (tmp_path / "away").rename(run.path)
    data.batch = batch
    assert train_run(spec, run, data).status == "completed"
