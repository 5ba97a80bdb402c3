"""A format's card: every fact worth telling about it, as plain data for JSON and for people.

Values are floats; the few that no float64 holds (E >= 11, or a far bias) are written `3*2^1024`, which says them
exactly. Nothing here is needed to cast a tensor.
"""

import math
from fractions import Fraction
from typing import NamedTuple

from altgrad.formats.catalog import CATALOG, SCALES, TABLES, Entry
from altgrad.formats.codes import decode
from altgrad.formats.format import FloatFormat
from altgrad.formats.number_format import NumberFormat
from altgrad.formats.scale_format import ScaleFormat, ScaleSpecials
from altgrad.formats.table import TableFormat

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]
"""What JSON can say."""

SPECIALS = {
    "ieee": "infinity and NaNs in the top exponent",
    "fn": "NaN at all ones, no infinity",
    "fnuz": "one zero, NaN at the code of -0, no infinity",
    "p3109": "one zero, NaN at the code of -0, infinity at the top",
    "f": "every code is finite",
}
"""Each choice of specials in words."""


SCALE_SPECIALS: dict[ScaleSpecials, str] = {
    "fnu": "unsigned, no zero, NaN at all ones, no infinity",
    "ue": "unsigned, zero at 0, NaN at all ones, infinity beneath",
    "uf": "unsigned, zero at 0, NaN at all ones, no infinity",
}
"""Each choice of a scale format's specials in words."""


class Landmark(NamedTuple):
    """A run of codes worth pointing at: from `first` to `last`, what they are, and the value of `first`."""

    first: int
    last: int
    meaning: str
    value: float | Fraction


def entry(fmt: NumberFormat | ScaleFormat) -> Entry | None:
    """The catalog's line on the format, if it has one."""
    return next((line for line in (*CATALOG, *TABLES, *SCALES) if line.name == str(fmt)), None)


def same_grids(fmt: FloatFormat) -> list[tuple[str, int]]:
    """Named formats with the same values up to a power of two: (name, k) for this format's grid = 2^k times theirs."""
    shifts = ((line.name, fmt.grid_shift(FloatFormat.parse(line.name))) for line in CATALOG)
    return [(name, shift) for name, shift in shifts if shift is not None and name != str(fmt)]


def landmarks(fmt: FloatFormat) -> list[Landmark]:
    """The special codes of a format in ascending order: zeros, the ends of each kind of value, infinities and NaNs."""
    half, top = 1 << (fmt.bits - 1), fmt.max_code
    last_subnormal = (1 << fmt.mantissa_bits) - 1 if fmt.exponent_bits else top
    runs = [(0, 0, "+0"), *_ends("sub-normal", 1, last_subnormal), *_ends("normal", last_subnormal + 1, top)]
    runs += _beyond(fmt, 0, "+infinity")
    runs += [(half, half, "-0" if fmt.has_negative_zero else "NaN"), (half | top, half | top, "-max")]
    runs += _beyond(fmt, half, "-infinity")
    return [
        Landmark(first, last, meaning + (", max" if last == top else ""), decode(fmt, first))
        for first, last, meaning in runs
    ]


def scale_landmarks(fmt: ScaleFormat) -> list[Landmark]:
    """The special codes of a scale format in ascending order, as `landmarks` has them."""
    top, steps = fmt.max_code, fmt.precision - 1
    last_subnormal = (1 << steps) - 1 if fmt.has_zero else -1
    runs = [(0, 0, "zero")] * fmt.has_zero
    runs += [*_ends("sub-normal", 1, last_subnormal), *_ends("normal", last_subnormal + 1, top)]
    runs += [(top + 1, top + 1, "infinity")] * fmt.has_inf + [((1 << fmt.bits) - 1, (1 << fmt.bits) - 1, "NaN")]
    return [
        Landmark(first, last, meaning + (", max" if last == top else ""), fmt.decode(first))
        for first, last, meaning in runs
    ]


def describe_scale(fmt: ScaleFormat) -> dict[str, Plain]:
    """Everything `formats show --json` says about a scale format; keys that `format_facts` has too mean the same."""
    line = entry(fmt)
    return {
        "name": str(fmt),
        "scale_format": True,
        "aliases": list(line.aliases) if line else [],
        "source": line.source if line else None,
        "bits": fmt.bits,
        "exponent_bits": fmt.bits - fmt.precision + 1,
        "mantissa_bits": fmt.precision - 1,
        "bias": fmt.bias,
        "specials": fmt.specials,
        "max": fmt.max,
        "min_positive": fmt.min_positive,
        "code_count": fmt.code_count,
        "has_zero": fmt.has_zero,
        "has_inf": fmt.has_inf,
        "has_nan": True,
        "rounding": str(fmt.ties),
        "special_codes": [
            {"first": mark.first, "last": mark.last, "meaning": mark.meaning, "value": exact(mark.value)}
            for mark in scale_landmarks(fmt)
        ],
    }


