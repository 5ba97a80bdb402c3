"""Scale formats: the unsigned formats in which a block's or a tensor's scale is stored.

A scale is positive, so these spend no bit on a sign, and a FloatFormat (sign and magnitude) cannot be one. The codes of
a scale format count up through the magnitudes of a *ladder*, the FloatFormat with the same exponent field and bias and
a sign bit more; so values, places and rounding are those of `codes.py`, and what is told apart here are three facts:

    specials   zero        at the top                    ties
    fnu        none        NaN at all ones               up     OCP MX: e8m0fnu, 2^(code - 127)
    ue         code 0      NaN, and infinity beneath     even   IEEE P3109, unsigned, extended, bias 2^(K - P)
    uf         code 0      NaN                           even   IEEE P3109, unsigned, finite, bias 2^(K - P)

Without a zero the code starts one rung up the ladder. Ties of e8m0fnu go up because those of ml_dtypes and torch do;
they and gfloat are the oracles where they agree. They do not below 2^-126, where ml_dtypes and torch take a float32
sub-normal's bits for a normal's and send (2^-127, 2^-126) up; we and gfloat round to the nearest. Nor outside the
range (0 becomes NaN in ml_dtypes and 2^-127 in torch; a sign is NaN in the one and dropped in the other), so this file
decides: a scale below the range is the smallest, above it the largest or what `overflow` says, a negative one an error.

OCP Microscaling Formats (MX) 1.0 (2023) section 5.4.1; IEEE SA P3109 interim report, "binary8p3ue" read as 8 bits,
precision 3, unsigned, extended.
"""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, Self, get_args

from altgrad.formats.catalog import SCALE_ALIASES, SCALES
from altgrad.formats.codes import Overflow, place, round_rung
from altgrad.formats.format import FloatFormat
from altgrad.formats.meant import meant
from altgrad.formats.rounding import Rounding

ScaleSpecials = Literal["fnu", "ue", "uf"]
"""Which codes are no positive numbers; see the module's table."""

_NAME = re.compile(r"e([1-9])m0(fnu)|(?:binary|p3109_k)([1-9])p([1-9])(ue|uf)")


