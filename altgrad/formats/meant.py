"""Which of some known names a mistyped one stands for, or none of them: a suggestion never crosses to another thing.

Names of algorithms and formats lie close together by letters and far apart by meaning: adam is one letter from madam,
nearest_odd two from nearest_even, mxfp8 one from mxfp4. A ratio of equal letters (difflib) takes one for the other. So:

    alike       but for case, `_`, `-` and blanks             AdamW, nearest-even
    also known  by a name of the field's                      rne, dynamic
    begun       the only known name that begins like this     adam: adamw; delay: delayed
    continued   or one slip away: a letter left out, doubled, swapped or wrong, never the first one, never a digit, and
                in short words not the last one either        sgdm: sgd; wanb: wandb

More than one known name in a line is no suggestion. Wrong advice costs more than none, since all names are listed then.
"""

import difflib
import re
from collections.abc import Iterable

ALSO_KNOWN = {
    "adam": "adamw", "dynamic": "current", "rne": "nearest_even", "rtne": "nearest_even", "rna": "nearest_away",
    "rtz": "toward_zero", "rz": "toward_zero", "ru": "toward_positive", "rd": "toward_negative", "sr": "stochastic",
    "ema": "toward_average",
}  # fmt: skip
_SHORT, _LONG, _NEAR = 5, 10, 0.85


def meant(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` can only be a slip of, or None."""
    names = {_plain(name): name for name in known}
    said = _plain(word[:120])
    also = ALSO_KNOWN.get(said, "")
    if found := names.get(said) or names.get(_plain(also)):
        return found
    if len(said) > 1 and (begun := [name for name in names if name.startswith(said)]):
        return names[begun[0]] if len(begun) == 1 else None
    continued = max((name for name in names if len(name) > 1 and said.startswith(name)), key=len, default=None)
    near = {name for name in names if _near(said, name)} | ({continued} if continued else set())
    found = near.pop() if len(near) == 1 else ""
    return names[found] if found and (found == continued or _is_a_slip(said, found)) else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _near(said: str, name: str) -> bool:
    """Whether one letter, or two swapped, are all that is between them; of a long name, few letters."""
    if len(said) >= _LONG and difflib.SequenceMatcher(None, said, name).ratio() > _NEAR:
        return True
    a, b = _apart(said, name)
    return len(a) == len(b) == 1 or len(a) + len(b) == 1 or (len(a) == 2 and a == b[::-1])


def _is_a_slip(said: str, name: str) -> bool:
    """Whether the letter is one that fingers get wrong, not one that tells things apart."""
    a, b = _apart(said, name)
    last = len(a) == len(b) == 1 and said[:-1] == name[:-1] and len(said) <= _SHORT
    return said[:1] == name[:1] and not last and re.findall(r"\d", said) == re.findall(r"\d", name)


def _apart(a: str, b: str) -> tuple[str, str]:
    """What is left of both without the beginning and the end that they share."""
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a, b
