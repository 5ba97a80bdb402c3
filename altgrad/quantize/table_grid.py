"""The grid of a table of values on tensors: what `altgrad.quantize.grid` asks, by look-up instead of a formula.

A rounding to nearest is a list of float32 *thresholds*: u takes value number #{t < u}. They are made once, exactly,
with the ties of the rounding in them (`TableFormat.thresholds`), so nothing here could round. A second list says in
which *gap* u lies; spacing, the directed roundings and the stochastic one follow from its two ends:

    up  iff  noise 2^-24 < (u - lo) / (hi - lo)        away from zero, as for a formula; in float64, which decides all
                                                       2^24 draws rightly

#{t < u} by bisection takes eight unpredictable branches, five times the cost of a formula. But the upper bits of a
float32 already say nearly everything: sorted by them, at most one threshold is left to compare with, and that is two
look-ups and one comparison whatever the table. Tables too fine for that (16 bits) are bisected.
"""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding, TableFormat, parse_format

_SHIFTS = (20, 18, 16, 14)
"""How many low bits of a float32 a look-up leaves out; the first with one threshold a cell is taken."""
_GAPS = "gaps"
_PASSED = "passed"


class GridRules(NamedTuple):
    """What a kind of format answers, of u in grid units (float32). `altgrad.quantize.grid` documents each."""

    spacing: Callable[..., Tensor]
    """(u, fmt): the gap at u."""
    gap: Callable[..., Tensor]
    """(u, fmt, direction): the distance to the neighbour on that side."""
    position: Callable[..., Tensor]
    """(u, fmt): how far u has come in its gap, from 0 to 1."""
    round: Callable[..., Tensor]
    """(u, fmt, rounding, noise, random_bits, average): rounded as if the grid had no end."""
    rung: Callable[..., Tensor]
    """(u, fmt): the signed place, int32, of what u rounds to; of NaN anything."""
    at_rung: Callable[..., Tensor]
    """(position, fmt): the value at an int64 place, the ends' beyond them."""


class _Steps(NamedTuple):
    """A staircase: thresholds, ascending, and for each cell of upper bits the count of those below it and the next."""

    thresholds: Tensor
    base: Tensor | None
    cut: Tensor | None
    shift: int


def _round(
    u: Tensor,
    fmt: TableFormat,
    rounding: Rounding,
    noise: Tensor | None = None,
    random_bits: int | None = None,
    average: Tensor | None = None,
) -> Tensor:
    values = _values(fmt, u.device)
    if rounding.is_nearest:
        q = _take(values, _place(u, _steps(fmt, rounding.value, u.device)))
    elif average is not None and rounding is Rounding.toward_average:
        q = _toward(u, fmt, average)
    elif rounding is Rounding.stochastic:
        q = _drawn(u, fmt, noise, random_bits)
    else:
        within = u.clamp(values[0], values[-1])
        low, high = _ends(within, fmt)
        if rounding is Rounding.toward_zero:
            smaller = torch.where(low.abs() < high.abs(), low, high)
            # Between two values of one size and no zero the sign of u decides.
            q = torch.where(low == -high, smaller.copysign(u), smaller)
        else:
            q = high if rounding is Rounding.toward_positive else low
        q = torch.where((within == low) | (within == high), within, q)
    if fmt.has_negative_zero:
        q = q.copysign_(u)
    if u.device.type == "cpu" and not torch.compiler.is_compiling() and u.numel():
        low, high = torch.aminmax(u)  # one pass, without a temporary
        if -math.inf < low and high < math.inf:
            return q
    return torch.where(u.abs() < math.inf, q, u)


def _toward(u: Tensor, fmt: TableFormat, average: Tensor) -> Tensor:
    """The end of each gap that the average is nearer to; beyond `next` there is one alone."""
    values, place = _values(fmt, u.device), _place(u, _steps(fmt, _GAPS, u.device))
    middles = _steps(fmt, Rounding.nearest_away.value, u.device).thresholds
    low, high = _take(values, place), _take(values, place + 1)
    q = torch.where(average > _take(middles, place), high, low)
    q = torch.where((u == 0) & (low == 0), low, q)
    return torch.where(u <= values[0], values[0], torch.where(u >= values[-1], values[-1], q))


