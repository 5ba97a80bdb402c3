"""Number formats, exactly: what a code means, what a name means, how a number rounds. Standard library only."""

from altgrad.formats.catalog import CATALOG, SCALES, Entry
from altgrad.formats.codes import (
    CodeClass,
    Fields,
    Overflow,
    RungPlace,
    classify,
    decode,
    encode,
    fields,
    from_fields,
    neighbours,
    place,
    round_rung,
    round_value,
)
from altgrad.formats.format import AmbiguousFormatError, FloatFormat, Specials
from altgrad.formats.rounding import Rounding
from altgrad.formats.scale_format import ScaleFormat

__all__ = [
    "CATALOG",
    "SCALES",
    "AmbiguousFormatError",
    "CodeClass",
    "Entry",
    "Fields",
    "FloatFormat",
    "Overflow",
    "Rounding",
    "RungPlace",
    "ScaleFormat",
    "Specials",
    "classify",
    "decode",
    "encode",
    "fields",
    "from_fields",
    "neighbours",
    "place",
    "round_rung",
    "round_value",
]
