"""Keys of a terminal: heard without Return, and the terminal is as it was on every way out."""

import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from altgrad.cli.keys import Keys

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, sys, threading, time
from altgrad.cli.keys import Keys
ends = threading.Event()
keys = Keys(lambda key: (print("key", repr(key), flush=True), key == "q" and ends.set()),
            lambda stopped: print("suspended" if stopped else "continued", flush=True))
print("heard", keys.heard, flush=True)
how = sys.argv[1]
if how == "raise":
    raise SystemExit("no finally, no close")
while not ends.wait(0.02):
    pass
if how == "close":
    keys.close()
print("out", flush=True)
"""


SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # as shells do, to set the terminal from the background
def foreground(group):
    os.tcsetpgrp(0, group)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    foreground(os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    foreground(os.getpgrp())
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    print("shell", flush=True)
    assert input() == "fg"
    foreground(child)
    os.kill(child, signal.SIGCONT)
"""


class Terminal:
    """A program on a terminal of its own, started by a shell with job control in its smallest form."""

    def __init__(self, how: str) -> None:
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(sys.executable, [sys.executable, "-c", SHELL, PROGRAM, how])
        self.said = ""

    def until(self, text: str) -> None:
        while text not in self.said:
            ready, _, _ = select.select([self.end], [], [], 120)
            assert ready, self.said
            self.said += os.read(self.end, 4096).decode()

    def is_line_by_line(self) -> bool:
        return bool(termios.tcgetattr(self.end)[3] & termios.ICANON and termios.tcgetattr(self.end)[3] & termios.ECHO)

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal() -> Iterator[Callable[[str], Terminal]]:
    made: list[Terminal] = []

    def make(how: str) -> Terminal:
        made.append(Terminal(how))
        return made[-1]

    yield make
    for each in made:
        os.close(each.end)


def test_keys_come_one_by_one_and_the_terminal_is_given_back(terminal: Callable[[str], Terminal]) -> None:
    it = terminal("close")
    it.until("heard True")
    assert not it.is_line_by_line()
    it.type("s?")
    it.until("key '?'")
    assert "'s'" in it.said
    it.type("q")
    it.until("out")
    assert it.is_line_by_line()
    assert it.wait() == 0


@pytest.mark.parametrize("how", ["raise", "forget"])
def test_whoever_forgets_to_close_gives_the_terminal_back_too(terminal: Callable[[str], Terminal], how: str) -> None:
    it = terminal(how)
    it.until("heard True")
    if how == "forget":
        it.type("q")
        it.until("out")
    it.wait()
    assert it.is_line_by_line()


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(terminal: Callable[[str], Terminal]) -> None:
    it = terminal("close")
    it.until("heard True")
    it.type("\x1a")  # Ctrl-Z
    it.until("shell")
    assert "suspended" in it.said and it.is_line_by_line()
    it.type("fg\n")
    it.until("continued")
    it.type("q")
    it.until("out")
    assert it.wait() == 0 and it.is_line_by_line()


def test_without_a_terminal_no_key_is_heard() -> None:
    command = [sys.executable, "-c", PROGRAM.replace("while not", "while False and not"), "close"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert done.stdout == "heard False\nout\n" and done.stderr == ""


def test_windows_has_no_termios_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altgrad.cli.keys.available", False)
    keys = Keys(lambda key: None)
    keys.close()
    assert not keys.heard
