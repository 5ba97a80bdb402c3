"""Watching a run from outside: its logs are followed while they grow, are taken back, and end."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from altgrad.cli.console import Screen
from altgrad.cli.panel import PlainLines, RunPanel
from altgrad.cli.watch import follow, recall, watch
from altgrad.store.files import Tail
from altgrad.store.runs import Run, RunStore
from altgrad.store.tracker import RunFiles


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return RunStore(tmp_path / "runs").run("demo", "tiny-0a1b2c3d-s0").create("steps: 4\n", {"steps": 4})


def train(run: Run, *steps: int) -> None:
    files = RunFiles(run)
    for step in steps:
        files.metrics(step, {"train/loss": math.nan if step == 3 else 5.0 - step, "time/wall_seconds": 1.0 * step})
    files.close()


def waiting(*acts: Callable[[], None]) -> Callable[[float], None]:
    """Instead of waiting, do the next of what another process would have done meanwhile."""
    todo = list(acts)
    return lambda _: todo.pop(0)()


def losses(lines: str) -> list[str]:
    return [" ".join(line.split()[1:4]) for line in lines.splitlines() if " loss " in line]


def test_a_tail_gives_each_row_once_and_waits_for_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert list(tail.rows()) == []
    path.write_text('{"step": 1, "train/loss": "nan"}\n{"step": 2, "train/l')
    [row] = tail.rows()
    assert row["step"] == 1
    assert math.isnan(row["train/loss"])
    assert list(tail.rows()) == []
    with path.open("a") as file:
        file.write('oss": 2.5}\nnonsense\n[1]\n{"step": "x"}\n{"step": 3}\n')
    assert list(tail.rows()) == [{"step": 2, "train/loss": 2.5}, {"step": 3}]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_log_taken_back_is_told_from_where_it_differs(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    old = [json.dumps({"step": step, "loss": step}) + "\n" for step in range(1, 4)]
    path.write_text("".join(old))
    tail = Tail(path)
    assert len(list(tail.rows())) == 3
    aside = tmp_path / "aside"
    new = [json.dumps({"step": step, "loss": step + 0.5}) + "\n" for step in range(kept + 1, 6)]
    aside.write_text("".join(old[:kept] + new))
    aside.replace(path)
    assert [row["loss"] for row in tail.rows()] == [step + 0.5 for step in range(kept + 1, 6)]
    assert list(tail.rows()) == []


def test_a_run_is_followed_until_it_is_no_longer_running(run: Run) -> None:
    out = io.StringIO()
    sink = PlainLines(run.id, 4, None, out)
    train(run, 1)

    def stop() -> None:
        train(run, 4)
        run.update_meta(status="completed")

    with run.lock():
        status = follow(run, sink, waiting(lambda: train(run, 2, 3), stop))
    sink.close()
    assert status == "completed"
    assert losses(out.getvalue()) == ["1/4 loss 4.000", "2/4 loss 3.000", "3/4 loss nan", "4/4 loss 1.000"]
    assert sink.watched.status == "completed"


def test_events_come_after_the_numbers_of_their_step(run: Run) -> None:
    files = RunFiles(run)
    files.metrics(1, {"train/loss": 2.0})
    files.event(1, "alarm", "look", monitor="range", site="a/input")
    files.metrics(2, {"train/loss": 1.0})
    files.close()
    run.update_meta(status="diverged")
    out = io.StringIO()
    sink = PlainLines(run.id, 4, None, out)
    assert follow(run, sink, waiting()) == "diverged"
    sink.close()
    kinds = [line.split()[2] for line in out.getvalue().splitlines()[1:]]
    assert kinds == ["loss", "alarm:", "loss"]
    assert sink.watched.happenings()[0].first == 1


def test_the_beginning_of_a_run_is_told_first_and_its_end_last(run: Run) -> None:
    files = RunFiles(run)
    files.event(0, "started", "here we go")
    files.metrics(0, {"validation/loss": 6.0})
    files.metrics(4, {"train/loss": 1.0})
    files.event(4, "stopped", "completed 4 steps", status="completed")
    files.close()
    run.update_meta(status="completed")
    out = io.StringIO()
    sink = PlainLines(run.id, 4, None, out)
    follow(run, sink, waiting())
    kinds = [line.split()[2] for line in out.getvalue().splitlines()[1:]]
    assert kinds == ["started:", "loss", "loss", "stopped:"]


def test_the_panel_of_a_resumed_run_knows_its_past_and_plain_lines_do_not_repeat_it(run: Run) -> None:
    train(run, 1, 2, 3)
    shown = RunPanel(run.id, 4, None, Screen(Console(file=io.StringIO(), width=80, height=24, force_terminal=True)))
    recall(run, shown)
    shown.event(2, "resumed", "resumed at step 2 of 4")
    shown.metrics(3, {"train/loss": 2.0})
    shown.close()
    assert [point.low for point in shown.watched.train.points] == [4.0, 3.0, 2.0]
    out = io.StringIO()
    recall(run, PlainLines(run.id, 4, None, out))
    assert out.getvalue().count("\n") == 1


def test_a_run_whose_process_was_killed_ends_the_watch(run: Run) -> None:
    train(run, 1)
    sink = PlainLines(run.id, 4, None, io.StringIO())
    assert follow(run, sink, waiting(lambda: None)) == "dead"


def test_the_watch_ends_when_nobody_reads(run: Run) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with run.lock():
        assert follow(run, PlainLines(run.id, 4, None, Gone()), waiting()) == "running"


@pytest.fixture
def program() -> typer.Typer:
    app = typer.Typer()
    app.command()(watch)
    return app


def test_the_command_finds_a_run_by_its_beginning_and_prints_plain_lines(run: Run, program: typer.Typer) -> None:
    train(run, 1, 2)
    run.update_meta(status="completed")
    result = CliRunner().invoke(program, ["tiny", "--runs", str(run.path.parent.parent)])
    assert result.exit_code == 0
    assert losses(result.stdout) == ["1/4 loss 4.000", "2/4 loss 3.000"]
    assert result.stdout.splitlines()[-1] == "tiny-0a1b2c3d-s0: completed"
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout


def test_a_run_that_does_not_exist_is_one_line_and_exit_code_2(run: Run, program: typer.Typer) -> None:
    result = CliRunner().invoke(program, ["tiny-0a1b2c3d-s1", "--runs", str(run.path.parent.parent)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "Did you mean 'tiny-0a1b2c3d-s0'?" in result.stderr
