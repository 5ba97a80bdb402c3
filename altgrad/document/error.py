"""What is wrong with a spec, said in one line that points at a line and column; several mistakes in one line each."""

import re
from collections.abc import Sequence

MAX_MESSAGE, MAX_LINES = 400, 10


ASSIGNED = "--set "
"""How the place of a value begins that did not come from the document's own text."""


class SpecError(ValueError):
    """A spec that cannot be used. `str(error)` is one line, `file:line:col: what, what is allowed, what to try`.

    Whatever the spec holds, the line is short and printable: control characters and such are shown as escapes.
    A spec with several mistakes is one error, that of the first: its line ends with how many more there are, and
    `lines` has one for each of them, ten at most.
    """

    def __init__(self, where: str, message: str, others: Sequence["SpecError"] = ()) -> None:
        self.where, line = _printable(where), _printable(message)
        self.message = line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "..."
        self.others = tuple(others)
        line = f"{self.where}: {self.message}" if where else self.message
        super().__init__(line + (f" ({len(others)} more)" if others else ""))

    @property
    def lines(self) -> list[str]:
        """What to print, in order."""
        return [str(error) for error in (self, *self.others)][:MAX_LINES]

    @classmethod
    def of(cls, errors: Sequence["SpecError"]) -> "SpecError":
        """One error of these, none of which has others yet."""
        first, *others = errors
        return cls(first.where, first.message, others)

    def noting(self, note: str) -> "SpecError":
        """The same, with a note behind its place."""
        return SpecError(f"{self.where} {note}"[:200], self.message, self.others)


def speaks_of(message: str, key: str, origin: str) -> bool:
    """Whether a message has the name or the value of what `--set path=value` assigned, as words of their own."""
    value = origin.partition("=")[2].strip("'\"")
    return any(word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in (key, value))


def _printable(text: str) -> str:
    """One line without characters that could disturb a terminal."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
