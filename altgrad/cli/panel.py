"""A run in the terminal: a live panel for people, plain lines for pipes. Both are sinks of a run's numbers.

The panel draws in a thread of its own, at most four times a second and for at most a twentieth of the time: the
training thread only drops a copy of its numbers into a queue. The thread sleeps while nothing arrives, but for one
look every second that keeps the clock true. Neither sink may ever be the reason that a run dies: if drawing
fails, or `q` closes the panel, plain lines go on.

Drawing inside `metrics` was the road not taken: the numbers of the last step before a long evaluation would stay
invisible for as long as that takes.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TextIO

from altgrad.cli import console
from altgrad.cli.console import Screen
from altgrad.cli.keys import Keys, ask_to_stop
from altgrad.cli.picture import run_picture
from altgrad.cli.run_view import Watched, in_short, in_words
from altgrad.display import clean, event_text
from altgrad.numerals import count_text, duration, number
from altgrad.progress import Listener
from altgrad.store.runs import TEXT_SCORES

REFRESH_SECONDS = 0.25
DRAWING_SHARE = 0.05
LOOK_SECONDS = 1.0
SMALLEST = (40, 6)


class PlainLines:
    """One aligned line for each logged step, on stdout or `stream`: no escape codes, no carriage returns.

    A step may come in several calls (training, then validation); its line is held until the step is over, which the
    next step, any event or `close` says. Steps that bring neither a training nor a validation loss have no line.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        references: Mapping[str, float] | None = None,
        stream: TextIO | None = None,
        scores: Sequence[str] = TEXT_SCORES,
    ) -> None:
        self.watched = Watched(title, steps, references, scores=scores)
        self.heard = True
        self._stream = stream
        self._held: dict[str, float] = {}
        self._say(f"{self.watched.title}: {steps} steps")
        if references:
            named = ", ".join(f"{name} {number(value)}" for name, value in self.watched.references.items())
            self._say(f"Reference {in_words(scores[0])}: {named}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers in; prints the previous step's line once another step begins."""
        if step != self.watched.step:
            self._release()
        numbers = {key: float(value) for key, value in values.items()}
        slow = self.watched.slowed
        self.watched.metrics(step, numbers)
        self._held.update(numbers)
        if slow is None and (slow := self.watched.slowed) is not None:
            self._say(f"{self._place(step)}  {event_text('notice', slow.message)}")

    def beside(self, crowd: Callable[[], str | None]) -> None:
        """Who says from now on what the run shares the machine with; see `Watched.crowd`."""
        self.watched.crowd = crowd

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Print the event as a line at once."""
        self._release()
        self.watched.event(step, event, message, **details)
        self._say(f"{self._place(step)}  {event_text(event, message)}")

    def status(self, status: str) -> None:
        """How the run ended; nothing is printed, that is for whoever knows why."""
        self.watched.status = status

    def late(self, seconds: float) -> None:
        """The latest news are `seconds` old; see `Panel.late`."""
        self.watched.hush(seconds)

    def close(self) -> None:
        """Print the line still held."""
        self._release()

    def _release(self) -> None:
        held, self._held = self._held, {}
        if "train/loss" in held or "validation/loss" in held:
            self._say(self._line(held))

    def _line(self, held: Mapping[str, float]) -> str:
        def column(key: str, label: str, form: Callable[[float], str], width: int) -> str:
            return f"{label} {form(held[key]) if key in held else '-':<{width}}"

        parts = [
            self._place(self.watched.step),
            column("train/loss", "loss", lambda x: number(x, 4), 7),
            column("train/lr", "lr", number, 8),
            column("time/tokens_per_second", "tokens/s", count_text, 5),
            f"ETA {duration(self.watched.remaining()):<7}",
        ]
        if "validation/loss" in held:
            parts.append(column("validation/loss", "validation", lambda x: number(x, 4), 7))
        main = self.watched.scores[:1]
        parts += [f"{number(held[f'validation/{x}'], 4)} {in_short(x)}" for x in main if f"validation/{x}" in held]
        return "  ".join(parts).rstrip()

    def _place(self, step: int) -> str:
        steps = str(self.watched.steps)
        return f"step {step:>{len(steps)}}/{steps}"

    def _say(self, line: str) -> None:
        if self.heard:
            self.heard = console.say(line, self._stream)


def first_of(shown: Sequence[object], otherwise: Listener | None) -> Listener:
    """A listener of `altgrad.progress` that tells the panel in `shown`, once there is one and while it is drawn."""

    def hear(phase: str, done: int, total: int) -> None:
        panels = [each for each in shown if isinstance(each, RunPanel) and each.is_drawn]
        to = panels[0].progress if panels else otherwise
        if to is not None:
            to(phase, done, total)

    return hear


class RunPanel:
    """The live picture of a run in a terminal; `screen` and `watched` are for tests and onlookers.

    `scores` are the numbers that the validation split is judged by, the main one first; `references` are named values
    of that one to compare with (`{"unigram": 4.47}`); `worse` is that of `Watched`. `keys`: what may be pressed; `stop`
    asks the run to end. Always `close` it, in a `finally`: the last picture then stays, with the cursor and the
    terminal's own mode given back.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        references: Mapping[str, float] | None = None,
        screen: Screen | None = None,
        worse: Mapping[str, str] | None = None,
        scores: Sequence[str] = TEXT_SCORES,
        keys: Sequence[tuple[str, str]] = (),
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.watched = Watched(title, steps, references, worse, scores=scores)
        self.heard = True
        self._instead: PlainLines | None = None
        self._mail: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._stop, self._helping = stop, False
        self._screen = Screen() if screen is None else screen
        self._keys = Keys(self.press, self._screen.suspend) if keys else None
        self._shown = keys if self._keys is not None and (self._keys.heard or screen is not None) else ()
        self._thread = threading.Thread(target=self._draw_until_closed, name="altgrad-panel", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # an exception that nobody caught must not leave the cursor hidden

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over a step's numbers; a copy is made, so buffers may be reused at once."""
        numbers = {key: float(value) for key, value in values.items()}
        self._mail.put(lambda: self._sink().metrics(step, numbers))

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Hand over an event."""
        self._mail.put(lambda: self._sink().event(step, event, message, **details))

    def progress(self, phase: str, done: int, total: int) -> None:
        """What the run is doing: a listener of `altgrad.progress`."""
        self._mail.put(lambda: self.watched.progress(phase, done, total))

    @property
    def is_drawn(self) -> bool:
        """Whether it is a panel still, and not lines, as after `q`."""
        return self._instead is None

    def press(self, key: str) -> None:
        """A key was typed; from any thread."""
        self._mail.put(lambda: self._pressed(key))

    def status(self, status: str) -> None:
        """Say how the run ended (`completed`, `diverged`, ...); for those who know it otherwise than by an event."""
        self._mail.put(lambda: setattr(self.watched, "status", status))

    def beside(self, crowd: Callable[[], str | None]) -> None:
        """Who says from now on what the run shares the machine with; see `Watched.crowd`."""
        self._mail.put(lambda: setattr(self.watched, "crowd", crowd))

    def late(self, seconds: float) -> None:
        """The latest news are `seconds` old: the clock of an onlooker who reads them from a file."""
        self._mail.put(lambda: self.watched.hush(seconds))

    def close(self) -> None:
        """Draw once more and leave the picture standing; harmless when repeated."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._mail.put(None)
        self._thread.join(timeout=5)
        atexit.unregister(self.close)
        if self._keys is not None:
            self._keys.close()
        with contextlib.suppress(Exception):
            self._screen.close()

    def _pressed(self, key: str) -> None:
        what = dict(self._shown).get(key)
        if self._instead is not None:
            return
        if what == "stop" and not self.watched.stopping:  # twice would not be graceful
            self.watched.stopping = True
            self._stop()
        elif what == "detach":
            self._go_on_with_lines("the panel is closed; training goes on")
        elif what == "leave":
            self.heard = False
        self._helping = what == "help" and not self._helping

    def _sink(self) -> Watched | PlainLines:
        return self.watched if self._instead is None else self._instead

    def _draw_until_closed(self) -> None:
        going = True
        while going:
            began = time.monotonic()
            try:
                going = self._read_mail()
                began = time.monotonic()
                if self._instead is None:
                    keys = self._shown if not self._closing.is_set() else ()
                    size = self._screen.size
                    self._screen.show(run_picture(self.watched, *size, keys, helping=self._helping and bool(keys)))
            except Exception as error:  # whatever it is, a picture is not worth a run
                self._go_on_with_lines(f"the panel could not be drawn ({error}); plain lines go on")
            if going:
                self._closing.wait(max(REFRESH_SECONDS, (time.monotonic() - began) / DRAWING_SHARE))
        if self._instead is not None:
            self._instead.close()

    def _read_mail(self) -> bool:
        """Wait for news and take all there is, for at most one refresh; False once the panel is closed."""
        with contextlib.suppress(Empty):
            take = self._mail.get(timeout=LOOK_SECONDS)
            until = time.monotonic() + REFRESH_SECONDS
            while take is not None:
                take()
                if time.monotonic() > until and not self._closing.is_set():
                    return True
                take = self._mail.get_nowait()
            return False
        return True

    def _go_on_with_lines(self, why: str) -> None:
        with contextlib.suppress(Exception):
            self._screen.close()
        if self._keys is not None:
            self._keys.close()
        known = self.watched
        self._instead = PlainLines(known.title, known.steps, known.references, scores=known.scores)
        self._instead.watched.crowd = known.crowd
        self._instead.event(self.watched.step, "notice", why)


class Warnings:
    """Nothing but warnings, on stderr: for those who asked for one JSON object on stdout."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing is shown."""

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Print a warning as a line."""
        if event == "warning":
            console.say(f"warning: {clean(message)}", sys.stderr)

    def close(self) -> None:
        """Nothing is held."""


KEYS = (("q", "detach"), ("s", "stop"), ("?", "help"))
"""Of the process that trains."""
WATCHING = (("q", "leave"), ("?", "help"))
"""Of an onlooker."""


def choose(
    title: str,
    steps: int,
    references: Mapping[str, float] | None = None,
    worse: Mapping[str, str] | None = None,
    scores: Sequence[str] = TEXT_SCORES,
    keys: Sequence[tuple[str, str]] = KEYS,
) -> RunPanel | PlainLines:
    """The panel where a person looks at a terminal that can show it, plain lines everywhere else."""
    columns, rows = console.size()
    if console.interactive() and console.drawable() and columns >= SMALLEST[0] and rows >= SMALLEST[1]:
        return RunPanel(title, steps, references, worse=worse, scores=scores, keys=keys, stop=ask_to_stop)
    return PlainLines(title, steps, references, scores=scores)
