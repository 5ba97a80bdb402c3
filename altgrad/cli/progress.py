"""What a command shows while it works: the line of `altgrad.progress` on stderr, from the first second on.

Everything goes to stderr, since stdout may be somebody's JSON. While a run is prepared there is nothing that could be
saved, so SIGTERM leaves at once with 75, the code of a run that it stops, and Ctrl-C with 130. Both unwind whoever
builds a token cache, who takes away what was half-built.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from altgrad.cli import console
from altgrad.progress import StatusLine, heard_by, is_terminal, progress


@contextmanager
def shown(command: str) -> Iterator[StatusLine]:
    """In the block whatever says how far it is is shown, after a second; before its first word the command's name."""
    line = StatusLine()
    try:
        with heard_by(line.hear):
            progress(command)
            yield line
    finally:
        line.close()


@contextmanager
def preparing() -> Iterator[None]:
    """In the block a request to stop ends the program at once: there is no run yet."""
    if not is_terminal(sys.stderr):
        # The bars of these libraries come to a pipe as one endless line; both ask when they are first imported.
        for variable in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(variable, "1")
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as request:
        console.fail("Stopped before the data was ready.", 75 if isinstance(request, _Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(BaseException):
    """SIGTERM. Like KeyboardInterrupt no Exception, so that nothing takes it for a fault of the data."""


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Terminated
