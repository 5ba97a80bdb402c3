"""Number formats, exactly: what a code means, what a name means, how a number rounds. Standard library only."""

from altgrad.formats.catalog import CATALOG, Entry
from altgrad.formats.codes import (
    CodeClass,
    Fields,
    Overflow,
    Place,
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

__all__ = [
    "CATALOG",
    "AmbiguousFormatError",
    "CodeClass",
    "Entry",
    "Fields",
    "FloatFormat",
    "Overflow",
    "Place",
    "Rounding",
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
