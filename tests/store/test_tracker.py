"""The run's two files, and what a run taken back to a checkpoint finds in them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from altgrad.store import Run, RunFiles, RunStore, Sink, Tracker
from altgrad.store.files import seal


class Recorder:
    """A sink that remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.sent.append((step, dict(values)))

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        self.sent.append((step, event, message, details))

    def close(self) -> None:
        self.sent.append("closed")


def make(root: Path, name: str = "a") -> Run:
    return RunStore(root).run("demo", name).create("steps: 3\n", {})


def log(run: Run, steps: range) -> None:
    files = RunFiles(run)
    for step in steps:
        files.metrics(step, {"train/loss": 1 / (step + 1), "range/x/amax": math.inf if step == 2 else 0.1, "n": step})
        files.metrics(step, {"validation/loss": math.nan})
        files.event(step, "notice", f"step {step}", value=-math.inf)
    files.sync()
    files.close()


def test_what_is_tracked_is_read_back_non_finite_values_included(tmp_path: Path) -> None:
    run = make(tmp_path)
    log(run, range(4))
    rows = list(run.metrics())
    assert rows[0] == {"step": 0, "train/loss": 1.0, "range/x/amax": 0.1, "n": 0}
    assert rows[4] == {"step": 2, "train/loss": 1 / 3, "range/x/amax": math.inf, "n": 2}
    assert math.isnan(rows[1]["validation/loss"])
    events = list(run.events())
    assert {key: events[1][key] for key in ("step", "event", "message", "value")} == {
        "step": 1,
        "event": "notice",
        "message": "step 1",
        "value": -math.inf,
    }
    assert events[1]["time"].endswith("Z")


def test_metrics_can_be_read_by_name_and_by_pattern(tmp_path: Path) -> None:
    run = make(tmp_path)
    log(run, range(2))
    assert list(run.metrics(["train/loss"])) == [{"step": 0, "train/loss": 1.0}, {"step": 1, "train/loss": 0.5}]
    assert list(run.metrics(["range/*"])) == [{"step": 0, "range/x/amax": 0.1}, {"step": 1, "range/x/amax": 0.1}]
    assert list(run.metrics(["none"])) == []
    assert run.last("train/loss", "none") == {"step": 1, "train/loss": 0.5}


def test_two_identical_logs_are_byte_identical(tmp_path: Path) -> None:
    runs = [make(tmp_path, name) for name in ("a", "b")]
    for run in runs:
        log(run, range(5))
    assert (runs[0].path / "metrics.jsonl").read_bytes() == (runs[1].path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("step", range(-1, 6))
def test_a_rewound_log_that_is_written_on_is_the_uninterrupted_one(tmp_path: Path, step: int) -> None:
    whole, rewound = make(tmp_path, "whole"), make(tmp_path, "rewound")
    log(whole, range(6))
    log(rewound, range(5))
    with (rewound.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "train')
    files = RunFiles(rewound)
    dropped = files.rewind(step)
    files.close()
    assert all(row["step"] <= step for row in (*rewound.metrics(), *rewound.events()))
    assert dropped == 3 * max(0, 4 - step) + (step < 4)  # the notice of the torn line is of step 4
    log(rewound, range(min(step, 4) + 1, 6))
    assert (rewound.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_a_cut_line_is_reported_as_an_event(tmp_path: Path) -> None:
    run = make(tmp_path)
    (run.path / "metrics.jsonl").write_bytes(b'{"step": 7}\n{"step"')
    RunFiles(run).close()
    (event,) = run.events()
    assert (event["step"], event["event"]) == (7, "notice")
    assert event["message"] == "metrics.jsonl ended in a torn line; 7 bytes were cut."


def test_whatever_turns_into_a_float_is_taken_and_ints_stay_ints(tmp_path: Path) -> None:
    class Scalar:
        def __float__(self) -> float:
            return 0.5

    run = make(tmp_path)
    files = RunFiles(run)
    values: dict[str, Any] = {"a": Scalar(), "b": 2, "c": True}
    files.metrics(1, values)
    files.close()
    assert (run.path / "metrics.jsonl").read_bytes() == seal(b'{"step": 1, "a": 0.5, "b": 2, "c": 1}')


def test_a_tracker_passes_everything_on_in_order_and_sends_no_empty_line() -> None:
    first, second = Recorder(), Recorder()
    tracker: Sink = Tracker(first, second)
    tracker.metrics(1, {"x": 1.0})
    tracker.metrics(2, {})
    tracker.event(2, "alarm", "overflow", site="a")
    tracker.close()
    assert first.sent == second.sent == [(1, {"x": 1.0}), (2, "alarm", "overflow", {"site": "a"}), "closed"]


def test_every_sink_is_closed_even_if_one_fails() -> None:
    class Broken(Recorder):
        def close(self) -> None:
            raise OSError("gone")

    first, last = Recorder(), Recorder()
    with pytest.raises(OSError, match="gone"):
        Tracker(first, Broken(), last).close()
    assert first.sent == last.sent == ["closed"]
