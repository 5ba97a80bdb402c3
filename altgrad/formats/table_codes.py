"""The exact arithmetic of `altgrad.formats.codes` on tables: decoding, encoding and rounding one number at a time.

Like it for an ExMy, this is the oracle of the tensor code and shares no line with it: Fractions and bisection here,
float32 thresholds there.
"""

import bisect
import math
from fractions import Fraction

from altgrad.formats import codes
from altgrad.formats.codes import CodeClass, Overflow
from altgrad.formats.rounding import Rounding
from altgrad.formats.table import TableFormat


@codes.decode.register
def _(fmt: TableFormat, code: int) -> float | Fraction:
    if not 0 <= code < len(fmt.values):
        raise ValueError(f"code {code:#x} is outside {fmt}'s 0 to {len(fmt.values) - 1:#x}.")
    return fmt.values[code]


@codes.encode.register
def _(fmt: TableFormat, value: float | Fraction) -> int:
    for code, own in enumerate(fmt.values):
        if isinstance(value, float) and not math.isfinite(value) and (own == value or (own != own and value != value)):
            return code
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{fmt} has no {'NaN' if math.isnan(value) else 'infinity'}; round it first.")
    rank = bisect.bisect_left(fmt.ranked, value)
    if rank == len(fmt.ranked) or fmt.ranked[rank] != value:
        raise ValueError(f"{value} is not a value of {fmt}; round it first.")
    if value == 0 and fmt.has_negative_zero and isinstance(value, float) and math.copysign(1, value) < 0:
        return next(code for code in fmt.zero_codes if math.copysign(1, fmt.values[code]) < 0)
    return fmt.rank_codes[rank]


@codes.round_value.register
def _(
    fmt: TableFormat,
    value: float | Fraction,
    rounding: Rounding | str = Rounding.nearest_even,
    *,
    overflow: Overflow = "saturate",
    u: Fraction | None = None,
    average: float | Fraction | None = None,
) -> float | Fraction:
    if isinstance(value, float) and math.isnan(value):
        return math.nan
    negative = math.copysign(1, value) < 0
    if isinstance(value, float) and math.isinf(value):
        index = 0 if negative else len(fmt.extended) - 1
    else:
        index = fmt.round_index(Fraction(value), rounding, u, average)
    if 0 < index < len(fmt.extended) - 1:
        found = fmt.extended[index]
        return -0.0 if found == 0 and negative and fmt.has_negative_zero else found
    if overflow == "saturate":
        return fmt.lowest if index == 0 else fmt.highest
    if overflow != "inf":
        raise ValueError(f"'{overflow}' is not an overflow; choose saturate or inf.")
    if not (fmt.has_inf or fmt.has_nan):
        raise ValueError(f"{fmt} has neither infinity nor NaN for an overflow; use overflow='saturate'.")
    return (-math.inf if index == 0 else math.inf) if fmt.has_inf else math.nan


@codes.classify.register
def _(fmt: TableFormat, code: int) -> CodeClass:
    value = codes.decode(fmt, code)
    if value == 0:
        return CodeClass.zero
    special = CodeClass.nan if math.isnan(value) else CodeClass.infinity
    return CodeClass.normal if math.isfinite(value) else special


@codes.neighbours.register
def _(fmt: TableFormat, code: int) -> tuple[float | None, float | None]:
    value = codes.decode(fmt, code)
    if not math.isfinite(value):
        raise ValueError(f"code {code:#x} of {fmt} is {value}; only finite values have neighbours.")
    ranked, rank = fmt.ranked, bisect.bisect_left(fmt.ranked, value)
    return ranked[rank - 1] if rank else None, ranked[rank + 1] if rank + 1 < len(ranked) else None
