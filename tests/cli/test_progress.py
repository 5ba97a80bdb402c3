"""What a person or a log sees while tokens are made, and that stopping leaves nothing behind."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from altgrad.cli import progress
from altgrad.cli.progress import ProgressListener, tokenising
from altgrad.data.documents import SAMPLE, locate

pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]

TOKENISE = """
import signal, sys, time
from pathlib import Path
from altgrad.cli import progress
from altgrad.data.documents import FileCorpus
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import load_tokens, on_progress

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell inherit it ignored
progress._QUIET_SECONDS, progress._REDRAW_SECONDS = 0, 0
with progress.tokenising() as hear:
    def slowly(done, total):
        hear(done, total)
        if done > total * 0.7:
            print("building", flush=True)
            time.sleep(60)
    on_progress.set(slowly if sys.argv[1] == "wait" else hear)
    load_tokens(FileCorpus(Path(sys.argv[2]), "text"), BPE(bpe=300))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 documents, so that every tenth is met."""
    path = tmp_path_factory.mktemp("source") / "part.parquet"
    pd.read_parquet(locate(SAMPLE)).groupby("split").head(30).to_parquet(path)
    return path


def environment(cache: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "ALTGRAD_CACHE": str(cache), "TERM": "xterm", "COLUMNS": "80"} | more


def test_in_a_pipe_there_is_a_line_for_every_tenth_and_stdout_stays_empty(tmp_path: Path, source: Path) -> None:
    command = [sys.executable, "-c", TOKENISE, "go", str(source)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert 8 <= len(lines) <= 10 and lines[-1].startswith("tokenising: 100% of ")
    assert len({line.partition("%")[0][:-1] for line in lines}) == len(lines)
    assert all("B of text, " in line and "\x1b" not in line and "\r" not in line for line in lines)
    assert done.stdout == ""
    again = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert again.stderr == again.stdout == ""


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_in_a_terminal_there_is_a_bar_that_goes_away(tmp_path: Path, source: Path, no_colour: str) -> None:
    ours, theirs = pty.openpty()
    env = environment(tmp_path, NO_COLOR=no_colour)
    with subprocess.Popen(
        [sys.executable, "-c", TOKENISE, "go", str(source)], env=env, stdout=subprocess.PIPE, stderr=theirs
    ) as it:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
        assert it.stdout is not None and it.stdout.read() == b""
    os.close(ours)
    text = seen.decode()
    assert "tokenising" in text and "100%" in text and "━" in text
    assert ("\x1b[38;" in text or "\x1b[3" in text) is (no_colour == "")
    assert text.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h"))  # the line is erased and the cursor is back


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_to_stop_leaves_nothing_half_built(tmp_path: Path, source: Path, number: int, code: int) -> None:
    command = [sys.executable, "-c", TOKENISE, "wait", str(source)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(tmp_path), text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait() == code
    assert said.splitlines()[-1] == "Stopped before the data was ready."
    assert "Traceback" not in said
    assert [entry for entry in (tmp_path / "tokens").iterdir() if entry.is_dir()] == []


def test_what_takes_less_than_a_second_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    listener = ProgressListener()
    for done in range(1, 1001):
        listener.hear(done, 1000)
    listener.close()
    assert capfd.readouterr() == ("", "")


def test_everything_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    for variable in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(variable, "1")
    before = signal.getsignal(signal.SIGTERM)

    def fail_half_way() -> None:
        with tokenising() as hear:
            hear(5, 10)
            raise ValueError("no file")

    with pytest.raises(ValueError, match="no file"):
        fail_half_way()
    assert signal.getsignal(signal.SIGTERM) is before
    assert capfd.readouterr().err.startswith("tokenising: 50% of 10.0B of text, ")
