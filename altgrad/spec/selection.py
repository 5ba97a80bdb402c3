"""Whether a value is the one that a selection on the command line means: `--only lr=3.56e-3` finds 0.00356.

A selection is read as a spec would read it, so numbers are compared as numbers, `null` and `true` mean what they mean
in YAML, and a list or mapping is the list or mapping. What is no such value is a shell pattern on the text, in each of
the ways in which people write a number: `lr=1e-*` finds 0.001.
"""

import math
from fnmatch import fnmatchcase
from typing import Any

from altgrad.document import Document, SpecError


def selects(pattern: str, value: Any) -> bool:
    """Whether the pattern means the value."""
    try:
        meant = Document.parse(pattern, "").data
    except SpecError:  # `*` is an alias to YAML
        meant = pattern
    return _same(meant, value) or any(fnmatchcase(text, pattern) for text in _written(value))


def _same(meant: Any, value: Any) -> bool:
    if isinstance(meant, list) and isinstance(value, list | tuple):
        return len(meant) == len(value) and all(map(_same, meant, value))
    if isinstance(meant, dict) and isinstance(value, dict):
        return meant.keys() == value.keys() and all(_same(meant[key], value[key]) for key in meant)
    return bool(meant == value) and isinstance(meant, bool) == isinstance(value, bool)


def _written(value: Any) -> set[str]:
    """The texts of a value; of a number 0.001, 1e-3 and 1e-03."""
    texts = {str(value)}
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        digits = next(text for n in range(18) if float(text := f"{value:.{n}e}") == value)
        mantissa, _, exponent = digits.partition("e")
        texts |= {f"{value:g}", digits, f"{mantissa}e{int(exponent)}"}
    return texts
