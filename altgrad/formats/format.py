"""FloatFormat: any sign-magnitude ExMy number format of 2 to 16 bits as a record of four facts.

A code is a sign bit, E exponent bits e and M mantissa bits m. Its magnitude is

    m 2^(e_min - M)                 if e = 0 (sub-normal, or zero)
    (1 + m 2^-M) 2^(e - bias)       otherwise,          e_min = 1 - bias for E >= 1, 0 for E = 0.

E = 0 is therefore fixed point, m 2^-M. The four facts are E, M, the bias and which codes are *special*:

    ieee    the top exponent holds infinity (m = 0) and NaNs        IEEE 754-2019; needs E >= 2 and M >= 1
    fn      NaN at all ones, no infinity                            OCP FP8 e4m3fn, arXiv 2209.05433
    fnuz    one zero, NaN at the code of -0, no infinity            arXiv 2206.02915; P3109's finite variant
    p3109   one zero, NaN at the code of -0, infinity at the top    IEEE P3109, signed, extended
    f       every code finite                                       OCP MX FP6 and FP4, fixed point, powers of two

Without its sign a code counts up through the magnitudes, so that number is a position on the grid: a *rung*. What a
format knows of itself are whole numbers, computed once, and its limits follow from them where they are asked for:
torch.compile takes an attribute that is a float and changes from one format to the next for a variable of its graph.
Limits are floats, exactly; where float64 cannot hold a value (E >= 11, or a far bias) the exact Fraction stands in its
place. No tensor reaches there: `require_tensor_domain` says so first. A list of known formats was the road not taken:
the study needs every split of 7 bits. Values that no such formula gives are a `TableFormat`.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple, Self, cast, get_args

from altgrad.formats.catalog import ALIASES, AMBIGUOUS, OUTSIDE, TABLE_NAMES
from altgrad.formats.meant import meant
from altgrad.formats.number_format import NumberFormat

Specials = Literal["ieee", "fn", "fnuz", "p3109", "f"]
"""Which codes are not finite numbers; see the module's table."""

_GRAMMAR = "e<E>m<M>[b<bias>][ieee|fn|fnuz|p3109|f]"
_NAME = re.compile(r"e(0|[1-9]\d*)m(0|[1-9]\d*)(?:b(-?\d+))?(ieee|fnuz|fn|p3109|f)?")
_P3109 = re.compile(r"(?:p3109_k|binary)([1-9]\d{0,3})p([1-9]\d{0,3})(?:s([ef])?)?")
_BARE_IEEE = frozenset({(5, 2), (3, 4), (5, 10), (8, 7)})  # what ml_dtypes and torch mean by the bare name
_BIAS_LIMIT = 1 << 15  # twice the largest default; exact values stay below a few kilobytes each


class _SpecialCodes(NamedTuple):
    """What a choice of specials takes from the codes: how many at the top of each sign, and whether -0's."""

    has_inf: bool
    has_nan: bool
    has_negative_zero: bool
    top: Callable[[int], int]  # mantissa bits -> codes at the top of each sign that are not finite
    bias: Callable[[int], int]  # exponent bits (>= 1) -> default bias


def _ieee_bias(exponent_bits: int) -> int:
    return (1 << (exponent_bits - 1)) - 1


def _centred_bias(exponent_bits: int) -> int:
    return 1 << (exponent_bits - 1)


_SPECIALS: dict[Specials, _SpecialCodes] = {
    "ieee": _SpecialCodes(True, True, True, lambda mantissa_bits: 1 << mantissa_bits, _ieee_bias),
    "fn": _SpecialCodes(False, True, True, lambda _: 1, _ieee_bias),
    "fnuz": _SpecialCodes(False, True, False, lambda _: 0, _centred_bias),
    "p3109": _SpecialCodes(True, True, False, lambda _: 1, _centred_bias),
    "f": _SpecialCodes(False, False, True, lambda _: 0, _ieee_bias),
}


