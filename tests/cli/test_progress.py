"""What a person or a log sees while a command works: within two seconds something, and in a pipe a line a minute.

Every command is driven on a terminal of its own, forked from a process that has torch loaded, with the second of grace
taken away: what it then shows is what it would show if it took long. Time is counted in the command's own CPU seconds,
since a machine that others use makes everybody slow.
"""

import io
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from altgrad import progress as room
from altgrad.cli.main import app
from altgrad.cli.progress import preparing
from altgrad.data.documents import SAMPLE, locate
from altgrad.progress import StatusLine, heard_by, progress, within

ROOT = Path(__file__).resolve().parents[2]
SILENT_SECONDS = 2.0
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No grace, many pictures, short minutes; 60 columns and a terminal that is one."""
    for name, value in {"QUIET_SECONDS": 0.0, "REDRAW_SECONDS": 0.005, "MINUTE": 0.05}.items():
        monkeypatch.setattr(room, name, value)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown_by(line: StatusLine, stream: io.StringIO, pictures: int) -> list[str]:
    """The first so many different pictures, without colour."""
    for _ in range(4000):
        found = list(dict.fromkeys(ESCAPE.sub("", stream.getvalue()).replace("\n", "\r").split("\r")))[1:]
        if len(found) >= pictures:
            break
        time.sleep(0.005)
    line.close()
    return found


def test_the_line_moves_by_itself_says_how_far_and_leaves_no_trace(quick: None) -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.hear("validating", 12, 40)
    found = shown_by(line, stream, 5)
    assert all("validating" in each and "12/40" in each and "━" in each for each in found)
    assert len({each[0] for each in found}) >= 4, "the first character turns while the work says nothing"
    assert all(len(each) <= 59 for each in found)
    assert stream.getvalue().endswith("\r\x1b[2K") and "\x1b[3" in stream.getvalue()


def test_no_color_and_ascii_terminals_are_respected(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    line = StatusLine(stream)
    line.hear("tokenising", 3 << 20, 4 << 20)
    found = shown_by(line, stream, 3)
    assert all(each.isascii() and "75%" in each and "#" in each for each in found)
    assert "\x1b[3" not in stream.getvalue() and "\x1b[1m" not in stream.getvalue()


def test_in_a_pipe_there_is_a_line_for_a_minute_of_silence_and_none_while_others_speak(quick: None) -> None:
    stream = io.StringIO()
    line = StatusLine(stream)
    line.hear("training", 12, 500)
    found = shown_by(line, stream, 2)
    assert found[0].startswith("training  12/500  ") and "\x1b" not in stream.getvalue()
    talked, stream = 0.0, io.StringIO()
    line = StatusLine(stream)
    line.hear("training", 12, 500)
    began = time.monotonic()
    while (talked := time.monotonic() - began) < 0.3:
        with line.aside():
            time.sleep(0.001)
    line.close()
    assert talked >= 0.3 and stream.getvalue().count("\n") <= 1  # one, where this process was not let run for long


def test_others_print_on_a_clean_line_and_the_line_comes_back(quick: None) -> None:
    stream = Terminal()
    line = StatusLine(stream)
    line.hear("working")
    for _ in range(4000):
        if stream.getvalue():
            break
        time.sleep(0.005)
    line.say("a word")
    assert "\r\x1b[2Ka word\n" in stream.getvalue()
    assert stream.getvalue().index("a word") > 0 and shown_by(line, stream, 1)
    line.rest()


def test_what_takes_less_than_a_second_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "QUIET_SECONDS", 1e9)
    stream = Terminal()
    line = StatusLine(stream)
    for done in range(1000):
        line.hear("quick", done, 1000)
    line.close()
    assert stream.getvalue() == ""


def test_a_task_within_a_task_names_both_and_nobody_need_listen() -> None:
    progress("unheard", 1, 2)
    heard: list[tuple[str, int, int]] = []
    with heard_by(lambda *word: heard.append(word)):
        with within("timing bf16 (1 of 9)"):
            progress("validating", 3, 40)
        progress("after")
    with within("unheard"):
        progress("unheard")
    assert heard == [
        ("timing bf16 (1 of 9)", 0, 0), ("timing bf16 (1 of 9): validating", 3, 40), ("after", 0, 0)
    ]  # fmt: skip


TOKENISE = """
import signal, sys, time
from pathlib import Path
from altgrad.cli.progress import preparing
from altgrad.data.documents import FileCorpus
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import load_tokens, on_progress

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell inherit it ignored
def slowly(done, total):
    if done > total * 0.7:
        print("building", flush=True)
        time.sleep(60)