def _drawn(u: Tensor, fmt: TableFormat, noise: Tensor | None, random_bits: int | None) -> Tensor:
    """Stochastic rounding: to the end of the gap that is farther from zero where the draw is below the passed part."""
    if noise is None:
        raise ValueError("stochastic rounding needs a key for its counted bits; pass key=.")
    place = _place(u, _steps(fmt, _GAPS, u.device))
    values = _values(fmt, u.device)
    near, width, below = _constants(fmt.name, _PASSED, u.device)
    side = place if len(near) < len(values) else place + (u >= 0)
    passed = u.to(torch.float64).sub_(_take(near, side)).div_(_take(width, side))
    if random_bits is not None:
        passed = (passed * 2.0**random_bits).floor() * 2.0**-random_bits
        noise = noise & -(1 << (24 - random_bits))
    away = noise.to(torch.float64).mul_(2.0**-24) < passed
    return _take(values, place + (away ^ (side < below)))


def _spacing(u: Tensor, fmt: TableFormat) -> Tensor:
    low, high = _ends(u, fmt)
    return high - low


def _position(u: Tensor, fmt: TableFormat) -> Tensor:
    low, high = _ends(u, fmt)
    return (u - low) / (high - low)


def _gap(u: Tensor, fmt: TableFormat, direction: Tensor | float) -> Tensor:
    values, place = _values(fmt, u.device), _place(u, _steps(fmt, _GAPS, u.device))
    low, high = _take(values, place), _take(values, place + 1)
    inner = torch.where(u < 0, _take(values, (place + 2).clamp(max=len(values) - 1)) - high, low - _take(
        values, (place - 1).clamp(min=0)
    ))  # fmt: skip
    inward = ((u < 0) & (direction > 0) & (u == high)) | ((u >= 0) & (direction < 0) & (u == low))
    return torch.where(inward, inner, high - low)


def _rung(u: Tensor, fmt: TableFormat) -> Tensor:
    place = _place(u, _steps(fmt, "nearest_even", u.device))
    return place.clamp(1, len(fmt.ranked)).sub(1 + fmt.zero_rank).to(torch.int32)


def _at_rung(position: Tensor, fmt: TableFormat) -> Tensor:
    values = _values(fmt, position.device)
    return _take(values, (position + (1 + fmt.zero_rank)).clamp(1, len(values) - 2))


TABLE = GridRules(_spacing, _gap, _position, _round, _rung, _at_rung)
"""The rules of a TableFormat."""


def table_codes(position: Tensor, negative: Tensor, fmt: TableFormat) -> Tensor:
    """Codes of rungs, int32; `negative` tells -0 from +0 where the table has both."""
    place = (position + fmt.zero_rank).clamp(0, len(fmt.ranked) - 1)
    codes = _take(_constants(fmt.name, "codes", position.device)[0], place)
    if not fmt.has_negative_zero:
        return codes
    zero = next(code for code in fmt.zero_codes if math.copysign(1, fmt.values[code]) < 0)
    return torch.where((position == 0) & negative, zero, codes)


def table_values(codes: Tensor, fmt: TableFormat) -> Tensor:
    """Values of codes that the table has: float32."""
    return _take(_constants(fmt.name, "values by code", codes.device)[0], codes)


def _ends(u: Tensor, fmt: TableFormat) -> tuple[Tensor, Tensor]:
    """The two values between which u lies; from a value that is not negative on it is the gap above it."""
    values, place = _values(fmt, u.device), _place(u, _steps(fmt, _GAPS, u.device))
    return _take(values, place), _take(values, place + 1)


