"""Claims about mirrors: a service shows the run, row by row; whatever becomes of the service, the store has it all.

The services are real: W&B's own client in its own process against a server on the loopback, and TensorBoard's reader.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from altgrad.store import Run, RunFiles, RunStore, Tracker, mirror
from altgrad.store.histogram import split
from altgrad.store.link import MirrorError
from altgrad.store.mirror import MirrorSink, MirrorSpec, replay
from altgrad.store.mirror_process import said
from tests.store.wandb_server import KEY, WandbServer

SPEC = "name: mirrored\nsteps: 20\nmodel: {kind: gpt, width: 16}\ntrack: [wandb]\n"
CLOSE = 3.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server on the loopback, and the environment that sends the client there."""
    found = WandbServer()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = RunStore(tmp_path / "runs").run("proj", "mirrored-0123abcd-s0")
    return made.create(SPEC, {"parameters": 5, "altgrad": "0", "hostname": "secret-host"})


class Sitting:
    """One sitting of a pretended run that logs the same row for a step however often it takes it."""

    def __init__(self, run: Run, sink: Any, begin: int = 0) -> None:
        self.run, self.step = run, begin
        files = RunFiles(run)
        self.mirror = MirrorSink(MirrorSpec.of(sink), run)
        self.tracker = Tracker(files, self.mirror)
        files.rewind(begin if begin else -1)
        kind = "resumed" if begin else "started"
        self.tracker.event(begin, kind, f"{kind} at step {begin} of 20")

    def steps(self, to: int) -> "Sitting":
        while self.step < to:
            self.step += 1
            self.tracker.metrics(self.step, {"train/loss": 1 / self.step, "time/wall_seconds": 0.5})
            if self.step % 5 == 0:
                shares = {"stiffness/w/binade_-3_share": 0.25, "stiffness/w/binade_-1_share": 0.75}
                self.tracker.metrics(self.step, {"validation/loss": 2 / self.step, **shares})
        return self

    def end(self, status: str = "completed") -> None:
        self.tracker.event(self.step, "stopped", f"{status} {self.step} steps", status=status)
        self.tracker.close()
        self.run.update_meta(status=status)

    def warnings(self) -> list[str]:
        return [event["message"] for event in self.run.events() if event["event"] == "warning"]


def rows(run: Run) -> list[dict[str, Any]]:
    """What a service should show: the store's rows, bins of histograms apart."""
    found = []
    for row in run.metrics():
        plain, _ = split({key: value for key, value in row.items() if key != "step"})
        found.append({"step": row["step"], **plain})
    return found


def shown(server: WandbServer, run: Run) -> list[dict[str, Any]]:
    """W&B's history without its own keys and without histograms."""
    return [
        {key: value for key, value in row.items() if not key.startswith("_") and not isinstance(value, dict)}
        for row in server.runs[run.id].history
    ]


def until(claim: Callable[[], bool]) -> None:
    for _ in range(300):
        if claim():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within 30 s")


def test_wandb_shows_every_row_config_group_tags_and_summary(server: WandbServer, run: Run) -> None:
    sitting = Sitting(run, {"kind": "wandb", "group": "ablation", "tags": ["fp8", "pilot"]}).steps(20)
    sitting.tracker.event(20, "alarm", "something drifts")
    sitting.end()
    assert sitting.warnings() == []
    there = server.runs[run.id]
    assert shown(server, run) == rows(run) and len(there.history) == 24
    assert there.project == "proj" and there.group == "ablation" and there.tags == ["fp8", "pilot"]
    assert there.config["model"] == {"kind": "gpt", "width": 16} and there.config["run"]["parameters"] == 5
    assert "track" not in there.config and "secret-host" not in json.dumps(there.config)
    assert there.summary["status"] == "completed" and there.exit_code == 0
    assert there.summary["events/alarm"] == 1 and "something drifts" in there.summary["events/last_alarm"]
    histograms = [row["stiffness/w/binade_share"] for row in there.history if "stiffness/w/binade_share" in row]
    assert histograms == [{"_type": "histogram", "values": [0.25, 0, 0.75], "bins": [-3, -2, -1, 0]}] * 4


def test_a_resumed_run_goes_on_at_wandb_without_a_row_twice(server: WandbServer, run: Run) -> None:
    first = Sitting(run, "wandb").steps(13)
    first.end("interrupted")
    assert server.runs[run.id].exit_code == 1
    # The checkpoint was at step 10: steps 11 to 13 are logged again.
    Sitting(run, "wandb", begin=10).steps(20).end()
    assert shown(server, run) == rows(run) and len(rows(run)) == 24


def test_the_key_is_sent_to_the_server_and_stands_in_no_file(server: WandbServer, run: Run) -> None:
    Sitting(run, "wandb").steps(5).end()
    assert len(server.authorized - {""}) == 1
    places = [path for path in run.path.parents[1].rglob("*") if path.is_file()]
    assert len(places) > 5 and not [path for path in places if KEY.encode() in path.read_bytes()]
    assert KEY not in said(ValueError(f"401 for {KEY}\nand more")) and "\n" not in said(ValueError("a\nb"))


def test_sync_sends_what_is_missing_and_repeating_it_changes_nothing(server: WandbServer, run: Run) -> None:
    Sitting(run, "wandb").steps(8).end("interrupted")
    later = Sitting(run, "wandb", begin=8)
    until(lambda: later.mirror._link is not None)
    later.mirror._link.kill()  # type: ignore[union-attr]
    later.steps(20).end()
    assert len(later.warnings()) == 1 and len(server.runs[run.id].history) == 9
    for _ in range(2):
        assert run.id in replay(run, MirrorSpec.of("wandb"))
        assert shown(server, run) == rows(run) and len(rows(run)) == 24
    assert server.runs[run.id].summary["status"] == "completed"


