"""TableFormat: a number format as the list of its values, for grids that no ExMy describes.

    {values: [-1, 0, 1]}          code 0 is -1, code 1 is 0, code 2 is 1

The list is in the order of the codes; sorted, it is the grid. Values are float32 numbers (0.1 is the float32 nearest to
it), and may hold `nan`, `inf` and `-inf`, codes that casts make only as they do for an ExMy, and -0.0 beside 0.

Rounding is bisection. Between neighbours lo < hi lies one *midpoint*, where nearest changes its mind: (lo + hi) / 2
unless `midpoints` says otherwise, as posits do, whose rule cuts the bit string. What a tie does is the rounding's own
word: `nearest_even` takes the value of even *rung*, a value's signed place counted from zero, which is its code for
two's complement and for posits; `nearest_away` the one away from zero. Without a zero the rungs count from the smallest
value above it.

**As if the grid had no end** it goes on for one value on either side, `next`, as far off as the last gap is wide unless
it is given. What rounds to it, or lies beyond it, is an overflow. So under `overflow: inf` HiF8's 1.25 * 2^15 is inf.

`spacing(x)` is the gap that x lies in; at a value the one above it if it is positive or zero, the one below it if it is
negative; beyond the ends that to `next`. Stochastic rounding is in value space: P(up) = (x - lo) / (hi - lo).

Asymmetric tables. `max`, to which scales bring an amax, is the largest magnitude that *both* signs reach: 127 for int8,
7 for int4, 1 for NF4. -128 is then made only under scales that do not come from this amax.
"""

import bisect
import functools
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Self

from altgrad.formats.number_format import NumberFormat
from altgrad.formats.rounding import Rounding

LARGEST = 1 << 16
"""The most values of a table."""
_LONGEST_NAME = 40
_REACH = 2.0**126  # so that what follows the highest value is a float32, too
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_KEYS = ("values", "midpoints", "next")
_TIES_UP: dict[str, Callable[[int, Fraction], bool]] = {
    "nearest_even": lambda rung, middle: rung % 2 != 0,
    "nearest_away": lambda rung, middle: middle >= 0,
    "nearest_ties_to_zero": lambda rung, middle: middle < 0,
    "nearest_ties_up": lambda rung, middle: True,
}
"""Rounding -> whether a tie goes up, by the rung of the lower neighbour and the midpoint."""


