"""What every float32 bit pattern must round to, as a table that shares no line with the code it judges.

Rounding is monotone and float32 patterns of one sign, read as integers, are in the order of their values. So for one
format the right answer is constant on a few hundred runs of patterns. A run begins at the first float32 that is past
the midpoint of two neighbouring magnitudes, or on it where the tie goes up to an even code; midpoints are Fractions of
`FloatFormat.magnitude`. Beyond the last run all saturates, infinity included unless it is to be kept, and a NaN stays a
NaN. A pattern with the sign bit gives the same with the sign, except that a format without -0 has +0 for it.

Comparing a chunk of consecutive patterns with the table is comparing slices with constants, which costs less than
reading the chunk; looking up patterns in any order is a binary search over the runs.
"""

import itertools
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altgrad.formats import FloatFormat

SIGN, INFINITY, NAN = 1 << 31, 0x7F800000, 0x7FC00000
Bits = NDArray[np.uint32]


class Mismatch(NamedTuple):
    """One wrong answer, as float32 bit patterns."""

    pattern: int
    found: int
    expected: int

    def __str__(self) -> str:
        x, found, expected = (float(value(bits)) for bits in self)
        return f"{x!r} ({self.pattern:#010x}) gives {found!r}, not {expected!r}"


def value(bits: int) -> np.float32:
    """The float32 with these bits."""
    return np.uint32(bits).view(np.float32)


def bits_of(x: float) -> int:
    """The bits of x as float32."""
    return int(np.float32(x).view(np.uint32))


class Table:
    """The runs of one format under nearest-even rounding with saturation; `starts` and `answers` are for x >= 0.

    nonfinite: whether infinity stays or saturates, too. ValueError for a format outside the tensor domain, whose values
    are not all float32.
    """

    def __init__(self, fmt: FloatFormat, nonfinite: Literal["keep", "saturate"] = "saturate") -> None:
        fmt.require_tensor_domain()
        ladder = [fmt.magnitude(rung) for rung in range(fmt.max_code + 1)]
        starts = [0]
        for rung, (low, high) in enumerate(itertools.pairwise(ladder)):
            middle = (low + high) / 2
            first = first_from(middle)
            tie_stays = rung % 2 == 0 and Fraction(float(value(first))) == middle
            starts.append(first + tie_stays)
        self.format = fmt
        kept = [INFINITY] if nonfinite == "keep" else []
        self.starts = np.array([*starts, *kept, INFINITY + 1], dtype=np.uint32)
        self.answers = np.array([*(bits_of(float(magnitude)) for magnitude in ladder), *kept, NAN], dtype=np.uint32)
        self.in_range = bits_of(float(fmt.max)) + 1
        """How many patterns of each sign are finite and not beyond the largest value."""

    def expected(self, patterns: Bits) -> Bits:
        """The right answer to each pattern; one NaN stands for all."""
        run = np.searchsorted(self.starts, patterns & np.uint32(SIGN - 1), side="right") - 1
        answers = self.answers[run]
        signed = answers | (patterns & np.uint32(SIGN))
        if not self.format.has_negative_zero:
            signed = np.where(answers == 0, answers, signed)
        return np.where(answers == NAN, np.uint32(NAN), signed)

    def wrong(self, found: Bits, start: int) -> tuple[int, Mismatch | None]:
        """How many of the answers to the patterns start, start + 1, ... are wrong, and the first of them.

        The patterns must be of one sign. Equality is of bits; any NaN will do for a NaN.
        """
        low, sign = start & (SIGN - 1), start & SIGN
        stop, count, first = low + len(found), 0, None
        run = int(np.searchsorted(self.starts, np.uint32(low), side="right")) - 1
        while run < len(self.starts) and int(self.starts[run]) < stop:
            after = int(self.starts[run + 1]) if run + 1 < len(self.starts) else SIGN
            begin, end = max(low, int(self.starts[run])), min(stop, after)
            part, answer = found[begin - low : end - low], int(self.answers[run])
            if answer == NAN:
                bad = (part & np.uint32(SIGN - 1)) <= np.uint32(INFINITY)
            else:
                answer |= sign if answer or self.format.has_negative_zero else 0
                bad = part != np.uint32(answer)
            wrong = int(np.count_nonzero(bad))
            if wrong and first is None:
                at = int(bad.argmax())
                first = Mismatch(sign | (begin + at), int(part[at]), answer)
            count, run = count + wrong, run + 1
        return count, first


def first_from(least: Fraction) -> int:
    """The first pattern whose value is `least` or more; `least` > 0 and within float32's range."""
    pattern = bits_of(float(least))
    while Fraction(float(value(pattern))) < least:
        pattern += 1
    while pattern > 0 and Fraction(float(value(pattern - 1))) >= least:
        pattern -= 1
    return pattern
