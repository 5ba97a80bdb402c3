"""How far a run of the library's is: a line in a terminal or a notebook, and in a pipe a line a minute at most.

On stderr, which leaves stdout to whoever calls. A notebook is given a line of HTML that is updated in place, since
rich's and tqdm's bars want ipywidgets there.
"""

import html
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from altgrad.progress import StatusLine
from altgrad.store.tracker import JSON, Sink

SAID = ("alarm", "intervention", "warning")
"""Events that are said as they happen."""
NOTEBOOK_SECONDS = 0.5


class Display(Protocol):
    """A place that shows how far something is. lasting: what it shows stays, so it is asked to show little."""

    lasting: bool

    def hear(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """Show a phase, how much of it is done of how much in all (0 of 0: unknown), and more words."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Nothing is shown after this."""


class TrainingProgress(Sink):
    """Hears what prepares a run (`hear`), and then the run's numbers: a sink, once `begin` has named the run."""

    def __init__(self, display: Display | None = None) -> None:
        self._display = choose_display() if display is None else display
        self._title, self._loss = "", math.nan

    def hear(self, phase: str, done: int = 0, total: int = 0) -> None:
        """A listener of `altgrad.progress`."""
        loss = "" if math.isnan(self._loss) else f"loss {self._loss:.4f}"
        self._display.hear(f"{self._title}: {phase}" if self._title else phase, done, total, loss)

    def begin(self, title: str, steps: int) -> None:
        """From here on it is about this run."""
        self._title = title
        if self._display.lasting:
            self._display.say(f"{title}: {steps} steps")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._loss = float(values.get("train/loss", self._loss))

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        if event in SAID or "compiling" in details:
            self._display.say(f"step {step}  {event}: {message}")

    def close(self) -> None:
        """Take the line away; others stay."""
        self._display.close()


def choose_display() -> Display:
    """The display for whoever looks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return _Notebook() if hasattr(shell, "kernel") else StatusLine()


class _Notebook:
    lasting = False

    def __init__(self) -> None:
        self._handle: Any = None
        self._said: list[str] = []
        self._next = -math.inf

    def hear(self, phase: str, done: int = 0, total: int = 0, note: str = "") -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + NOTEBOOK_SECONDS
        text = "  ".join(filter(None, (phase, f"{done}/{total}" if total else "", note)))
        lines = "".join(f"<br>{html.escape(line)}" for line in self._said)
        bar = f'<progress value="{done / max(1, total):.4f}" max="1"></progress> {html.escape(text)}{lines}'
        data = {"text/html": bar, "text/plain": text}
        if self._handle is None:
            self._handle = sys.modules["IPython.display"].display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def say(self, line: str) -> None:
        self._said = [*self._said[-9:], line]

    def close(self) -> None:
        """The last picture stays."""
