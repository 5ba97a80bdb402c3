"""The one way a command prints, and the one way it fails."""

import io
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad.cli import console
from altgrad.cli.main import app
from altgrad.display import event_text, table_lines


def test_failing_is_one_line_on_stderr_and_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        console.fail("spec.yaml:3:5: e9m9 has 19 bits;\nAltGrad emulates 2 to 16.", 2)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "spec.yaml:3:5: e9m9 has 19 bits; AltGrad emulates 2 to 16.\n")


def test_a_line_survives_an_encoding_that_lacks_its_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    assert console.say("loss → ×", stream)
    assert raw.getvalue() == b"loss ? ?\n"


def test_a_reader_that_has_gone_is_reported_and_not_raised() -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    assert console.say("anyone?", Gone()) is False


@pytest.mark.parametrize(("encoding", "drawable"), [("utf-8", True), ("ascii", False), ("latin-1", False)])
def test_block_characters_are_drawn_only_where_the_encoding_has_them(
    monkeypatch: pytest.MonkeyPatch, encoding: str, drawable: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert console.drawable() is drawable


def test_a_pipe_is_neither_interactive_nor_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not console.interactive()
    assert not console.colour()


def test_no_color_takes_the_colour_and_leaves_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console.colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.interactive()
    assert not console.colour()
    monkeypatch.setenv("TERM", "dumb")
    assert not console.interactive()


def test_sigterm_ends_a_command_with_75_in_one_line_and_only_while_it_runs(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    os.mkfifo(tmp_path / "spec.yaml")  # a spec that is waited for until the signal comes
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    found = CliRunner().invoke(app, ["train", str(tmp_path / "spec.yaml")])
    timer.join()
    assert (found.exit_code, found.stderr) == (75, "stopped by SIGTERM.\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_columns_of_numbers_are_set_to_the_right_and_texts_to_the_left() -> None:
    rows = [["a", "1.5", "12 kB", "x1"], ["bb", "10.25", "-", "y"], ["c", "nan", "3 B", ""]]
    lines = [line.text for line in table_lines("", ["id", "loss", "size", "note"], rows, None)]
    assert lines == [
        "id   loss   size  note", "a     1.5  12 kB  x1", "bb  10.25      -  y", "c     nan    3 B  "
    ]  # fmt: skip
    assert [line.text for line in table_lines("", [], [["steps", "500"], ["a", "1"]], 40)] == ["steps  500", "a      1"]


def test_a_cell_keeps_the_blanks_that_draw_an_interval_and_nothing_else_of_its_white_space() -> None:
    (line,) = table_lines("", [], [["a\tb", "  . |   -o- ", "x\x1b"]], None)
    assert line.text == "a b    . |   -o-  x?"


def test_an_event_is_said_once() -> None:
    assert event_text("checkpoint", "checkpoint saved (step 60)") == "checkpoint saved (step 60)"
    assert event_text("stopped", "completed 60 steps") == "stopped: completed 60 steps"
