"""How far a run of the library's is: a bar in a terminal or a notebook, and in a pipe a line a minute at most.

On stderr, which leaves stdout to whoever calls. rich draws in terminals; its own notebook bar wants ipywidgets, so a
notebook is given a line of HTML that is updated in place.
"""

import html
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from altgrad.store.tracker import JSON, Sink

SAID = ("alarm", "intervention", "warning")
"""Events that are said as they happen."""


class Display(Protocol):
    """A place that shows how far something is; every is the least number of seconds between two pictures."""

    every: float

    def show(self, share: float, text: str) -> None:
        """Show a share between 0 and 1, and in words."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Nothing is shown after this."""


class ProgressBar(Sink):
    """Hears how tokenising goes, and then a run's numbers: a sink. title, steps: of the run, set before its numbers."""

    def __init__(self, display: Display | None = None) -> None:
        self.title, self.steps = "", 0
        self._display = choose_display() if display is None else display
        self._next = -math.inf
        self._loss = math.nan

    def tokenising(self, done: int, total: int) -> None:
        """`done` of `total` bytes of text are tokens."""
        self._show(done / max(1, total), "tokenising")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._loss = float(values.get("train/loss", self._loss))
        loss = "" if math.isnan(self._loss) else f", loss {self._loss:.4f}"
        self._show(step / self.steps, f"{self.title}: step {step}/{self.steps}{loss}", last=step == self.steps)

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        if event in SAID or "compiling" in details:
            self._display.say(f"step {step}  {event}: {message}")

    def close(self) -> None:
        """Take the bar away; lines stay."""
        self._display.close()

    def _show(self, share: float, text: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if now >= self._next or (last and self._display.every < 1):
            self._next = now + self._display.every
            self._display.show(share, text)


def choose_display() -> Display:
    """The display for whoever looks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return _Notebook()
    return _Terminal() if sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb" else _Lines()


class _Lines:
    every = 60.0

    def show(self, share: float, text: str) -> None:
        self.say(f"{text} ({share:.0%})")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class _Terminal:
    every = 0.1

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, share: float, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=share, description=text, refresh=True)

    def say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Notebook:
    every = 0.5

    def __init__(self) -> None:
        self._handle: Any = None
        self._said: list[str] = []

    def show(self, share: float, text: str) -> None:
        lines = "".join(f"<br>{html.escape(line)}" for line in self._said)
        bar = f'<progress value="{share:.4f}" max="1"></progress> {html.escape(text)}{lines}'
        data = {"text/html": bar, "text/plain": text}
        if self._handle is None:
            self._handle = sys.modules["IPython.display"].display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def say(self, line: str) -> None:
        self._said = [*self._said[-9:], line]

    def close(self) -> None:
        """The last picture stays."""