with preparing():
    on_progress.set(slowly)
    load_tokens(FileCorpus(Path(sys.argv[1]), "text"), BPE(bpe=300))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_request_to_stop_leaves_nothing_half_built(tmp_path: Path, number: int, code: int) -> None:
    pytest.importorskip("tokenizers")
    source = tmp_path / "part.parquet"
    pd.read_parquet(locate(SAMPLE)).groupby("split").head(30).to_parquet(source)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ALTGRAD_CACHE": str(tmp_path / "cache")}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", TOKENISE, str(source)], env=environment, text=True, **pipes
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait() == code
    assert said.splitlines()[-1] == "Stopped before the data was ready."
    assert "Traceback" not in said
    assert [entry for entry in (tmp_path / "cache" / "tokens").iterdir() if entry.is_dir()] == []


def test_signals_are_as_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="no file"), preparing():
        raise ValueError("no file")
    assert signal.getsignal(signal.SIGTERM) is before


# Every command on a terminal


SPEC = """\
project: demo
name: tiny
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, source: page.txt, batch_size: 2}
precision: {rules: [{match: "blocks.*", weight: e4m3fn, input: e4m3fn}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 6
threads: 1
evaluate_every: 6
"""
MATRIX = """\
purpose: a test
base: tiny.yaml
arms:
  e4m3fn: {purpose: as it is, expect: nothing}
  plain: {purpose: without casts, expect: nothing, set: {precision: none}}
seeds: [0]
"""
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # the command: what is typed, and phases that must be seen
    "train": (("train", "tiny.yaml"), ("loading torch", "reading the data", "checking the spec against the model")),
    "train --json": (("train", "tiny.yaml", "--set", "seed=1", "--json"), ("training", "validating")),
    "train another": (("train", "tiny.yaml", "--set", "precision=none"), ("reading the data",)),
    "train --dry-run": (("train", "tiny.yaml", "--dry-run"), ("checking the spec against the model",)),
    "watch": (("watch", "RUN"), ()),
    "evaluate": (("evaluate", "RUN"), ("reading the checkpoint", "validating")),
    "evaluate --recipe": (("evaluate", "RUN", "--recipe", "mx"), ("casting the model by mx", "reading the checkpoint")),
    "mismatch": (("mismatch", "RUN", "--serve", "mx", "--by", "operand"), ("casting the model by mx", "running mx")),
    "export": (("export", "RUN", "--out", "out"), ("loading torch",)),
    "policy": (("policy", "tiny.yaml", "--to", "te"), ("building the model", "writing it for te")),
    "recipes list": (("recipes", "list"), ()),
    "recipes show": (("recipes", "show", "mx"), ()),
    "recipes diff": (("recipes", "diff", "mx", "te_mxfp8"), ()),
    "quantize-model": (("quantize-model", "runs/demo/RUN"), ("reading tensors", "casting to e5m2")),
    "diagnose": (("diagnose", "RUN"), ("reading the checkpoint", "weighing formats")),
    "diagnose --replay": (("diagnose", "RUN", "--replay"), ("replaying the step", "attributing the error to casts")),
    "diagnose --against": (("diagnose", "RUN", "--against", "PLAIN"), ("comparing losses",)),
    "diagnose --oracle": (("diagnose", "tiny.yaml"), ("rehearsing variants",)),
    "report": (("report", "--project", "demo"), ("reading runs", "writing the page", "drawing figures")),
    "sweep --dry-run": (("sweep", "m.yaml", "--dry-run"), ("checking every run", "timing plain (2 of 2): training")),
    "sweep --power": (("sweep", "m.yaml", "--power"), ("reading finished runs",)),
    "sweep": (("sweep", "m.yaml", "--jobs", "1", "--runs", "swept"), ("checking every run",)),
    "sync": (("sync", "RUN", "--to", "tensorboard"), ("sending demo/RUN to tensorboard",)),
    "kinds": (("kinds", "storage"), ("loading torch",)),
    "compare": (("compare", "RUN", "PLAIN"), ("reading runs", "judging arms")),
    "init": (("init", "new.yaml"), ()),
    "doctor": (("doctor",), ()),
    "runs list": (("runs", "list"), ("reading the store",)),
    "runs show": (("runs", "show", "RUN"), ()),
    "runs diff": (("runs", "diff", "RUN", "OTHER"), ("comparing metrics",)),
    "runs path": (("runs", "path", "RUN"), ()),
    "runs rm": (("runs", "rm", "OTHER", "--yes"), ("deleting",)),
    "runs prune": (("runs", "prune", "--yes"), ("reading the store",)),
    "runs export": (("runs", "export", "RUN", "--csv", "all.csv"), ("reading runs",)),
    "formats list": (("formats", "list"), ()),
    "formats show": (("formats", "show", "e4m3fn"), ()),
    "formats inspect": (("formats", "inspect", "e4m3fn", "0.3"), ()),
    "formats compare": (("formats", "compare", "e4m3fn", "--dist", "normal"), ("comparing formats on normal",)),
    "schema run": (("schema", "run"), ()),
    "schema matrix": (("schema", "matrix"), ()),
}
ELSEWHERE: frozenset[str] = frozenset()
"""Commands whose screens are tested with them."""


