"""A polite stop: a signal asks a run to save and end between two steps, a second Ctrl-C ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked the run to stop, if one did."""

    signal: int | None = None


@contextmanager
def stop_politely(*signals: signal.Signals) -> Iterator[StopRequest]:
    """In the block these signals only ask. Outside the main thread, which alone may take signals, none is heard."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    heard = signals if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
