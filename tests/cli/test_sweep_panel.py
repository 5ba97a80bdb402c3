"""Claims about a sweep in the terminal: whole at every size, plain in a pipe, and it shows what matters first."""

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from altgrad.cli import console
from altgrad.cli.sweep_panel import choose, frame
from altgrad.sweeps.progress import RunProgress, SweepLines, SweepProgress


def picture(runs: int = 40) -> SweepProgress:
    found = SweepProgress("format_ablation")
    states = ["completed", "running", "waiting", "failed", "diverged", "pending"]
    for number in range(runs):
        state = states[number % 6]
        reason = "init_from: nowhere\x1b[31m" if state == "failed" else ""
        found.rows[f"r{number}"] = RunProgress(
            f"e{number}m4f-0a1b2c3d-s{number}", state, step=50, steps=100, loss=1.25, validation=1.5, alarms=number % 3,
            deaths=number % 2, remaining=90.0, reason=reason, changed=float(number),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("width", [20, 50, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 8, 24, 60])
def test_every_row_is_as_wide_as_the_window_and_there_are_no_more_than_fit(width: int, height: int) -> None:
    lines = frame(picture(), ["a died", "b died"], width, height)
    assert len(lines) <= height and all(line.width == width for line in lines)
    assert not any("\x1b" in line.text for line in lines)


def test_what_failed_and_what_runs_stands_above_what_is_done_and_what_waits_is_a_count() -> None:
    lines = [line.text for line in frame(picture(12), ["x died (killed)"], 120, 30)]
    assert "2 failed" in lines[0] and "2 waiting" in lines[0] and "6/12 runs" in lines[1]
    order = [line.split()[1] for line in lines[3:] if line.startswith("e")]
    assert order == ["failed"] * 2 + ["running"] * 2 + ["pending"] * 2 + ["diverged"] * 2 + ["completed"] * 2
    assert lines[-1].startswith("x died (killed)")


@dataclass
class _Driver:
    tracks: list[Any]
    news: list[str] = field(default_factory=list)


def test_in_a_pipe_there_is_a_line_for_every_run_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    spec = SimpleNamespace(steps=10)
    run = SimpleNamespace(exists=False)
    tracks = [
        SimpleNamespace(planned=SimpleNamespace(id=f"r{n}", spec=spec), run=run, state="waiting", reason="", died=0)
        for n in range(2)
    ]
    driver, view = _Driver(tracks), choose("m")
    assert isinstance(view, SweepLines) and not console.interactive()
    view.look(driver)
    tracks[0].state = "running"
    view.look(driver)
    tracks[0].state, driver.news = "completed", ["r1 died (its process was killed)"]
    view.look(driver)
    view.look(driver)
    first, second, third = out.getvalue().splitlines()
    assert first == "m: 2 runs: 2 waiting" and second == "r1 died (its process was killed)"
    assert third.startswith("1/2 completed r0")