def format_facts(fmt: FloatFormat) -> dict[str, Plain]:
    """Everything `formats show --json` says about a format. Keys are stable; limits are null where there is none."""
    line = entry(fmt)
    has_subnormals = fmt.exponent_bits == 0 or fmt.mantissa_bits > 0
    return {
        "name": str(fmt),
        "scale_format": False,
        "aliases": list(line.aliases) if line else [],
        "source": line.source if line else None,
        "bits": fmt.bits,
        "exponent_bits": fmt.exponent_bits,
        "mantissa_bits": fmt.mantissa_bits,
        "bias": fmt.bias if fmt.exponent_bits else None,
        "specials": fmt.specials,
        "max": exact(fmt.max),
        "min_normal": None if fmt.min_normal is None else exact(fmt.min_normal),
        "min_subnormal": exact(fmt.min_subnormal) if has_subnormals else None,
        "min_positive": exact(fmt.min_subnormal),
        "e_min": fmt.e_min,
        "max_binade": fmt.max_binade,
        "binades": fmt.max_binade - (fmt.e_min - fmt.mantissa_bits) + 1,
        "codes_per_binade": (1 << fmt.mantissa_bits) if fmt.exponent_bits else None,
        "code_count": fmt.code_count,
        "has_inf": fmt.has_inf,
        "has_nan": fmt.has_nan,
        "has_negative_zero": fmt.has_negative_zero,
        "in_tensor_domain": fmt.in_tensor_domain,
        "same_grid": [{"name": name, "times_two_to": shift} for name, shift in same_grids(fmt)],
        "special_codes": [
            {"first": mark.first, "last": mark.last, "meaning": mark.meaning, "value": exact(mark.value)}
            for mark in landmarks(fmt)
        ],
    }


def table_landmarks(fmt: TableFormat) -> list[Landmark]:
    """The codes of a table worth pointing at, ascending: zeros, smallest magnitudes, the ends, what is no number."""
    highest, lowest = fmt.end_codes
    meanings: dict[int, list[str]] = {code: ["zero"] for code in fmt.zero_codes}
    for code, value in enumerate(fmt.values):
        if not math.isfinite(value):
            meanings[code] = ["NaN" if math.isnan(value) else "+infinity" if value > 0 else "-infinity"]
        elif abs(value) == fmt.min_positive:
            meanings.setdefault(code, []).append("smallest")
    for code, word in ((highest, "highest"), (lowest, "lowest")):
        meanings.setdefault(code, []).append(word)
    return [Landmark(code, code, ", ".join(words), fmt.values[code]) for code, words in sorted(meanings.items())]


def table_facts(fmt: TableFormat) -> dict[str, Plain]:
    """Everything `formats show --json` says about a table: the keys of `format_facts`, null where they ask for a field
    that it has not, then its own. values: by code."""
    line = entry(fmt)
    fields = ("exponent_bits", "mantissa_bits", "bias", "specials", "min_normal", "min_subnormal", "e_min")
    return {
        "name": str(fmt),
        "scale_format": False,
        "aliases": list(line.aliases) if line else [],
        "source": line.source if line else None,
        "bits": fmt.bits,
        **dict.fromkeys(fields),
        "max": fmt.max,
        "min_positive": fmt.min_positive,
        "max_binade": fmt.max_binade,
        "binades": fmt.max_binade - (math.frexp(fmt.min_positive)[1] - 1) + 1,
        "codes_per_binade": None,
        "code_count": fmt.code_count,
        "has_inf": fmt.has_inf,
        "has_nan": fmt.has_nan,
        "has_negative_zero": fmt.has_negative_zero,
        "in_tensor_domain": True,
        "same_grid": [],
        "special_codes": [
            {"first": mark.first, "last": mark.last, "meaning": mark.meaning, "value": exact(mark.value)}
            for mark in table_landmarks(fmt)
        ],
        "table": True,
        "lowest": fmt.lowest,
        "highest": fmt.highest,
        "values": [exact(value) for value in fmt.values],
        "midpoints": None if fmt.midpoints is None else list(fmt.midpoints),
        "next": [fmt.extended[0], fmt.extended[-1]],
    }


def exact(value: float | Fraction) -> float | str:
    """A value for JSON: a float where one holds it, else `m*2^k`, `nan`, `inf` or `-inf`.

    Only what is no multiple of a power of two, like 1/3, comes rounded to the nearest float.
    """
    if not isinstance(value, Fraction):
        return value if math.isfinite(value) else str(value)
    dyadic = value.denominator & (value.denominator - 1) == 0
    try:
        if float(value) == value or not dyadic:
            return float(value)
    except OverflowError:
        if not dyadic:
            return str(value)
    zeros = (value.numerator & -value.numerator).bit_length() - 1
    return f"{value.numerator >> zeros}*2^{zeros - (value.denominator.bit_length() - 1)}"


def _ends(word: str, first: int, last: int) -> list[tuple[int, int, str]]:
    """A run of values at its two ends; nothing for an empty run."""
    if first >= last:
        return [(first, first, f"only {word}")] * (first == last)
    return [(first, first, f"smallest {word}"), (last, last, f"largest {word}")]


def _beyond(fmt: FloatFormat, sign_bit: int, infinity: str) -> list[tuple[int, int, str]]:
    """The codes of one sign above the largest value."""
    first = sign_bit + fmt.max_code + 1
    first_nan, last = first + fmt.has_inf, sign_bit + (1 << (fmt.bits - 1)) - 1
    return [(first, first, infinity)] * fmt.has_inf + [(first_nan, last, "NaN")] * (first_nan <= last)
