"""From what a person writes to a number format: a name, or a table of values."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from altgrad.formats.catalog import TABLE_NAMES
from altgrad.formats.format import FloatFormat
from altgrad.formats.meant import meant
from altgrad.formats.named_tables import named_table
from altgrad.formats.number_format import NumberFormat
from altgrad.formats.table import TableFormat


def parse_format(value: str | Mapping[str, Any]) -> NumberFormat:
    """The format that is meant: an ExMy or an alias of the catalog (see `FloatFormat.parse`), a named table such as
    `nf4`, or the values of one, `{values: [-1, 0, 1]}`, as a mapping or as the text `[-1,0,1]`. In any case.

    AmbiguousFormatError for a bare e4m3; ValueError with the remedy for whatever else is no format.
    """
    return _parse(value) if isinstance(value, str) else TableFormat.of(value)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> NumberFormat:
    spelled = text.strip().lower()
    if spelled.startswith(("[", "{")):
        try:
            facts = json.loads(spelled)
        except ValueError:
            raise ValueError(f"'{text[:40]}' is not a table of values; write [-1, 0, 1].") from None
        return TableFormat.of(facts if isinstance(facts, dict) else {"values": facts})
    if spelled in TABLE_NAMES:
        return named_table(TABLE_NAMES[spelled])
    try:
        return FloatFormat.parse(text)
    except ValueError as error:
        close = meant(spelled, TABLE_NAMES)
        if close is None or "Did you mean" in str(error) or "is not a format" not in str(error):
            raise
        raise ValueError(f"'{text}' is not a format. Did you mean '{close}'?") from None