@dataclass(frozen=True, repr=False)
class TableFormat(NumberFormat):
    """One format by its values. Equal when the four facts are; hashable; `parse_format(str(f)) == f`.

    ValueError for fewer than two finite values or more than 2^16, for one beyond float32, and for midpoints that do not
    lie between neighbours.
    """

    values: tuple[float, ...]
    """The values of the grid, by code; float32 numbers, infinities and NaN."""
    midpoints: tuple[float, ...] | None = None
    """Where nearest changes its mind between neighbours of `ranked`; None: halfway."""
    next: tuple[float, float] | None = None
    """What would follow below the lowest and above the highest value; None: the last gap once more."""
    label: str = ""
    """The name of a table that has one."""

    name: str = field(init=False, compare=False)
    bits: int = field(init=False, compare=False)
    zero_rank: int = field(init=False, compare=False)
    """Place in `ranked` of the value with rung 0: the lowest that is not negative."""
    mantissa_bits: int = field(init=False, compare=False)
    max_binade: int = field(init=False, compare=False)
    has_inf: bool = field(init=False, compare=False)
    has_nan: bool = field(init=False, compare=False)
    has_negative_zero: bool = field(init=False, compare=False)
    code_count: int = field(init=False, compare=False)
    in_tensor_domain: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not 2 <= len(self.values) <= LARGEST:
            raise ValueError(f"a table has 2 to {LARGEST} values, not {len(self.values)}.")
        values = tuple(map(float32, self.values))
        self.__dict__.update(values=values)
        ranked, signs = self.ranked, {math.copysign(1, value) for value in values if value == 0}
        if len(ranked) < 2:
            raise ValueError("a table needs two different finite values.")
        if (largest := max(-ranked[0], ranked[-1])) > _REACH:
            raise ValueError(f"{largest} is beyond 2^126, as far as a table reaches; put the rest into the scale.")
        self.__dict__.update(
            bits=(len(values) - 1).bit_length(),
            zero_rank=bisect.bisect_left(ranked, 0.0),
            mantissa_bits=max(_bits_behind_the_first(*value.as_integer_ratio()) for value in ranked),
            max_binade=math.frexp(self.max)[1] - 1,
            has_inf=math.inf in values and (-math.inf in values or ranked[0] >= 0),
            has_nan=any(map(math.isnan, values)),
            has_negative_zero=len(signs) == 2,
            code_count=sum(map(math.isfinite, values)),
            in_tensor_domain=True,
        )
        self._check_midpoints()
        self.__dict__.update(name=self.label or _text(self.tree()))

    def _check_midpoints(self) -> None:
        ranked = self.ranked
        if self.midpoints is not None:
            if len(self.midpoints) != len(ranked) - 1:
                raise ValueError(f"{len(ranked)} values have {len(ranked) - 1} midpoints, not {len(self.midpoints)}.")
            for low, middle, high in zip(ranked, self.midpoints, ranked[1:], strict=False):
                if not low <= middle <= high:
                    raise ValueError(f"midpoint {middle} is not between its values {low} and {high}.")
        if self.next is not None:
            self.__dict__.update(next=tuple(map(float32, self.next)))
        if self.next is not None and not (self.next[0] < ranked[0] and self.next[1] > ranked[-1]):
            raise ValueError(f"next is {list(self.next)}; give a number below {ranked[0]} and one above {ranked[-1]}.")

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """The table that `{values: [...]}` describes, with `midpoints` and `next` if they are there. ValueError."""
        unknown = [key for key in facts if key not in _KEYS]
        if unknown or "values" not in facts:
            wrong = f"'{unknown[0]}' is not one of them" if unknown else "values are missing"
            raise ValueError(f"a table of values takes {', '.join(_KEYS)}; {wrong}.")
        lists = {key: tuple(map(_number, _listed(key, facts[key]))) for key in _KEYS if key in facts}
        following = lists.get("next")
        if following is not None and len(following) != 2:
            raise ValueError("next is two numbers, one below and one above the values.")
        ends = None if following is None else (following[0], following[1])
        return cls(lists["values"], lists.get("midpoints"), ends)

    def tree(self) -> dict[str, Any]:
        """What `of` takes, as plain data, in the fewest digits that give these float32 numbers."""
        found: dict[str, Any] = {"values": [_shortest(value) for value in self.values]}
        for key in ("midpoints", "next"):
            if (stated := getattr(self, key)) is not None:
                found[key] = [int(value) if _is_small_whole(value) else value for value in stated]
        return found

    @property
    def short_name(self) -> str:
        """The name, or of a long list how long it is."""
        return self.name if len(self.name) <= _LONGEST_NAME else f"table of {len(self.values)} values"

    @property
    def max(self) -> float:
        low, high = self.ranked[0], self.ranked[-1]
        return min(-low, high) if low < 0 < high else max(-low, high)

    @property
    def lowest(self) -> float:
        return self.ranked[0]

    @property
    def highest(self) -> float:
        return self.ranked[-1]

    @property
    def min_positive(self) -> float:
        return min(abs(value) for value in self.ranked if value)

    @property
    def flat_below(self) -> float:
        return self.min_positive

    @property
    def min_normal(self) -> None:
        return None

    @functools.cached_property
    def _codes(self) -> dict[float, int]:
        """The first code of each finite value; of zeros that of +0 if there is one."""
        signed = sorted(enumerate(self.values), key=lambda each: each[1] == 0 and math.copysign(1, each[1]) < 0)
        return {value + 0.0: code for code, value in reversed(signed) if math.isfinite(value)}

    @functools.cached_property
    def ranked(self) -> tuple[float, ...]:
        return tuple(sorted(self._codes))

    @functools.cached_property
    def rank_codes(self) -> tuple[int, ...]:
        """Code of each of `ranked`, the first where several have one value."""
        return tuple(self._codes[value] for value in self.ranked)

    @functools.cached_property
    def extended(self) -> tuple[float, ...]:
        """`ranked` between the two values of `next`."""
        low, high = self.ranked[:2], self.ranked[-2:]
        below, above = self.next or (low[0] - (low[1] - low[0]), high[1] + (high[1] - high[0]))
        return (below, *self.ranked, above)

    @functools.cached_property
    def midpoint_bits(self) -> int:
        return max(_bits_behind_the_first(*middle.as_integer_ratio()) for middle in self._middles)

    @property
    def spacing_binades(self) -> range:
        gaps = [float32(high - low) for low, high in pairwise(self.extended)]
        return range(math.frexp(min(gaps))[1] - 1, math.frexp(max(gaps))[1])

    @property
    def finite_codes(self) -> tuple[range, ...]:
        runs: list[range] = []
        for code in (code for code, value in enumerate(self.values) if math.isfinite(value)):
            if runs and runs[-1].stop == code:
                runs[-1] = range(runs[-1].start, code + 1)
            else:
                runs.append(range(code, code + 1))
        return tuple(runs)

    @property
    def zero_codes(self) -> tuple[int, ...]:
        return tuple(code for code, value in enumerate(self.values) if value == 0)

    @property
    def end_codes(self) -> tuple[int, int]:
        return self.rank_codes[-1], self.rank_codes[0]

    @functools.cached_property
    def _middles(self) -> tuple[Fraction, ...]:
        """The midpoints, those to `next` included."""
        ends = self.extended
        halfway = [(Fraction(low) + Fraction(high)) / 2 for low, high in pairwise(ends)]
        return tuple(halfway if self.midpoints is None else [halfway[0], *map(Fraction, self.midpoints), halfway[-1]])

    def place(self, value: Fraction) -> tuple[int, Fraction]:
        """The index in `extended` of the value at or below this one, and the part of the gap above it that is passed.

        Beyond `next` it is the end itself.
        """
        ends = self.extended
        index = min(max(bisect.bisect_right(ends, value) - 1, 0), len(ends) - 1)
        if index == len(ends) - 1 or value <= ends[0]:
            return index, Fraction(0)
        low, high = Fraction(ends[index]), Fraction(ends[index + 1])
        return index, (value - low) / (high - low)

    def round_index(
        self,
        value: Fraction,
        rounding: Rounding | str,
        u: Fraction | None = None,
        average: float | Fraction | None = None,
    ) -> int:
        """The index in `extended` of what `value` rounds to; at either end it is an overflow. See `round_value`."""
        mode, (index, passed) = Rounding.parse(rounding), self.place(value)
        if mode is Rounding.toward_average:
            return self._toward(index - (value < 0 and passed == 0), value, average)
        if mode is Rounding.stochastic and (u is None or not 0 <= u < 1):
            raise ValueError(f"stochastic rounding draws u = {u}; give a Fraction in [0, 1).")
        if passed == 0:
            return index
        if mode is Rounding.stochastic:
            assert u is not None
            return index + (u < passed if value >= 0 else u >= 1 - passed)
        if mode in _TIES_UP:
            middle = self._middles[index]
            up = value > middle or (value == middle and _TIES_UP[mode](index - 1 - self.zero_rank, middle))
            return index + up
        low, high = self.extended[index], self.extended[index + 1]
        if mode is Rounding.toward_zero:
            return index + (abs(high) < abs(low) or (abs(high) == abs(low) and value > 0))
        return index + (mode is Rounding.toward_positive)

    def _toward(self, index: int, value: Fraction, average: float | Fraction | None) -> int:
        """Which end of a gap, going away from zero, the average is nearer to; a gap beyond the ends has one."""
        if average is None:
            raise ValueError("toward_average needs the average that decides; give average=.")
        if index in (-1, len(self.extended) - 1) or value == self.extended[index] == 0:
            return max(index, 0)
        low, middle, high = self.extended[index], self._middles[index], self.extended[index + 1]
        past = average > middle or (average == middle and _TIES_UP["nearest_away"](0, middle))
        return index + (average >= high or (average > low and past))

    def thresholds(self, rounding: Rounding | str) -> tuple[float, ...]:
        """For each neighbouring pair of `extended` the largest float32 that nearest rounding sends to the lower one.

        ValueError for a rounding that is not to nearest.
        """
        up = _TIES_UP.get(rounding)
        if up is None:
            raise ValueError(f"{rounding} has no midpoints; those to nearest have.")
        found = []
        for index, middle in enumerate(self._middles):
            low, high = self.extended[index], self.extended[index + 1]
            at = _float32_up(middle)
            stays = Fraction(at) == middle and not up(index - 1 - self.zero_rank, middle)
            bound = at if stays else _before(at)
            # A value rounds to itself, whatever the midpoints say.
            found.append(min(max(bound, _float32_up(Fraction(low))), _before(_float32_up(Fraction(high)))))
        return tuple(found)

    @functools.cached_property
    def gap_thresholds(self) -> tuple[float, ...]:
        """For each of `ranked` the largest float32 that lies in the gap below it; a negative value does itself."""
        return tuple(value if value < 0 else _before(value) for value in self.ranked)

    def __repr__(self) -> str:
        return f"parse_format({self.name!r})"


