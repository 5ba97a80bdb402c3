"""How AltGrad prints: the one place that asks what is listening. How lines and numbers look, says `altgrad.display`.

A terminal gets colour and a live picture, a pipe gets plain lines, and neither ever gets a traceback: a user's
mistake is one line on stderr and an exit code. What is listening is asked at the time of printing, never at import,
because tests, `| head` and a resized window all change the answer.

rich costs 90 ms to import, a third of what a command may take to start, so it is imported on first use and only here;
whatever is handed out of it is typed `Any` for that reason. NO_COLOR (https://no-color.org) is honoured by rich itself:
colours go, bold and dim stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from altgrad.display import Line, table_lines
from altgrad.progress import aside, rest
from altgrad.store import CheckpointError, LockedError
from altgrad.store.files import DamagedError, spell_nonfinite

ERASE_LINE, BEGIN_UPDATE, END_UPDATE = "\x1b[2K", "\x1b[?2026h", "\x1b[?2026l"


def interactive() -> bool:
    """Whether a person looks at stdout: a terminal, and one that understands cursor movement (TERM is not `dumb`)."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"


def colour() -> bool:
    """Whether stdout may be coloured: a terminal, and NO_COLOR is unset or empty."""
    return interactive() and not os.environ.get("NO_COLOR")


def drawable() -> bool:
    """Whether stdout can carry block and box characters; false for ASCII and Latin-1 locales."""
    try:
        "█╭…".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def size() -> tuple[int, int]:
    """Columns and rows of the terminal; COLUMNS and LINES win, and 80 x 24 is assumed where nobody knows."""
    columns, rows = shutil.get_terminal_size((80, 24))
    return columns, rows


def width() -> int:
    """Columns of the terminal, 80 in a pipe."""
    return size()[0]


def terminal() -> Any:
    """A `rich.console.Console` on the present stdout, for tables and other pictures; it honours NO_COLOR and pipes."""
    from rich.console import Console

    return Console(highlight=False)


def say(line: str, stream: TextIO | None = None) -> bool:
    """Print one line on stdout (or `stream`) at once; characters its encoding lacks become `?`.

    False when nobody reads any more (`altgrad train ... | head`): a run must outlive its audience, so a broken pipe is
    not an error, and stdout is pointed at nothing so that the interpreter's own last flush stays silent too.
    """
    target = sys.stdout if stream is None else stream
    try:
        with aside():
            try:
                target.write(line + "\n")
            except UnicodeEncodeError:
                encoding = target.encoding or "ascii"
                target.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            target.flush()
    except (OSError, ValueError):  # a full disk counts as nobody; ValueError: the stream is closed already
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), target.fileno())
        return False
    return True


def fail(message: str | ValueError, code: int = 1) -> NoReturn:
    """Say on stderr what is wrong, in one line (of a spec with several mistakes in one each), and leave with `code`;
    raises SystemExit.

    Codes: 1 failed, 2 spec or usage, 3 environment, 4 diverged, 5 checkpoint unusable, 6 and 7 of `compare`, 75
    stopped by SIGTERM, 130 Ctrl-C.
    """
    if first_process() or code != 2:  # of a mistake in the spec every rank would say the same
        for line in getattr(message, "lines", [str(message)]):  # a SpecError's; by name, since it loads YAML
            shown = " ".join(line.split())
            say("".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown), sys.stderr)
    raise SystemExit(code) from None


def first_process() -> bool:
    """Whether this process speaks for its run: torchrun starts several and numbers them."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what users can run into, inside the block, into `fail`: a mistake 2, the machine 3, damage 5."""
    try:
        yield
    except (DamagedError, CheckpointError) as error:
        fail(str(error), 5)
    except ValueError as error:
        fail(error, 2)
    except LockedError as error:
        fail(str(error), 3)
    except RuntimeError as error:
        from altgrad.spec import LostProcessesError, MachineError

        if not isinstance(error, MachineError):
            raise
        fail(str(error), 1 if isinstance(error, LostProcessesError) else 3)
    except OSError as error:
        fail(reason(error), 3)


def reason(error: ValueError | OSError) -> str:
    """What it says to a user: of the system's own errors the file and the reason, without the number."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."


def print_json(value: Any) -> None:
    """One JSON document; non-finite numbers as the strings "nan", "inf" and "-inf"."""
    say(json.dumps(spell_nonfinite(value), allow_nan=False, indent=1))


def paragraph(text: str) -> None:
    """Print a text: in a terminal wrapped between words, in a pipe as one line."""
    for line in textwrap.wrap(text, width(), break_on_hyphens=False) if interactive() else [text]:
        say(line)


def say_next(steps: Mapping[str, str]) -> None:
    """After a command: those that are useful now, each with what it does."""
    for number, (command, what) in enumerate(steps.items()):
        say(f"{'next' if not number else '':4} {command}  ({what})")


def picture(lines: Sequence[Line]) -> None:
    """Lines as they are: in colour on a terminal, plain in a pipe."""
    if interactive():
        with aside():
            terminal().print(styled(lines))
    else:
        for line in lines:
            say(line.text.rstrip())


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table; without a header, the first column names the second. In a pipe no cell is ever cut or wrapped."""
    if not header and not rows:
        return
    picture(table_lines(title, header, rows, width() if interactive() else None))


def styled(lines: Sequence[Line]) -> Any:
    """Lines of a frame as one `rich.text.Text` that is never wrapped."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop", end="")
    for row, line in enumerate(lines):
        if row:
            text.append("\n")
        for part, style in line.spans:
            text.append(part, style or None)
    return text


class Screen:
    """A patch of the terminal that is drawn over and over; what others print meanwhile goes above it.

    It is rich's Live without its refresh thread (the caller says when), in the normal screen and not the alternate
    one, so that the last picture stays in the scrollback and a killed process leaves a usable terminal. `console`
    is for tests.
    """

    def __init__(self, console: Any = None) -> None:
        from rich.live import Live

        self._console = terminal() if console is None else console
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._shape = (*self.size, 0)
        rest()
        self._live.start()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows that may be drawn on, asked anew each time since windows are resized."""
        columns, rows = self._console.size
        return max(1, columns), max(1, rows - 1)  # the last row is the cursor's once the drawing ends

    def show(self, lines: Sequence[Line]) -> None:
        """Draw `lines` in place of the last ones, in a single write; all must be of one width.

        rich erases the old rows before it writes the new ones, which can be seen as a flicker. Where every old cell is
        written over anyway, the erasing is taken out; the marks of a synchronised update (DEC mode 2026, ignored where
        unknown) do the rest.
        """
        shape = (*self.size, len(lines))
        resized = shape[:2] != self._shape[:2]
        if resized:  # the terminal has reflowed the old picture: there is nothing left to draw over
            self._console.clear()
        with self._console.capture() as drawn:
            self._live.update(styled(lines), refresh=True)
        text = drawn.get()
        if not resized and shape[2] >= self._shape[2]:
            text = text.replace(ERASE_LINE, "")
        self._shape = shape
        if self._console.is_terminal:
            text = f"{BEGIN_UPDATE}{text}{END_UPDATE}"
        self._console.file.write(text)
        self._console.file.flush()

    def suspend(self, stopped: bool) -> None:
        """The program is stopped by Ctrl-Z, or continued: the cursor is the shell's meanwhile."""
        self._console.show_cursor(stopped)
        self._shape = (0, 0, 0)  # what was drawn is above the shell's lines now

    def close(self) -> None:
        """Leave the last picture standing and give the cursor back; harmless when repeated."""
        self._live.stop()
