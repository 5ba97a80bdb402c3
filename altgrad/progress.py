"""What long work says of how far it is, and the line that shows it.

    progress("validating", 3, 40)      said where the work is done, at any depth; costs nothing while nobody listens
    with heard_by(line.hear): ...      whoever wants to hear it, in the block

A `StatusLine` is such a listener. In a terminal it is one line on stderr that a thread of its own redraws ten times a
second, so that it moves while the work is deep inside a library; it comes after a second of work and leaves no trace.
In a pipe it is a line a minute, and only in minutes in which nobody else printed anything. Whoever prints to the same
terminal does so inside `aside()`, which takes the line away for that long.

A callback through every signature was the road not taken: it would pass through a dozen functions that have nothing to
say, and an evaluation inside a forecast inside a sweep would need three.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TextIO

from altgrad.display import Line, clean
from altgrad.numerals import duration

Listener = Callable[[str, int, int], None]
"""Hears a phase, and how much of it is done of how much in all: batches, tensors, bytes; 0 of 0 where nobody knows."""

QUIET_SECONDS, REDRAW_SECONDS, MINUTE = 1.0, 0.1, 60.0
MOST_COUNTED = 9999
"""A total beyond this is shown as a share: nobody reads 31,457,280 of 104,857,600."""
BAR = 24

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_line: "StatusLine | None" = None


def progress(phase: str, done: int = 0, total: int = 0) -> None:
    """Say what is being done, in one or a few words, and how far it is."""
    hear = _listener.get()
    if hear is not None:
        hear(phase, done, total)


def listener() -> Listener | None:
    """Who listens here."""
    return _listener.get()


@contextmanager
def heard_by(hear: Listener) -> Iterator[None]:
    """In the block `hear` is told of progress, and nobody else."""
    token = _listener.set(hear)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def within(task: str) -> Iterator[None]:
    """In the block every phase is one of a larger task: `timing e4m3fn (2 of 9): validating`."""
    outer = _listener.get()
    if outer is None:
        yield
        return
    outer(task, 0, 0)
    with heard_by(lambda phase, done, total: outer(f"{task}: {phase}", done, total)):
        yield


def aside() -> AbstractContextManager[object]:
    """A block in which the terminal is the caller's to print on."""
    return nullcontext() if _line is None else _line.aside()


def rest() -> None:
    """Show nothing until the next word: before a question, or where something else draws."""
    if _line is not None:
        _line.rest()


class StatusLine:
    """The line, from when it is made until `close`. stream: stderr if left out. lasting: lines, as in a pipe."""

    def __init__(self, stream: TextIO | None = None, *, lasting: bool | None = None) -> None:
        global _line
        self._stream = sys.stderr if stream is None else stream
        self.lasting = not is_terminal(self._stream) if lasting is None else lasting
        self._phase, self._done, self._total, self._note = "", 0, 0, ""
        self._began = self._busy = self._said = time.monotonic()
        self._drawn, self._ticks = False, 0
        self._lock, self._closing = threading.RLock(), threading.Event()
        self._outer, _line = _line, self
        self._thread = threading.Thread(target=self._draw_until_closed, name="altgrad-status", daemon=True)
        self._thread.start()

    def hear(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Show this from now on; a listener. note: more words, which may change without being another phase."""
        new = phase != self._phase
        if new:
            self._began = time.monotonic()
            if not self._phase:
                self._busy = self._began
        self._phase, self._done, self._total, self._note = phase, done, total, note
        if new and not self.lasting:  # at once; how far it is can wait for the thread
            self._draw()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        with self.aside():
            self._write(line + "\n")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block in which others print; the line comes back below."""
        with self._lock:
            self._erase()
            try:
                yield
            finally:
                self._said = time.monotonic()

    def rest(self) -> None:
        """Show nothing until `hear` is called again."""
        with self._lock:
            self._phase = ""
            self._erase()

    def close(self) -> None:
        """Take the line away; harmless when repeated."""
        global _line
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2)
        self.rest()
        if _line is self:
            _line = self._outer

    def _draw_until_closed(self) -> None:
        while not self._closing.wait(REDRAW_SECONDS if not self.lasting else min(1.0, MINUTE / 10)):
            self._draw()

    def _draw(self) -> None:
        with suppress(OSError, ValueError), self._lock:  # nobody there to look: the work goes on
            now = time.monotonic()
            if self._closing.is_set() or not self._phase:
                return
            if not self.lasting and now - self._busy >= QUIET_SECONDS:
                self._ticks += 1
                self._write(f"\r\x1b[2K{self._picture(now)}")
                self._drawn = True
            elif self.lasting and now - max(self._said, self._busy) >= MINUTE:
                self._write(f"{self._words(now)}\n")
                self._said = now

    def _words(self, now: float) -> str:
        parts = [clean(self._phase), self._count(), self._note, duration(now - self._began)]
        return "  ".join(filter(None, parts))

    def _count(self) -> str:
        if not self._total:
            return str(self._done) if self._done else ""
        if self._total > MOST_COUNTED:
            return f"{self._done / self._total:.0%}"
        return f"{self._done}/{self._total}"

    def _picture(self, now: float) -> str:
        """The line in the width of the terminal, in colour unless NO_COLOR says otherwise."""
        with suppress(OSError, ValueError):
            columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(self._stream.fileno()).columns
            return self._coloured(self._parts(now).fit(max(1, columns - 1)))
        return self._coloured(self._parts(now).fit(79))

    def _parts(self, now: float) -> Line:
        drawable = _can_write(self._stream, "⠋━─")
        spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if drawable else "-\\|/"
        heavy, light = ("━", "─") if drawable else ("#", "-")
        line = Line.of((spinner[self._ticks % len(spinner)] + " ", "cyan"), (clean(self._phase), "bold"), "  ")
        if self._total:
            done = min(BAR, BAR * self._done // self._total)
            line = line.then(Line.of((heavy * done, "green"), (light * (BAR - done), "dim"), "  "))
        line = line.then(Line.of("  ".join(filter(None, (self._count(), self._note)))))
        times = duration(now - self._began)
        if 0 < self._done < self._total and now - self._began > 3:
            times += f", {duration((now - self._began) / self._done * (self._total - self._done))} left"
        return line.then(Line.of((f"  {times}", "dim")))

    def _coloured(self, line: Line) -> str:
        if os.environ.get("NO_COLOR"):
            return line.text.rstrip()
        return "".join(f"{_SGR[style]}{text}\x1b[0m" if style else text for text, style in line.spans if text).rstrip()

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            with suppress(OSError, ValueError):
                self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "ascii"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


_SGR = {"cyan": "\x1b[36m", "green": "\x1b[32m", "bold": "\x1b[1m", "dim": "\x1b[2m"}


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at it, on something that understands cursor movement."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
