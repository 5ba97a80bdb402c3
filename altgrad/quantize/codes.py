"""Tensors of grid values as codes, and back: the bit patterns that go into a file.

Without its sign a code *is* the rung of its magnitude, so both directions are `rung` and `at_rung` of `grid`, plus what
rungs leave out: the sign of zero, infinities and NaN. A table has its codes in a list. The scalar arithmetic of
`altgrad.formats.codes` is the oracle.

A code is one element of storage whatever its width: of the torch dtype that has exactly these bit patterns, where there
is one (so that other programs read the values without us), else of uint8 or uint16. Packing two 4-bit codes into a byte
was left out; no reader agrees with another on their order.
"""

import math

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, TableFormat, encode, parse_format
from altgrad.quantize.grid import Scale, at_rung, rung
from altgrad.quantize.table_grid import table_codes, table_values

_NATIVE = {
    parse_format(name): dtype
    for name, dtype in {
        "e4m3fn": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "e4m3fnuz": torch.float8_e4m3fnuz,
        "e5m2fnuz": torch.float8_e5m2fnuz,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "int8": torch.int8,
    }.items()
}


def to_codes(values: Tensor, fmt: NumberFormat) -> Tensor:
    """The codes of grid values, as int32 of the same shape.

    values: float32, bf16 or fp16, in grid units; a value off the grid takes the code of its nearest neighbour. -0 keeps
    its sign where the format has it, and NaN becomes the canonical (quiet) NaN. ValueError for an infinity or NaN that
    the format has no code for.
    """
    codes = finite_codes(values, fmt)
    if bool(values.isfinite().all()):
        return codes
    for special in (math.nan, math.inf, -math.inf):
        found = values.isnan() if math.isnan(special) else values == special
        if bool(found.any()):
            codes = codes.masked_fill(found, encode(fmt, special))
    return codes


def finite_codes(values: Tensor, fmt: NumberFormat, scale: Scale = None) -> Tensor:
    """The codes of finite values, int32, without waiting for the device; of an infinity or NaN any number."""
    position, negative = rung(values, fmt, scale=scale), torch.signbit(values)
    if isinstance(fmt, TableFormat):
        return table_codes(position, negative, fmt)
    if not fmt.has_negative_zero:
        negative = negative & (position != 0)
    return position.abs() | (negative.to(torch.int32) << (fmt.bits - 1))


def from_codes(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """The values of codes: float32, same shape, in grid units; infinities, NaN and -0 where the codes say so.

    codes: any integer dtype. ValueError for a number that is not a code of the format.
    """
    codes = codes.to(torch.int32)
    number = len(fmt.values) if isinstance(fmt, TableFormat) else 1 << fmt.bits
    if codes.numel() and bool(((codes < 0) | (codes >= number)).any()):
        raise ValueError(f"{int(codes.max())} is not a code of {fmt}; its codes are 0 to {number - 1}.")
    if isinstance(fmt, TableFormat):
        return table_values(codes, fmt)
    assert isinstance(fmt, FloatFormat)
    sign = 1 << (fmt.bits - 1)
    magnitude, negative = codes & (sign - 1), (codes & sign) != 0
    values = at_rung(magnitude, fmt)
    if fmt.has_nan:
        values = values.masked_fill(magnitude > fmt.max_code, math.nan)
    if fmt.has_inf:
        values = values.masked_fill(magnitude == fmt.max_code + 1, math.inf)
    if not fmt.has_negative_zero:
        values = values.masked_fill(codes == sign, math.nan)
    return torch.where(negative, -values, values)


def storage_dtype(fmt: NumberFormat) -> torch.dtype:
    """The dtype one code is stored in: torch's own dtype of these bit patterns, else uint8 (up to 8 bits) or uint16."""
    return _NATIVE.get(fmt, torch.uint8 if fmt.bits <= 8 else torch.uint16)


def to_storage(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """Codes, as `to_codes` gives them, in `storage_dtype`."""
    narrow = codes.to(torch.uint8 if fmt.bits <= 8 else torch.uint16)
    return narrow.view(storage_dtype(fmt))


def from_storage(stored: Tensor, fmt: NumberFormat) -> Tensor:
    """The inverse of `to_storage`: int32 codes. ValueError for another dtype than the format is stored in."""
    if stored.dtype != storage_dtype(fmt):
        raise ValueError(f"{stored.dtype} does not store {fmt}; {storage_dtype(fmt)} does.")
    return stored.view(torch.uint8 if fmt.bits <= 8 else torch.uint16).to(torch.int32)