def failing(
    run: Run, monkeypatch: pytest.MonkeyPatch, between: Callable[[MirrorSink], None] = lambda mirror: None
) -> str:
    """A sitting whose mirror fails, 8 steps before `between` and 12 after it: its one warning."""
    monkeypatch.setattr(mirror, "CLOSE_SECONDS", CLOSE)
    sitting = Sitting(run, "wandb").steps(8)
    between(sitting.mirror)
    sitting.steps(20).end()
    assert [row["step"] for row in run.metrics(["train/loss"])] == list(range(1, 21))
    assert run.status == "completed"
    (warning,) = sitting.warnings()
    assert "altgrad sync proj/mirrored-0123abcd-s0" in warning and "\n" not in warning
    return warning


def test_a_host_out_of_reach_costs_no_row(run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert failing(run, monkeypatch).startswith("wandb: it had not taken everything")


def test_a_service_that_does_not_open_is_left_after_the_time_for_it(
    run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer = "hang"
    monkeypatch.setattr(mirror, "OPEN_SECONDS", 2.0)
    assert "it was not ready after 2 s" in failing(run, monkeypatch)


def test_a_server_that_answers_500_costs_no_row(run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(given: MirrorSink) -> None:
        until(lambda: run.id in server.runs)
        server.answer = "error"

    assert "had not taken everything" in failing(run, monkeypatch, spoil)


@pytest.mark.parametrize("which", ["the mirror's process", "W&B's core"])
def test_a_killed_process_costs_no_row(
    run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    def kill(given: MirrorSink) -> None:
        until(lambda: run.id in server.runs)
        assert given._link is not None
        processes = [given._link.pid] if "mirror" in which else children(given._link.pid)
        assert processes
        for process in processes:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.3)

    assert failing(run, monkeypatch, kill).startswith("wandb: ")


def children(pid: int) -> list[int]:
    """Processes that this one started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.needs("mount", "umount")
def test_a_full_disk_for_wandb_costs_no_row(
    run: Run, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        (small / "filler").write_bytes(b"0" * (60 << 10))
        monkeypatch.setenv("WANDB_DIR", str(small))
        monkeypatch.setattr(mirror, "CLOSE_SECONDS", CLOSE)
        sitting = Sitting(run, "wandb").steps(20)
        sitting.end()
        assert [row["step"] for row in run.metrics(["train/loss"])] == list(range(1, 21))
        # What W&B could not do without its disk is its own affair: either it says so, or it had no need of it.
        assert len(sitting.warnings()) == 1 or shown(server, run) == rows(run)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_no_key_is_told_in_words(
    run: Run, server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mirror, "CLOSE_SECONDS", CLOSE)
    sitting = Sitting(run, "wandb")
    until(lambda: bool(sitting.warnings()) or sitting.steps(sitting.step + 1) is None)
    sitting.end()
    (warning,) = sitting.warnings()
    assert "API key" in warning and server.requests == 0


def test_a_queue_that_overflows_ends_the_mirror_so_that_wandb_has_no_gaps(
    run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "ROWS", 4)
    assert "could not keep up" in failing(run, monkeypatch)


def test_what_a_mirror_may_add_to_a_run_is_less_than_20_seconds() -> None:
    assert mirror.CLOSE_SECONDS + 2 < 20 and mirror.OPEN_SECONDS <= 15


def test_a_run_that_is_running_is_not_replayed(run: Run) -> None:
    with run.lock(), pytest.raises(ValueError, match="is running; wait for its end"):
        replay(run, MirrorSpec.of("tensorboard"))


def test_replaying_to_a_server_that_answers_500_is_an_error(
    run: Run, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("altgrad.store.mirror.OPEN_SECONDS", CLOSE)
    RunFiles(run).close()
    server.answer = "error"
    with pytest.raises(MirrorError, match="was not ready|CommError"):
        replay(run, MirrorSpec.of("wandb"))


def read_tensorboard(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path / "tensorboard"), {"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def test_tensorboard_reads_back_what_the_store_has(run: Run) -> None:
    first = Sitting(run, "tensorboard").steps(13)
    first.end("interrupted")
    Sitting(run, "tensorboard", begin=10).steps(20).end()
    expected = {row["step"]: row["train/loss"] for row in run.metrics(["train/loss"])}
    for _ in range(2):
        found = read_tensorboard(run)
        losses = {event.step: event.value for event in found.Scalars("train/loss")}
        assert losses == pytest.approx(expected, rel=1e-7) and len(losses) == 20
        assert [event.step for event in found.Histograms("stiffness/w/binade_share")] == [5, 10, 15, 20]
        assert list(found.Histograms("stiffness/w/binade_share")[0].histogram_value.bucket) == [0.25, 0, 0.75]
        assert b"mirrored" in found.Tensors("spec")[0].tensor_proto.string_val[0]
        replay(run, MirrorSpec.of("tensorboard"))


def test_rows_are_split_into_numbers_and_histograms() -> None:
    plain, histograms = split({"a/binade_2_share": 0.5, "a/binade_4_share": 0.5, "a/q50_spacing": 1.0, "b": 2.0})
    assert plain == {"a/q50_spacing": 1.0, "b": 2.0}
    assert histograms["a/binade_share"].edges == (2, 3, 4, 5)
    assert histograms["a/binade_share"].heights == (0.5, 0.0, 0.5)
