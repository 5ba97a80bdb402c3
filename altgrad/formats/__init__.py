"""Number formats, exactly: what a code means, what a name means, how a number rounds. Standard library only."""

from altgrad.formats import table_codes
from altgrad.formats.catalog import CATALOG, SCALES, TABLES, Entry
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
from altgrad.formats.number_format import NumberFormat
from altgrad.formats.parsing import parse_format
from altgrad.formats.rounding import Rounding
from altgrad.formats.scale_format import ScaleFormat
from altgrad.formats.table import TableFormat

__all__ = [
    "CATALOG",
    "SCALES",
    "TABLES",
    "AmbiguousFormatError",
    "CodeClass",
    "Entry",
    "Fields",
    "FloatFormat",
    "NumberFormat",
    "Overflow",
    "Rounding",
    "RungPlace",
    "ScaleFormat",
    "Specials",
    "TableFormat",
    "classify",
    "decode",
    "encode",
    "fields",
    "from_fields",
    "neighbours",
    "parse_format",
    "place",
    "round_rung",
    "round_value",
    "table_codes",
]