def _listed(key: str, items: Any) -> Sequence[Any]:
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"{key} is a list of numbers, such as [-1, 0, 1].")
    return items


def _number(item: Any) -> float:
    if isinstance(item, str) and item.lower() in _WORDS:
        return _WORDS[item.lower()]
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise ValueError(f"{item!r} is not a number of a table; write numbers, nan, inf or -inf.")
    return float(item)


def _shortest(value: float) -> int | float | str:
    """The number in the fewest digits that are still this float32 number; a word for what is none."""
    if not math.isfinite(value):
        return next(word for word, own in _WORDS.items() if own == value or (own != own and value != value))
    if _is_small_whole(value):
        return int(value)
    return next(short for digits in range(1, 10) if float32(short := float(f"{value:.{digits}g}")) == value)


def _is_small_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 1 << 24 and not (value == 0 and math.copysign(1, value) < 0)


def _text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree["values"] if len(tree) == 1 else tree, separators=(",", ":"))


def _bits_behind_the_first(numerator: int, denominator: int) -> int:
    """How many binary digits of a number stand behind its leading one; 0 for 0. denominator: a power of two."""
    whole = abs(numerator)
    return max(0, whole.bit_length() - 1 - ((whole & -whole).bit_length() - 1))


def float32(value: float) -> float:
    """The float32 number nearest to a value; any NaN is `math.nan`. ValueError for one that float32 does not reach."""
    if math.isnan(value):
        return math.nan  # one object, so that tuples with it are equal
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        raise ValueError(
            f"{value} is beyond float32, in which casts run; its largest number is 2^128 - 2^104."
        ) from None


def _float32_up(value: Fraction) -> float:
    """The smallest float32 number that is not below `value`; inf above the largest."""
    if value > (2 - Fraction(1, 1 << 23)) * 2**127:
        return math.inf
    found = float32(float(max(value, -(2 - Fraction(1, 1 << 23)) * 2**127)))
    while found < value:
        found = float32_after(found)
    while _before(found) >= value:
        found = _before(found)
    return found


def float32_after(value: float) -> float:
    """The float32 number after this one."""
    return -_before(-value)


def _before(value: float) -> float:
    """The float32 number before this one; -0.0 and 0.0 are one."""
    if value == -math.inf:
        return value
    bits = struct.unpack("<i", struct.pack("<f", value))[0]
    if value == 0:
        return -(2.0**-149)
    (found,) = struct.unpack("<f", struct.pack("<i", bits - 1 if value > 0 else bits + 1))
    return float(found)
