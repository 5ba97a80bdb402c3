"""Claims about a sweep in the terminal: whole at every size, plain in a pipe, and it shows what matters first."""

import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from altgrad.cli import console, sweep_panel
from altgrad.cli.console import Screen
from altgrad.cli.sweep_panel import SweepPanel, choose, frame
from altgrad.matrix import MatrixPlace
from altgrad.sweeps.progress import RunProgress, SweepLines, SweepProgress


def picture(runs: int = 40) -> SweepProgress:
    found = SweepProgress("format_ablation")
    states = ["completed", "running", "waiting", "failed", "diverged", "pending"]
    for number in range(runs):
        state = states[number % 6]
        reason = "init_from: nowhere\x1b[31m" if state == "failed" else ""
        found.rows[f"r{number}"] = RunProgress(
            f"e{number}m4f-0a1b2c3d-s{number}", state, arm=f"e{number // 4}m4f", axes={"lr": "1e-3"}, seed=number % 4,
            step=50, steps=100, loss=1.25, validation=1.5, alarms=number % 3, deaths=number % 2, remaining=90.0,
            reason=reason, changed=float(number),
        )  # fmt: skip
    return found


@pytest.mark.parametrize("width", [20, 50, 80, 200])
@pytest.mark.parametrize("height", [1, 3, 8, 24, 60])
def test_every_row_is_as_wide_as_the_window_and_there_are_no_more_than_fit(width: int, height: int) -> None:
    lines = frame(picture(), ["a died", "b died"], width, height)
    assert len(lines) <= height and all(line.width == width for line in lines)
    assert not any("\x1b" in line.text for line in lines)


def test_arms_stand_by_seeds_with_mean_and_deviation_and_below_what_is_at_work() -> None:
    found = SweepProgress("m")
    losses = {"e4m3fn": (1.5, 1.25, 1.75), "bf16": (2.0, 2.0, 2.0)}
    for arm, each in losses.items():
        for seed, loss in enumerate(each):
            row = RunProgress(f"{arm}-s{seed}", "completed", arm, {"lr": "1e-3"}, seed, validation=loss, steps=4)
            found.rows[row.id] = row
    for seed, state in enumerate(("running", "diverged", "waiting")):
        row = RunProgress(f"e5m2-s{seed}", state, "e5m2", {"lr": "1e-3"}, seed, step=1, steps=4, validation=9.0)
        found.rows[row.id] = row
    lines = [line.text.split() for line in frame(found, ["x died (killed)"], 100, 20)]
    assert lines[2] == ["arm", "lr", "s0", "s1", "s2", "mean", "sd"]
    assert lines[3] == ["e4m3fn", "1e-3", "1.5000", "1.2500", "1.7500", "1.5000", "0.2500"]
    assert lines[4] == ["bf16", "1e-3", "2.0000", "2.0000", "2.0000", "2.0000", "0.0000"]
    assert lines[5] == ["e5m2", "1e-3", "25%", "div.", "·", "-", "-"]
    assert [line[:2] for line in [line for line in lines if line][6:9]] == [
        ["run", "state"],
        ["e5m2-s0", "running"],
        ["e5m2-s1", "diverged"],
    ]
    assert lines[-1] == ["x", "died", "(killed)"]


def test_where_rows_are_too_many_those_at_work_stay_and_the_rest_are_a_count() -> None:
    lines = [line.text for line in frame(picture(40), [], 80, 12)]
    assert any(line.startswith("… ") and line.rstrip().endswith(" more rows") for line in lines)
    assert "6 failed" in lines[0] or "7 failed" in lines[0]
    narrow = [line.text for line in frame(picture(40), [], 46, 20)]
    assert narrow[2].split()[:3] == ["arm", "lr", "done"]  # seeds that do not fit are a count


@dataclass
class _Driver:
    tracks: list[Any]
    news: list[str] = field(default_factory=list)


def tracks(count: int) -> list[Any]:
    """Tracks of runs that wait."""
    spec, place = SimpleNamespace(steps=10, name="arm"), MatrixPlace("arm", {"optimizer.lr": 1e-3}, {})
    planned = [SimpleNamespace(id=f"r{n}", spec=spec, place=place) for n in range(count)]
    run = SimpleNamespace(exists=False)
    return [SimpleNamespace(planned=each, run=run, state="waiting", reason="", died=0) for each in planned]


def test_keys_close_stop_and_explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked, file = [], io.StringIO()
    monkeypatch.setattr(sweep_panel, "ask_to_stop", lambda: asked.append("stop"))
    view = SweepPanel("m", Screen(Console(file=file, width=80, height=24, force_terminal=True)))
    driver = _Driver(tracks(1))
    for key in ("s", "s", "?"):
        view.press(key)
    view.look(driver)
    assert asked == ["stop"] and "stopping: runs save themselves first" in view.happened
    assert "runs save themselves, the same command continues" in file.getvalue()
    for width in (50, 60, 80, 120):
        page = frame(view.progress, sweep_panel.HELP, width, 24, sweep_panel.HINTS, helping=True)
        lines = [line.text.strip() for line in page]
        told = " ".join(lines[[line[:2] for line in lines].index("q ") :])
        assert "which is a result" in told and "says what is significant" in told and "…" not in told
    view.press("q")
    view.look(driver)
    driver.news = ["r0 died"]
    view.look(driver)
    view.close()
    assert capsys.readouterr().out.splitlines() == ["m: 1 run: 1 waiting", "r0 died"]


def test_in_a_pipe_there_is_a_line_for_every_run_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    runs = tracks(2)
    driver, view = _Driver(runs), choose("m")
    assert isinstance(view, SweepLines) and not console.interactive()
    view.look(driver)
    runs[0].state = "running"
    view.look(driver)
    runs[0].state, driver.news = "completed", ["r1 died (its process was killed)"]
    view.look(driver)
    view.look(driver)
    first, second, third = out.getvalue().splitlines()
    assert first == "m: 2 runs: 2 waiting" and second == "r1 died (its process was killed)"
    assert third.startswith("1/2 completed r0")
