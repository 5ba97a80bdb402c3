"""The grid of a table of values on tensors: what `altgrad.quantize.grid` asks, by look-up instead of a formula.

A rounding to nearest is a list of float32 *thresholds*: u takes value number #{t < u}. They are made once, exactly,
with the ties of the rounding in them (`TableFormat.thresholds`), so nothing here could round. A second list says in
which *gap* u lies; spacing, the directed roundings and the stochastic one follow from its two ends:

    up  iff  noise 2^-24 < (u - lo) / (hi - lo)        away from zero, as for a formula; in float64, which decides all
                                                       2^24 draws rightly

#{t < u} by bisection takes eight unpredictable branches, ten times the cost of a formula. But a float32's upper bits, a
*cell*, already say nearly everything, and there are two ways to say the rest.

    one look-up     where every threshold is the first number of a cell, as for int8, posit8 and every ExMy: what u
                    becomes depends on its cell and on whether it is the first in it, and (bits >> s) + (bits + 2^s - 1
                    >> s) numbers both at once: the cell counted twice, and one more for whatever is not the first
    two look-ups    where a cell holds one threshold at most. Its entry is the mark of its first number shifted by s,
                    less the cell's own bits, plus what makes adding u's bits carry into the mark beyond the threshold

A *mark* numbers values (or gaps) away from zero, those of negative numbers apart, since the bits of a float32 are its
magnitude and a sign: the values, ascending, and then again, descending. So the end of a gap nearer to zero and the one
farther have marks m and m + 1, whichever side it is on. Tables too fine for either (16 bits) are bisected.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding, TableFormat, parse_format

_WIDTHS = (20, 19, 18, 17, 16, 15, 14)
"""How many low bits of a float32 a cell leaves out; the first that serves is taken."""
_LARGEST = 1 << 18
"""The most entries of a look-up, 1 MiB."""
_GAPS = "gaps"
_RUNGS = "rungs"


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


def _round(
    u: Tensor,
    fmt: TableFormat,
    rounding: Rounding,
    noise: Tensor | None = None,
    random_bits: int | None = None,
    average: Tensor | None = None,
) -> Tensor:
    if rounding.is_nearest:
        q = _nearest(u, fmt, rounding)
    elif average is not None and rounding is Rounding.toward_average:
        q = _toward(u, fmt, average)
    elif rounding is Rounding.stochastic:
        q = _drawn(u, fmt, noise, random_bits)
    else:
        within = u.clamp(*_two_ends(fmt, u.device))
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


def _nearest(u: Tensor, fmt: TableFormat, rounding: Rounding) -> Tensor:
    table, *steps = _constants(fmt.name, rounding.value, u.device)
    if steps:
        return _taken(table, _mark(u, steps))
    bits, width = u.view(torch.int32), 34 - len(table).bit_length()
    first = bits + ((1 << width) - 1)  # the largest NaN turns over, into an entry that is there
    return _taken(table, first.bitwise_right_shift_(width).add_(bits >> width).add_(len(table) >> 1))


def _toward(u: Tensor, fmt: TableFormat, average: Tensor) -> Tensor:
    """The end of each gap that the average is nearer to; beyond `next` there is one alone."""
    mark = _gap_mark(u, fmt)
    low, high = _low_high(mark, fmt)
    middles = _constants(fmt.name, "middles", u.device)[0]
    q = torch.where(average > _taken(middles, mark), high, low)
    q = torch.where((u == 0) & (low == 0), low, q)
    lowest, highest = _two_ends(fmt, u.device)
    return torch.where(u <= lowest, lowest, torch.where(u >= highest, highest, q))


def _drawn(u: Tensor, fmt: TableFormat, noise: Tensor | None, random_bits: int | None) -> Tensor:
    """Stochastic rounding: to the end of the gap that is farther from zero where the draw is below the passed part."""
    if noise is None:
        raise ValueError("stochastic rounding needs a key for its counted bits; pass key=.")
    mark = _gap_mark(u, fmt)
    near, width = _constants(fmt.name, "passed", u.device)
    passed = u.to(torch.float64).sub_(_taken(near, mark)).div_(_taken(width, mark))
    if random_bits is not None:
        passed = (passed * 2.0**random_bits).floor() * 2.0**-random_bits
        noise = noise & -(1 << (24 - random_bits))
    away = noise.to(torch.float64).mul_(2.0**-24) < passed
    return _taken(_values(fmt, u.device), mark + away)


def _spacing(u: Tensor, fmt: TableFormat) -> Tensor:
    low, high = _ends(u, fmt)
    return high - low


def _position(u: Tensor, fmt: TableFormat) -> Tensor:
    low, high = _ends(u, fmt)
    return (u - low) / (high - low)


def _gap(u: Tensor, fmt: TableFormat, direction: Tensor | float) -> Tensor:
    mark, values = _gap_mark(u, fmt), _values(fmt, u.device)
    near, far = _taken(values, mark), _taken(values, mark + 1)
    inner = (near - _taken(values, (mark - 1).clamp(min=0))).abs()
    inward = (((u < 0) & (direction > 0)) | ((u >= 0) & (direction < 0))) & (u == near)
    return torch.where(inward, inner, (far - near).abs())


def _rung(u: Tensor, fmt: TableFormat) -> Tensor:
    rungs, *steps = _constants(fmt.name, _RUNGS, u.device)
    return _taken(rungs, _mark(u, steps))


def _at_rung(position: Tensor, fmt: TableFormat) -> Tensor:
    return _taken(_values(fmt, position.device), (position + (1 + fmt.zero_rank)).clamp(1, len(fmt.ranked)))


TABLE = GridRules(_spacing, _gap, _position, _round, _rung, _at_rung)
"""The rules of a TableFormat."""


def table_codes(position: Tensor, negative: Tensor, fmt: TableFormat) -> Tensor:
    """Codes of rungs, int32; `negative` tells -0 from +0 where the table has both."""
    place = (position + fmt.zero_rank).clamp(0, len(fmt.ranked) - 1)
    codes = _taken(_constants(fmt.name, "codes", position.device)[0], place)
    if not fmt.has_negative_zero:
        return codes
    zero = next(code for code in fmt.zero_codes if math.copysign(1, fmt.values[code]) < 0)
    return torch.where((position == 0) & negative, zero, codes)


def table_values(codes: Tensor, fmt: TableFormat) -> Tensor:
    """Values of codes: float32. IndexError for one that the table does not have, where that is looked at."""
    table: Tensor = _constants(fmt.name, "values by code", codes.device)[0]
    return table.index_select(0, codes.reshape(-1)).view(codes.shape)


def _ends(u: Tensor, fmt: TableFormat) -> tuple[Tensor, Tensor]:
    """The two values between which u lies; from a value that is not negative on it is the gap above it."""
    return _low_high(_gap_mark(u, fmt), fmt)


def _low_high(mark: Tensor, fmt: TableFormat) -> tuple[Tensor, Tensor]:
    values = _values(fmt, mark.device)
    near, far = _taken(values, mark), _taken(values, mark + 1)
    return torch.minimum(near, far), torch.maximum(near, far)


def _gap_mark(u: Tensor, fmt: TableFormat) -> Tensor:
    """The mark of the gap that u lies in, -0 as 0."""
    return _mark(torch.where(u == 0, 0.0, u), _constants(fmt.name, _GAPS, u.device))


def _mark(u: Tensor, steps: list[Tensor]) -> Tensor:
    """The mark of u on a staircase, int32; for a NaN anything that is a mark."""
    entries, *bisected = steps
    if bisected:
        place = torch.bucketize(u, bisected[0], out_int32=True)
        return torch.where(u < 0, entries - place, place)
    bits, width = u.view(torch.int32), 33 - len(entries).bit_length()
    return _taken(entries, (bits >> width).add_(len(entries) >> 1)).add_(bits).bitwise_right_shift_(width)


def _taken(table: Tensor, index: Tensor) -> Tensor:
    """Entries of a table by an index that is made to be within it: a graph need not look, a third of the time."""
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.aten._unsafe_index.Tensor(table, [index])
        return found
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _two_ends(fmt: TableFormat, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two values of `next`."""
    values = _values(fmt, device)
    return values[0], values[len(fmt.extended) - 1]