def names(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from names(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_every_command_is_driven() -> None:
    driven = {" ".join(word for word in name.split() if word != "another" and word[0] != "-") for name in COMMANDS}
    assert set(names(typer.main.get_command(app))) - ELSEWHERE == driven


def in_a_terminal(arguments: list[str], folder: str, slave: str) -> None:
    """The command as a process of its own on a terminal, from one that has torch."""
    os.setsid()
    descriptor = os.open(slave, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(TERM="xterm", COLUMNS="80", LINES="24", WANDB_MODE="offline")
    os.environ.pop("NO_COLOR", None)
    room.QUIET_SECONDS, room.REDRAW_SECONDS = 0.0, 0.002
    code: Any = 0
    try:
        app(arguments)
    except SystemExit as leaving:
        code = leaving.code or 0
    sys.stdout.flush()
    os._exit(code)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a spec, a text and a matrix."""
    folder = tmp_path / "driven"
    folder.mkdir()
    text = "\n\n".join(f"Article {number} shall apply from the day of its publication." for number in range(60))
    (folder / "page.txt").write_text(text)
    (folder / "tiny.yaml").write_text(SPEC)
    (folder / "m.yaml").write_text(MATRIX)
    return folder


def drive(fork: Any, arguments: list[str], folder: Path) -> tuple[int, str, float]:
    """The exit code of a command on a terminal, all it wrote, and the longest silence in its own CPU seconds."""
    ours, theirs = pty.openpty()
    process = fork.Process(target=in_a_terminal, args=(arguments, str(folder), os.ttyname(theirs)))
    process.start()
    seen, gap, before = b"", 0.0, 0.0
    closer = threading.Thread(target=lambda: (process.join(), os.close(theirs)))
    closer.start()
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        now = spent(process.pid)
        gap, before = max(gap, now - before), max(now, before)
    closer.join()
    os.close(ours)
    return process.exitcode, seen.decode(errors="replace"), gap


def spent(pid: int) -> float:
    """CPU seconds of a process so far; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MINUTES = ("diagnose", "report", "sweep", "sync")
"""Commands that compute for seconds."""


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.long)])
def test_no_command_is_silent_for_two_seconds_and_each_says_what_it_does(place: Path, slow: bool) -> None:
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(["altgrad.cli.worker", __name__])
    ids: dict[str, str] = {}
    faults = []
    for name, (typed, phases) in COMMANDS.items():
        if not name.startswith("train") and name.startswith(MINUTES) != slow:
            continue
        arguments = [ids.get(word, word).replace("demo/RUN", f"demo/{ids.get('RUN')}") for word in typed]
        code, seen, gap = drive(fork, arguments, place)
        shown = ESCAPE.sub("", seen)
        if name.startswith("train"):
            made = [path.name for path in (place / "runs" / "demo").iterdir() if path.name not in ids.values()]
            ids |= dict.fromkeys(["RUN", "OTHER", "PLAIN"][len(ids) :][:1], *made) if made else {}
        missing = [each for each in phases if each.replace("RUN", ids.get("RUN", "")) not in shown]
        # a GPT has no Hugging Face form; no target casts one operand of a product; one seed, no pair
        expected = {"export": 2, "policy": 2, "sweep --power": 2}.get(name, 0)
        if missing or gap > SILENT_SECONDS or code != expected or "Traceback" in shown:
            faults.append((name, code, missing, gap, shown[-2000:]))
    assert not faults