class AmbiguousFormatError(ValueError):
    """A name that the literature gives to several formats; `choices` holds their canonical names."""

    def __init__(self, name: str, choices: tuple[tuple[str, str], ...]) -> None:
        self.choices = tuple(choice for choice, _ in choices)
        listed = " or ".join(f"{choice} ({hint})" for choice, hint in choices)
        super().__init__(f"{name} means different formats to different people; say {listed}.")


@dataclass(frozen=True, repr=False)
class FloatFormat(NumberFormat):
    """One number format. Equal when the four facts are; hashable; `FloatFormat.parse(str(f)) == f`.

    ValueError for fewer than 2 or more than 16 bits, `ieee` without E >= 2 and M >= 1, a bias without exponent bits
    or beyond +-2^15, and for formats whose specials leave no finite value but zero.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    """Exponent bias; 0, and without meaning, for E = 0."""
    specials: Specials

    name: str = field(init=False, compare=False)
    """The canonical name: the shortest that parses back."""
    bits: int = field(init=False, compare=False)
    """Width of a code, sign included."""
    e_min: int = field(init=False, compare=False)
    """Exponent of the sub-normals and of the lowest normal binade: 1 - bias; 0 for E = 0."""
    max_code: int = field(init=False, compare=False)
    """Code, and rung, of the largest finite value."""
    max_binade: int = field(init=False, compare=False)
    """floor(log2(max)); below e_min for E = 0."""
    has_inf: bool = field(init=False, compare=False)
    has_nan: bool = field(init=False, compare=False)
    has_negative_zero: bool = field(init=False, compare=False)
    code_count: int = field(init=False, compare=False)
    """Number of codes that are finite values; +0 and -0 are two where both exist."""
    in_tensor_domain: bool = field(init=False, compare=False)
    """Whether casts in float32 are exact; see `require_tensor_domain`."""

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        _check(e, m, self.bias, self.specials)
        special = _SPECIALS[self.specials]
        e_min = 1 - self.bias if e else 0
        max_code = (1 << (e + m)) - 1 - special.top(m)
        if max_code < 1:
            raise ValueError(f"e{e}m{m}{self.specials} has no finite value but zero; give it another bit or `f`.")
        derived: dict[str, object] = {
            "name": _name(e, m, self.bias, self.specials),
            "bits": 1 + e + m,
            "e_min": e_min,
            "max_code": max_code,
            "has_inf": special.has_inf,
            "has_nan": special.has_nan,
            "has_negative_zero": special.has_negative_zero,
            "code_count": 2 * (max_code + 1) - (not special.has_negative_zero),
        }
        self.__dict__.update(derived)
        units, exponent = self.units(max_code), e_min - m
        max_binade = exponent + units.bit_length() - 1
        self.__dict__.update(
            max_binade=max_binade,
            in_tensor_domain=e_min >= -126 and exponent >= -149 and max_binade < 128,
        )

    @property
    def max(self) -> float:
        return self._limit(self.max_code)

    @property
    def highest(self) -> float:
        return self.max

    @property
    def lowest(self) -> float:
        return -self.max

    @property
    def min_normal(self) -> float | None:
        """Smallest normal value, 2^e_min; None for E = 0, which has no normals."""
        return _number(1, self.e_min) if self.exponent_bits else None

    @property
    def min_positive(self) -> float:
        return self.min_subnormal

    @property
    def flat_below(self) -> float:
        return _number(1, self.e_min)

    @property
    def midpoint_bits(self) -> int:
        return self.mantissa_bits + 1

    @property
    def spacing_binades(self) -> range:
        return range(self.e_min - self.mantissa_bits, max(self.e_min, self.max_binade) - self.mantissa_bits + 1)

    @property
    def finite_codes(self) -> tuple[range, ...]:
        first = (1 << (self.bits - 1)) + (not self.has_negative_zero)
        return range(self.max_code + 1), range(first, (1 << (self.bits - 1)) + self.max_code + 1)

    @property
    def zero_codes(self) -> tuple[int, ...]:
        return (0, 1 << (self.bits - 1)) if self.has_negative_zero else (0,)

    @property
    def end_codes(self) -> tuple[int, int]:
        return self.max_code, (1 << (self.bits - 1)) + self.max_code

    @property
    def is_symmetric(self) -> bool:
        return True

    @property
    def min_subnormal(self) -> float:
        """Smallest positive value, 2^(e_min - M). For M = 0 there are no sub-normals: the smallest normal."""
        return _number(1, self.e_min - self.mantissa_bits)

    @classmethod
    def parse(cls, name: str) -> Self:
        """The format called `name`: `e<E>m<M>[b<bias>][ieee|fn|fnuz|p3109|f]`, a signed P3109 name such as
        `p3109_k6p4sf` or `binary8p3se`, or an alias of the catalog; in any case.

        Without a suffix e5m2, e3m4, e5m10 and e8m7 are `ieee`, as in ml_dtypes, and every other name is `f`.
        AmbiguousFormatError for a bare e4m3; ValueError with the remedy for whatever else is no format.
        """
        return cast(Self, _parse(name))

    def units(self, rung: int) -> int:
        """The magnitude of `rung` (0 to max_code) as a whole multiple of the smallest positive value."""
        significand, exponent = self._scientific(rung)
        return significand << exponent

    def _scientific(self, rung: int) -> tuple[int, int]:
        """The same as a whole number below 2^(M + 1) and how many times it is doubled."""
        m = self.mantissa_bits
        e = rung >> m
        return (rung, 0) if e == 0 or self.exponent_bits == 0 else ((1 << m) | (rung & ((1 << m) - 1)), e - 1)

    def _limit(self, rung: int) -> float:
        significand, exponent = self._scientific(rung)
        return _number(significand, self.e_min - self.mantissa_bits + exponent)

    def magnitude(self, rung: int) -> Fraction:
        """The magnitude of `rung` (0 to max_code), exactly."""
        return _dyadic(self.units(rung), self.e_min - self.mantissa_bits)

    @functools.cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """Every finite magnitude from 0 to max, ascending: index = rung = code. Floats or Fractions, as `max` is."""
        return tuple(map(self._limit, range(self.max_code + 1)))

    @functools.cached_property
    def ranked(self) -> tuple[float, ...]:
        return (*(-value for value in reversed(self.magnitudes[1:])), *self.magnitudes)

    def grid_shift(self, other: "FloatFormat") -> int | None:
        """The k for which this format's values are exactly 2^k times `other`'s; None when there is none.

        In units of their smallest value two grids agree up to 2^(M+1), where the smaller M's first wider gap lies; so
        they are equal if they are equally long and have the same M or end before that. E0M7 and E1M6 are such a pair.
        """
        linear = 2 << min(self.mantissa_bits, other.mantissa_bits)
        if self.max_code != other.max_code or (self.mantissa_bits != other.mantissa_bits and self.max_code > linear):
            return None
        return (self.e_min - self.mantissa_bits) - (other.e_min - other.mantissa_bits)

    def require_tensor_domain(self) -> None:
        """ValueError unless every value is a float32 and no normal binade lies among float32's sub-normals.

        That is e_min >= -126, smallest value >= 2^-149 and max < 2^128: what tensor casts, which compute in float32,
        can do exactly. The rest of `formats` takes any format.
        """
        if self.in_tensor_domain:
            return
        smallest = self.e_min - self.mantissa_bits
        if smallest >= -149 and self.max_binade < 128:
            raise ValueError(f"{self} has normals from 2^{self.e_min}; casts run in float32, whose start at 2^-126.")
        raise ValueError(f"{self} spans 2^{smallest}..2^{self.max_binade}; casts run in float32 (2^-149..2^128).")

    def __repr__(self) -> str:
        return f"FloatFormat.parse({self.name!r})"


def _check(e: int, m: int, bias: int, specials: str) -> None:
    """ValueError unless the four facts describe a format."""
    if specials not in _SPECIALS:
        raise ValueError(f"'{specials}' is not a choice of specials; choose one of {', '.join(get_args(Specials))}.")
    if e < 0 or m < 0 or not 2 <= 1 + e + m <= 16:
        raise ValueError(f"e{e}m{m} has {1 + e + m} bit{'s' * (e + m != 0)}; AltGrad emulates 2 to 16.")
    if specials == "ieee" and (e < 2 or m < 1):
        raise ValueError(f"e{e}m{m}ieee has no room for infinity and NaN; ieee needs E >= 2 and M >= 1, or use `f`.")
    if e == 0 and bias != 0:
        raise ValueError(f"e0m{m} has no exponent to bias by {bias}; scale the tensor instead.")
    if abs(bias) > _BIAS_LIMIT:
        raise ValueError(f"bias {bias} is out of reach; AltGrad takes -{_BIAS_LIMIT} to {_BIAS_LIMIT}.")


def _dyadic(units: int, exponent: int) -> Fraction:
    """units * 2^exponent."""
    return Fraction(units << exponent) if exponent >= 0 else Fraction(units, 1 << -exponent)


def _number(units: int, exponent: int) -> float:
    """units * 2^exponent as a float where float64 holds it exactly; otherwise a Fraction in a float's clothes."""
    if exponent >= -1074 and units.bit_length() + exponent <= 1024:
        return math.ldexp(float(units), exponent)
    return cast(float, _dyadic(units, exponent))