def _values(fmt: TableFormat, device: torch.device) -> Tensor:
    """The values by mark, float32."""
    found: Tensor = _constants(fmt.name, "values", device)[0]
    return found


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
    with torch.inference_mode(False), torch.device("cpu"):
        return [tensor.to(device) for tensor in _tensors(fmt, what)]


def _tensors(fmt: TableFormat, what: str) -> list[Tensor]:
    values = torch.tensor(fmt.extended, dtype=torch.float64).to(torch.float32)
    by_mark = torch.cat((values, values.flip(0)))
    if what == "values":
        return [by_mark]
    if what == "passed":  # where gaps begin and how far they go, seen from zero
        ends = by_mark.to(torch.float64)
        return [ends[:-1], ends.diff()]
    if what == "middles":
        middles = torch.tensor(fmt.thresholds(Rounding.nearest_away), dtype=torch.float32)
        return [torch.cat((middles, middles[-1:], middles.flip(0)))]
    if what == "values by code":
        return [torch.tensor(fmt.values, dtype=torch.float32)]
    if what == "codes":
        return [torch.tensor(fmt.rank_codes, dtype=torch.int32)]
    if what == _GAPS:
        return _steps(len(values), torch.tensor(fmt.gap_thresholds, dtype=torch.float32))
    thresholds = torch.tensor(fmt.thresholds("nearest_even" if what == _RUNGS else what), dtype=torch.float32)
    if what == _RUNGS:
        rungs = torch.arange(len(values), dtype=torch.int32).clamp(1, len(values) - 2) - (1 + fmt.zero_rank)
        return [torch.cat((rungs, rungs.flip(0))), *_steps(len(values), thresholds)]
    table = _one_look(values, thresholds)
    return [by_mark, *_steps(len(values), thresholds)] if table is None else [table]


