"""The small words of error messages: what was found, what may have been meant, where in a spec it stands."""

import difflib
import json
from collections.abc import Iterable
from typing import Any

from altgrad.document import Key, Location
from altgrad.formats.meant import meant

LONGEST = 60


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with a leading space for the closest of `known`, or an empty string if none is close.

    For names that differ in letters alone, such as keys and layers; what names an algorithm is asked of `kind_meant`.
    """
    names = list(known)
    close = [found] if (found := meant(word, names)) else difflib.get_close_matches(word[: 2 * LONGEST], names, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def kind_meant(word: str, known: Iterable[str]) -> str:
    """The same for kinds and choices, of which another one is never suggested (`altgrad.formats.meant`)."""
    found = meant(word, known)
    return f" Did you mean '{found}'?" if found else ""


def show(value: Any) -> str:
    """A value as a spec would write it, on one line of at most 60 characters; `empty` for null."""
    if value is None:
        return "empty"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = {"Infinity": ".inf", "-Infinity": "-.inf", "NaN": ".nan"}.get(text, text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def listed(words: Iterable[str], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`; `none` of nothing."""
    *first, final = list(words) or ["none"]
    return f"{', '.join(first)} {last} {final}" if first else final


def dotted(location: Location) -> str:
    """`optimizer.betas.0`; `the spec` for the whole."""
    return ".".join(map(str, location)) or "the spec"


class LocatedError(ValueError):
    """Something wrong whose place is known: `location` leads to it inside the spec that complains.

    Raised by what meets a spec later (a policy that meets a model), and by validators that look at several fields.
    """

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location

    def within(self, *outer: Key) -> "LocatedError":
        """The same complaint as seen from the spec that holds this one under `outer`."""
        return LocatedError((*outer, *self.location), str(self))


class MachineError(RuntimeError):
    """What this machine cannot do, in one line: a device that is not here, a compiler that was insisted on."""


class LostProcessesError(MachineError):
    """A process of a run lost the others."""


class WrongTypeError(ValueError):
    """A value of a type that a field does not take. Of a spec file this is said from the field's annotation instead."""
