"""A file that says "alive" every few seconds and, at the end, how it ended.

    {"pid": 4711, "host": "node7", "count": 12, "stamp": "2026-03-01T12:00:00.000Z", "exit": null}

A worker writes it from its first instant, before torch is imported and long before it holds a run. Whoever started it
need not believe what a cluster engine says: a file that has not changed for a while is a dead worker, or one that might
as well be. The reader measures that on its *own* clock, from change to change, since two hosts' clocks differ by more
than a heartbeat. The exit code is in the file too, because not every engine hands one back; a process that was killed
leaves none.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from altgrad.store.files import utc_now, write_atomic
from altgrad.store.lock import HEARTBEAT_SECONDS


@contextmanager
def beating(path: Path | None, seconds: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Keep the file fresh while the block runs, then write its exit code into it; nothing for None.

    The code is that of the SystemExit, or of an exception with an `exit_code`, that ends the block; 130 for Ctrl-C, 1
    for any other error, else 0. A disk that refuses the file for a while does not end the block.
    """
    if path is None:
        yield
        return
    beat = _Beat(path)
    beat.write(None)
    stop = threading.Event()
    thread = threading.Thread(target=beat.go_on, args=(stop, seconds), name="altgrad-worker-heartbeat", daemon=True)
    thread.start()
    code = 0
    try:
        yield
    except BaseException as error:
        code = _code(error)
        raise
    finally:
        stop.set()
        thread.join(seconds)
        beat.write(code)


class _Beat:
    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def write(self, code: int | None) -> None:
        record = {"pid": os.getpid(), "host": socket.gethostname(), "count": self.count, "stamp": utc_now()}
        with suppress(OSError):
            write_atomic(self.path, json.dumps(record | {"exit": code}).encode() + b"\n", durable=False)
        self.count += 1

    def go_on(self, stop: threading.Event, seconds: float) -> None:
        while not stop.wait(seconds):
            self.write(None)


def _code(error: BaseException) -> int:
    code = getattr(error, "exit_code", getattr(error, "code", None))
    if isinstance(code, int):
        return code
    if isinstance(error, SystemExit):
        return 0 if code is None else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


class Pulse:
    """A reader of one heartbeat file. `exit` is the code it ended with, None while it goes on or if it was killed."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._text = b""
        self._changed = clock()
        self.exit: int | None = None
        self.beaten = False

    def silence(self) -> float:
        """Look at the file: seconds since it last changed, or since this object was made if it never did."""
        text = b""
        with suppress(OSError):
            text = self._path.read_bytes()
        if text and text != self._text:
            self._changed, self._text, self.beaten = self._clock(), text, True
            record: Any = None
            with suppress(ValueError):
                record = json.loads(text)
            self.exit = record.get("exit") if isinstance(record, dict) else None
        return self._clock() - self._changed