def _bare_specials(e: int, m: int) -> Specials:
    return "ieee" if (e, m) in _BARE_IEEE else "f"


def _default_bias(e: int, specials: Specials) -> int:
    return _SPECIALS[specials].bias(e) if e else 0


def _name(e: int, m: int, bias: int, specials: Specials) -> str:
    """The shortest name that parses back."""
    stem = f"e{e}m{m}"
    suffix = "" if specials == _bare_specials(e, m) and stem not in AMBIGUOUS else specials
    default = bias == _default_bias(e, specials)
    # where an alias has taken the short spelling (LLVM's e2m1fn is e2m1), the bias is spelled to tell them apart
    return stem + suffix if default and stem + suffix not in ALIASES else f"{stem}b{bias}{suffix}"


def _with_bias(choices: tuple[tuple[str, str], ...], stem: str, bias: str) -> tuple[tuple[str, str], ...]:
    """The same choices at another bias, where their usual descriptions would mislead."""
    return tuple((f"{stem}b{bias}{choice.removeprefix(stem)}", f"bias {bias}") for choice, _ in choices)


def _p3109(spelled: str) -> str | None:
    """Our spelling of a signed P3109 name, p3109_k<K>p<P>s<e|f> or binary<K>p<P>[s[e|f]]; None for another name."""
    match = _P3109.fullmatch(spelled)
    if match is None:
        return None
    width, precision = int(match[1]), int(match[2])
    if precision >= width:
        raise ValueError(f"{spelled} has no exponent bit; signed P3109 at {width} bits goes from p1 to p{width - 1}.")
    return f"e{width - precision}m{precision - 1}{'fnuz' if match[3] == 'f' else 'p3109'}"


