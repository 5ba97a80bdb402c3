"""Single keys of a terminal, without Return and without echo, while a block runs.

The terminal is set to its cbreak mode (Ctrl-C and Ctrl-Z stay what they are) and given back as it was on every way out:
at the end of the block, at an exception, at the program's exit, and before Ctrl-Z stops it. A program that is put into
the background must neither read from its terminal nor set it, which would stop it; so both are done in the foreground
alone, and keys are heard again once it is back there. Where there is no terminal to read from, or no termios (Windows),
no key is ever heard.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

try:
    import termios
except ImportError:  # Windows
    available = False
else:
    available = True

POLL_SECONDS = 0.2
Handler = Callable[[int, FrameType | None], Any] | int | None


class Keys:
    """Tells `pressed` of every key, in a thread of its own. Always `close` it; `suspended` hears of Ctrl-Z (True), and
    of the return from it (False), to put away what it draws.
    """

    def __init__(
        self, pressed: Callable[[str], None], suspended: Callable[[bool], None] = lambda stopped: None
    ) -> None:
        self._pressed, self._suspended = pressed, suspended
        self._terminal = _terminal()
        self._before: list[Any] | None = None
        self._lock, self._closing, self._stopped = threading.Lock(), threading.Event(), False
        self._handler: Handler = None
        if self._terminal is None:
            return
        self._take()
        atexit.register(self._give_back)
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTSTP, self._stop)
        threading.Thread(target=self._listen, name="altgrad-keys", daemon=True).start()

    @property
    def heard(self) -> bool:
        """Whether there is a terminal whose keys are heard."""
        return self._terminal is not None

    def close(self) -> None:
        """Give the terminal back as it was; harmless when repeated."""
        self._closing.set()
        self._give_back()
        atexit.unregister(self._give_back)
        if self._handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTSTP, self._handler)
            self._handler = None

    def _listen(self) -> None:
        terminal = self._terminal
        assert terminal is not None
        while not self._closing.is_set():
            if self._stopped or not _in_foreground(terminal):
                self._closing.wait(POLL_SECONDS)
                continue
            self._take()
            with suppress(OSError, ValueError):
                ready, _, _ = select.select([terminal], [], [], POLL_SECONDS)
                if ready and not self._closing.is_set() and _in_foreground(terminal):
                    typed = os.read(terminal, 64)
                    if not typed:  # the terminal is gone
                        return
                    for key in typed.decode(errors="ignore"):
                        self._pressed(key)

    def _take(self) -> None:
        with self._lock, suppress(OSError, termios.error):
            terminal = self._terminal
            if terminal is None or self._before is not None or self._closing.is_set() or not _in_foreground(terminal):
                return
            before = termios.tcgetattr(terminal)
            changed = [*before[:6], list(before[6])]
            changed[3] &= ~(termios.ICANON | termios.ECHO)
            changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
            termios.tcsetattr(terminal, termios.TCSANOW, changed)
            self._before = before

    def _give_back(self) -> None:
        with self._lock, suppress(OSError, termios.error):
            if self._terminal is not None and self._before is not None and _in_foreground(self._terminal):
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
                self._before = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the terminal is the shell's until the program is continued."""
        self._stopped = True
        self._give_back()
        if not self._closing.is_set():
            self._suspended(True)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)  # here it has been continued
        self._stopped = False
        if not self._closing.is_set():
            self._suspended(False)


def _terminal() -> int | None:
    """The descriptor of the terminal that keys come from, if there is one and it is ours."""
    if not available:
        return None
    with suppress(OSError, ValueError, AttributeError):
        number = sys.stdin.fileno()
        if os.isatty(number) and _in_foreground(number):
            return number
    return None


def _in_foreground(terminal: int) -> bool:
    with suppress(OSError):
        return os.tcgetpgrp(terminal) == os.getpgrp()
    return False


def ask_to_stop() -> None:
    """What Ctrl-C does: a run or a sweep saves itself and ends."""
    os.kill(os.getpid(), signal.SIGINT)