@dataclass(frozen=True, repr=False)
class ScaleFormat:
    """One unsigned format of 2 to 8 bits. Equal when the three facts are; `ScaleFormat.parse(str(f)) == f`.

    ValueError for other widths, a precision outside 1 to `bits`, and `fnu` with a precision other than 1.
    """

    bits: int
    """Width of a code."""
    precision: int
    """Bits of the significand, the leading one included: mantissa_bits + 1."""
    specials: ScaleSpecials

    name: str = field(init=False, compare=False)
    """The canonical name."""
    ladder: FloatFormat = field(init=False, compare=False)
    """The signed format, a bit wider, whose magnitudes the codes count."""
    bias: int = field(init=False, compare=False)
    """Exponent bias: a normal value is (1 + m 2^-M) 2^(e - bias) for the fields e and m of its code."""
    has_zero: bool = field(init=False, compare=False)
    has_inf: bool = field(init=False, compare=False)
    max_code: int = field(init=False, compare=False)
    """Code of the largest finite value."""
    max: float = field(init=False, compare=False)
    min_positive: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.specials not in get_args(ScaleSpecials):
            raise ValueError(f"'{self.specials}' is not one of {', '.join(get_args(ScaleSpecials))}.")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"a scale format of {self.bits} bits is none of ours; they have 2 to 8.")
        has_zero, has_inf = self.specials != "fnu", self.specials == "ue"
        highest = self.bits if has_zero else 1
        if not 1 <= self.precision <= highest:
            raise ValueError(
                f"precision {self.precision} is outside 1 to {highest} for {self.bits} bits and {self.specials}."
            )
        exponent_bits = self.bits - self.precision + 1
        bias = (1 << (exponent_bits - 1)) - (not has_zero)
        name = f"binary{self.bits}p{self.precision}{self.specials}" if has_zero else f"e{self.bits}m0fnu"
        # A ladder has its zero at rung 0, so one without is the ladder of a bias one higher, climbed from rung 1.
        ladder = FloatFormat(exponent_bits, self.precision - 1, bias + (not has_zero), "f")
        self.__dict__.update(name=name, ladder=ladder, bias=bias, has_zero=has_zero, has_inf=has_inf)
        max_code = (1 << self.bits) - 2 - has_inf
        self.__dict__.update(max_code=max_code)
        self.__dict__.update(max=self.decode(max_code), min_positive=self.decode(int(has_zero)))

    @classmethod
    def parse(cls, name: str) -> Self:
        """The scale format called `name`: `e8m0fnu`, `binary8p4ue` (also `p3109_k8p4ue`) or an alias, in any case.

        ValueError for anything else, formats for values included.
        """
        spelled = name.strip().lower()
        match = _NAME.fullmatch(SCALE_ALIASES.get(spelled, spelled))
        if match is None:
            known = [*SCALE_ALIASES, *(line.name for line in SCALES)]
            close = meant(spelled, known)
            remedy = f"Did you mean '{close}'?" if close else "Write e8m0fnu or binary<K>p<P>u<e|f>."
            raise ValueError(f"'{name}' is not a scale format. {remedy}")
        if match[2]:
            return cls(int(match[1]), 1, "fnu")
        return cls(int(match[3]), int(match[4]), "ue" if match[5] == "ue" else "uf")

    @property
    def code_count(self) -> int:
        """Number of codes that are finite values."""
        return self.max_code + 1

    @property
    def ties(self) -> Rounding:
        """How `round` rounds unless told otherwise: ties up where there is no zero, else to the even code."""
        return Rounding.nearest_even if self.has_zero else Rounding.nearest_away

    def units(self, code: int) -> int:
        """The value of a finite code as a whole multiple of the ladder's smallest positive value."""
        return self.ladder.units(code + (not self.has_zero))

    def decode(self, code: int) -> float:
        """The value of `code`, infinity and NaN included; ValueError unless 0 <= code < 2^bits."""
        if not 0 <= code < 1 << self.bits:
            raise ValueError(f"code {code:#x} is outside {self}'s 0 to {(1 << self.bits) - 1:#x}.")
        if code > self.max_code:
            return math.inf if self.has_inf and code == self.max_code + 1 else math.nan
        return math.ldexp(self.units(code), self.ladder.e_min - self.ladder.mantissa_bits)

    def encode(self, value: float | Fraction) -> int:
        """The code of a value that the format has. ValueError for a negative value, one it lacks, and an infinity it
        has no code for."""
        if isinstance(value, float) and math.isnan(value):
            return (1 << self.bits) - 1
        if value == math.inf and self.has_inf:
            return self.max_code + 1
        if value < 0 or value == math.inf:
            raise ValueError(f"{value} is not a value of {self}; {'scales are positive' if value < 0 else 'round it'}.")
        rung, fraction = place(self.ladder, Fraction(value))
        code = rung - (not self.has_zero)
        if fraction or not 0 <= code <= self.max_code:
            raise ValueError(f"{value} is not a value of {self}; round it first.")
        return code

    def round(
        self, value: float | Fraction, rounding: Rounding | str | None = None, *, overflow: Overflow = "saturate"
    ) -> float:
        """The format's value that `value` rounds to; exact, however near a tie. `rounding`: `ties` unless given.

        What rounds below the smallest value of a format without a zero becomes that value, 0 included. Too large
        numbers and infinity become the largest value, or with overflow="inf" the format's infinity, else its NaN. NaN
        stays NaN. ValueError for a negative value other than -0, and for `stochastic` and `toward_average`.
        """
        mode = self.ties if rounding is None else Rounding.parse(rounding)
        if not mode.by_value:
            raise ValueError(f"{self} is a scale format, whose roundings are deterministic; {mode} is for values.")
        if isinstance(value, float) and math.isnan(value):
            return math.nan
        if value < 0:
            raise ValueError(f"{value} is negative, and {self} holds scales; scale by the magnitude.")
        code = self.max_code + 1
        if value != math.inf:
            code = round_rung(self.ladder, Fraction(value), mode) - (not self.has_zero)
        if code <= self.max_code:
            return self.decode(max(code, 0))
        if overflow == "saturate":
            return self.max
        if overflow != "inf":
            raise ValueError(f"'{overflow}' is not an overflow; choose saturate or inf.")
        return math.inf if self.has_inf else math.nan

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"ScaleFormat.parse({self.name!r})"