def _place(u: Tensor, steps: _Steps) -> Tensor:
    """#{t < u}, int32; for a NaN anything that is a place."""
    if steps.base is None or steps.cut is None:
        return torch.bucketize(u, steps.thresholds, out_int32=True)
    cell = (u.view(torch.int32) >> steps.shift).add_(1 << (31 - steps.shift))
    return _take(steps.base, cell).add_(u > _take(steps.cut, cell))


def _take(table: Tensor, place: Tensor) -> Tensor:
    return table.index_select(0, place.reshape(-1)).view(place.shape)


def _values(fmt: TableFormat, device: torch.device) -> Tensor:
    """`extended` as float32."""
    found: Tensor = _constants(fmt.name, "values", device)[0]
    return found


def _steps(fmt: TableFormat, what: str, device: torch.device) -> _Steps:
    thresholds, *cells = _constants(fmt.name, what, device)
    if not cells:
        return _Steps(thresholds, None, None, 0)
    return _Steps(thresholds, cells[0], cells[1], 33 - len(cells[0]).bit_length())


def _constants(name: str, what: str, device: torch.device) -> list[Tensor]:
    """Tensors of a table, by its name: a graph that is being compiled takes them as they are."""
    return _made(name, what, device)


# What torch.compiler.assume_constant_result does (torch 2.10 to 2.13), which would first import the whole compiler: 2 s
# of every command.
_constants.__dict__["_dynamo_marked_constant"] = True


@functools.cache
def _made(name: str, what: str, device: torch.device) -> list[Tensor]:
    fmt = parse_format(name)
    assert isinstance(fmt, TableFormat)
    with torch.inference_mode(False):
        if what == "values":
            found = [torch.tensor(fmt.extended, dtype=torch.float64, device="cpu").to(torch.float32)]
        elif what == _PASSED:
            found = _nearer_ends(torch.tensor(fmt.extended, dtype=torch.float32, device="cpu").tolist())
        elif what == "values by code":
            found = [torch.tensor(fmt.values, dtype=torch.float32, device="cpu")]
        elif what == "codes":
            found = [torch.tensor(fmt.rank_codes, dtype=torch.int32, device="cpu")]
        else:
            stairs = fmt.gap_thresholds if what == _GAPS else fmt.thresholds(what)
            found = _with_cells(torch.tensor(stairs, dtype=torch.float32, device="cpu"))
        return [tensor.to(device) for tensor in found]


def _nearer_ends(values: list[float]) -> list[Tensor]:
    """Of each gap the end nearer to zero and the way to the other, float64, and the number of gaps below zero.

    A gap that zero lies in counts twice, once for each side.
    """
    below = [(high, low - high) for low, high in pairwise(values) if low < 0]
    above = [(low, high - low) for low, high in pairwise(values) if high > 0]
    near, width = zip(*below, *above, strict=True)
    return [*(torch.tensor(part, dtype=torch.float64) for part in (near, width)), torch.tensor(len(below))]


def _with_cells(thresholds: Tensor) -> list[Tensor]:
    """The thresholds, and for the coarsest cells that hold one each at most: how many lie below, and the next."""
    for shift in _SHIFTS:
        cell = torch.arange(-(1 << (31 - shift)), 1 << (31 - shift), dtype=torch.int32, device="cpu") << shift
        ends = torch.stack((cell, cell | ((1 << shift) - 1))).view(torch.float32)
        limit = torch.where(cell < 0, -math.inf, math.inf)
        ends = torch.where(ends.isnan(), limit, ends).sort(0).values
        base, last = torch.bucketize(ends, thresholds, out_int32=True)
        if int((last - base).max()) <= 1:
            beyond = torch.full((1,), math.inf)
            return [thresholds, base, torch.cat((thresholds, beyond)).index_select(0, base)]
    return [thresholds]


def rules_of(fmt: NumberFormat, formula: GridRules) -> GridRules:
    """The rules of a format; `formula` are those of an ExMy."""
    return TABLE if isinstance(fmt, TableFormat) else formula