def _one_look(values: Tensor, thresholds: Tensor) -> Tensor | None:
    """For the coarsest cells of which every number but the first becomes one value: that of the first, and this one."""
    for width in _WIDTHS:
        cell = _cells(width)
        if 2 * len(cell) > _LARGEST:
            break
        first, second, last = (_place(cell + low, thresholds) for low in (0, 1, (1 << width) - 1))
        if second.equal(last):
            return values.index_select(0, torch.stack((first, second), 1).view(-1))
    return None


def _steps(count: int, thresholds: Tensor) -> list[Tensor]:
    """The entries of the coarsest cells that hold one threshold each at most, of a table of `count` values, `next`
    included; else what turns a place into the mark of a negative number, and the thresholds."""
    turned = count + len(thresholds)
    for width in _WIDTHS:
        cell, full = _cells(width), 1 << width
        if len(cell) > _LARGEST or 2 * count >= 1 << (31 - width):
            break
        place, last = (_place(cell + low, thresholds) for low in (0, full - 1))
        if int((last - place).abs().max()) <= 1:
            negative = cell < 0
            # Numbers of the cell before the threshold: up to it away from zero, and short of it towards zero.
            next_one = (place - negative.to(place.dtype)).clamp(0, len(thresholds) - 1)
            low = (thresholds.index_select(0, next_one).view(torch.int32) & (full - 1)) + ~negative
            before = torch.where(last == place, full, low)
            mark = torch.where(negative, turned - place, place).to(torch.int64)
            entry = (mark << width) + (full - before) - cell
            return [entry.to(torch.int32)]
    return [torch.tensor(turned, dtype=torch.int32), thresholds]


def _cells(width: int) -> Tensor:
    """The first number, as the bits of a float32, int64, of each cell that leaves out so many bits."""
    return torch.arange(-(1 << (31 - width)), 1 << (31 - width)) << width


def _place(bits: Tensor, thresholds: Tensor) -> Tensor:
    """#{t < u} of the numbers with these bits, int64; NaN stands for an infinity of its sign."""
    u = bits.to(torch.int32).view(torch.float32)
    limit = torch.where(bits < 0, -math.inf, math.inf)
    return torch.bucketize(torch.where(u.isnan(), limit, u), thresholds)


def rules_of(fmt: NumberFormat, formula: GridRules) -> GridRules:
    """The rules of a format; `formula` are those of an ExMy."""
    return TABLE if isinstance(fmt, TableFormat) else formula
