"""Numbers as they are printed, and the one way a command fails."""

import io
import math
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from altgrad.cli import console
from altgrad.cli.main import app
from altgrad.numerals import count, duration, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.3, "2.30"),
        (123.4, "123"),
        (999.9, "1.00k"),
        (12_345, "12.3k"),
        (999_950, "1.00M"),
        (1e-3, "0.00100"),
        (3e-4, "3.00e-4"),
        (-2.5e-12, "-2.50e-12"),
        (1e20, "1.00e20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_has_three_significant_figures(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_short_and_off_by_at_most_half_of_its_last_figure(value: float) -> None:
    text = number(value)
    assert len(text) <= 10
    letter = text[-1] if text[-1] in "kMGT" else ""
    shown = float(text.removesuffix(letter)) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[letter]
    # Below the normal range a float itself has fewer than three figures.
    assert math.isclose(shown, value, rel_tol=5.001e-3, abs_tol=1e-322) or math.isinf(shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.42, "0.4s"),
        (12.9, "12s"),
        (245, "4m 05s"),
        (7500, "2h 05m"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
        (None, "?"),
        (math.nan, "?"),
        (math.inf, "?"),
        (-1, "?"),
    ],
)
def test_a_duration_has_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0"),
        (1e-9, "<0.001%"),
        (3.4e-4, "0.034%"),
        (2e-3, "0.200%"),
        (0.1234, "12.3%"),
        (1.0, "100%"),
        (math.nan, "nan"),
    ],
)
def test_a_rate_that_is_not_zero_never_reads_as_zero(rate: float, text: str) -> None:
    assert percent(rate) == text


def test_a_count_below_a_thousand_is_exact() -> None:
    assert [count(n) for n in (0, 7, 999, 1000, 20_300_000)] == ["0", "7", "999", "1.00k", "20.3M"]


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
