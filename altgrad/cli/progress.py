"""How a command waits for tokens: quietly for a second, then with a bar, or in a pipe with a line for every tenth.

Everything goes to stderr, since stdout may be somebody's JSON. While tokens are being made there is no run that could
be saved, so SIGTERM leaves at once with 75, the code of a run that it stops, and Ctrl-C with 130. Both unwind the
builder, which takes away what it had half-built.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from altgrad.cli import console
from altgrad.numerals import duration, number

_QUIET_SECONDS, _REDRAW_SECONDS = 1.0, 0.1


@contextmanager
def tokenising() -> Iterator[Callable[[int, int], None]]:
    """What to tell how the building of a token cache goes inside the block; shows nothing for under a second."""
    if not _terminal():
        # The bars of these libraries come to a pipe as one endless line; both ask when they are first imported.
        for variable in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(variable, "1")
    listener = ProgressListener()
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield listener.hear
    except (KeyboardInterrupt, _Terminated) as request:
        listener.close()
        console.fail("Stopped before the data was ready.", 75 if isinstance(request, _Terminated) else 130)
    finally:
        listener.close()
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """SIGTERM. Like KeyboardInterrupt no Exception, so that nothing takes it for a fault of the data."""


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


class ProgressListener:
    """Hears how many bytes of text are done and passes it on to whoever reads stderr."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._next = self._start + _QUIET_SECONDS
        self._tenth = 0
        self._bar: Any = None

    def hear(self, done: int, total: int) -> None:
        """`done` of `total` bytes. Called for every document, so it mostly does nothing."""
        now = time.monotonic()
        if now < self._next:
            return
        if _terminal():
            self._next = now + _REDRAW_SECONDS
            self._draw(done, total)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            elapsed = duration(now - self._start)
            console.say(f"tokenising: {done / total:.0%} of {number(total)}B of text, {elapsed}", sys.stderr)

    def close(self) -> None:
        """Take the bar away; lines stand."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = console.started_bar("tokenising", total)
        self._bar.update(self._bar.task_ids[0], completed=done, refresh=True)