@functools.lru_cache(maxsize=4096)
def _parse(name: str) -> FloatFormat:
    spelled = name.strip().lower()
    if spelled in OUTSIDE:
        raise ValueError(f"{name} {OUTSIDE[spelled]}.")
    if spelled in TABLE_NAMES:
        raise ValueError(f"{name} is a table of values and no ExMy; altgrad.formats.parse_format takes either.")
    match = _NAME.fullmatch(_p3109(spelled) or ALIASES.get(spelled, spelled))
    if match is None and spelled in AMBIGUOUS:
        raise AmbiguousFormatError(name, AMBIGUOUS[spelled])
    if match is None:
        close = meant(spelled, [*ALIASES, *ALIASES.values()])
        remedy = f"Did you mean '{close}'?" if close else "`altgrad formats list` shows those with a name."
        raise ValueError(f"'{name}' is not a format: write {_GRAMMAR}. {remedy}")
    e, m, suffix = int(match[1]), int(match[2]), cast(Specials | None, match[4])
    stem = f"e{e}m{m}"
    if suffix is None and stem in AMBIGUOUS:
        choices = AMBIGUOUS[stem]
        raise AmbiguousFormatError(name, choices if match[3] is None else _with_bias(choices, stem, match[3]))
    specials = suffix or _bare_specials(e, m)
    _check(e, m, int(match[3] or 0), specials)
    return FloatFormat(e, m, _default_bias(e, specials) if match[3] is None else int(match[3]), specials)
