"""The grid of a format as arithmetic on tensors: `spacing`, and everything that follows from it.

`spacing(x)`, the gap between neighbouring grid points at x, is one ulp, NumPy's `spacing`, and the "stiffness" of
manifold-aware updates. In grid units u = x / scale, for every sign-magnitude format with E exponent and M mantissa
bits, sub-normals included, it is three exact operations:

    keep the exponent field of float32 u;  clamp it to [2^e_min, 2^max_binade];  multiply by 2^-M.

Rounding is then rounding of the *integer* u / spacing, which is why there is no code per format here and no table:

    round_to(x) = scale * saturate(round_integer(u / spacing(u)) * spacing(u))

Both operations on u are exact, since spacing is a power of two. The clamp is a float clamp: shifting `(e - M) << 23`
together, or multiplying by a reciprocal of the scale, is wrong near the ends of float32.

All this is the formula of an ExMy (`_FORMULA`). The same questions are answered by look-up for tables of values, in
`altgrad.quantize.table_grid`.

Ties go to the even *code*. For M >= 1 the parity of the code is that of the integer. For M = 0 the code is the exponent
field, so its parity is looked up from the exponent of u (as IEEE P3109 does for its one-bit precision formats).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, Rounding, parse_format
from altgrad.quantize.noise import counted_bits
from altgrad.quantize.table_grid import GridRules, rules_of
from altgrad.quantize.traced import binade, binades

Overflow = Literal["saturate", "inf"]
Nonfinite = Literal["keep", "saturate"]
Scale = Tensor | float | None

_EXPONENT_FIELD = 0x7F800000
_TINY = 2.0**-149
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
NO_RUNG = -(1 << 31)
"""The rung of a NaN."""


@dataclass(frozen=True)
class Grid:
    """Where a weight's values lie: a format and its live scale, float32 that broadcasts with it; None for 1."""

    format: NumberFormat
    scale: Tensor | None = None


def in_float32(x: Tensor) -> Tensor:
    """x as float32, exactly, detached from autograd. TypeError for other than float32, bf16 and fp16."""
    require_castable(x)
    return x.detach().to(torch.float32)


def require_castable(x: Tensor) -> None:
    """TypeError for a dtype other than float32, bf16 and fp16."""
    if x.dtype not in _FLOATS:
        raise TypeError(f"{x.dtype} cannot be cast to a grid; casts take float32, bfloat16 and float16 tensors.")


def grid_units(x: Tensor, scale: Scale = None) -> Tensor:
    """x / scale in float32, one division; detached from autograd. Raises TypeError for other than float32, bf16, fp16.

    float64 is refused because rounding it to float32 first would round twice.
    """
    u = in_float32(x)
    return u if scale is None else u / _scale(scale, u.device)


def _scale(scale: Tensor | float, device: torch.device) -> Tensor:
    """The scale as a float32 tensor beside x. ValueError for a number that is not a positive float32.

    Division needs it as a tensor: by a number, or by a scalar tensor that lives on the host, CUDA kernels multiply with
    the rounded reciprocal instead, which is a different result.
    """
    if isinstance(scale, Tensor):
        return scale.detach().to(device, torch.float32)
    if not 2.0**-149 <= scale < 2.0**128:
        raise ValueError(f"scale={scale}; a scale is a positive float32 number (2^-149..2^128).")
    return torch.full((), scale, device=device)


def _scaled(q: Tensor, scale: Scale) -> Tensor:
    return q if scale is None else q * _scale(scale, q.device)


def spacing_units(u: Tensor, fmt: NumberFormat) -> Tensor:
    """Spacing at u, both in grid units; u float32. The smallest gap from zero on, that of max beyond max."""
    return rules_of(fmt, _FORMULA).spacing(u, fmt)


def _formula_spacing(u: Tensor, fmt: FloatFormat) -> Tensor:
    return _binade(u, fmt).mul_(2.0**-fmt.mantissa_bits)


def _binade(u: Tensor, fmt: FloatFormat) -> Tensor:
    return binade(u, *binades(fmt))


def spacing(x: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """Gap between the grid points around each element of x: one ulp of the *format* at x, not of float32.

    x: any shape, float32, bf16 or fp16. scale: a number or a tensor that broadcasts with x; x ~ q * scale.
    Returns float32 in the units of x. At zero and in the sub-normal range it is the smallest gap; for M = 0 below the
    smallest value it is that value; above the largest value, and for NaN and inf, it is that of the largest value.
    """
    fmt = _domain(fmt)
    return _scaled(spacing_units(grid_units(x, scale), fmt), scale)


def gap(x: Tensor, fmt: NumberFormat | str, direction: Tensor | float, *, scale: Scale = None) -> Tensor:
    """Distance from each grid point x to its neighbour on the side of `direction` (its sign; zero means away from 0).

    Equals `spacing`, halved towards zero where |x| is a power of two above the smallest normal: there the next grid
    point inward belongs to a finer binade. For x off the grid it is `spacing`. Outward from the largest value there is
    no neighbour; the gap is then the spacing as if the binade went on. Float32, in the units of x.
    """
    fmt = _domain(fmt)
    return _scaled(rules_of(fmt, _FORMULA).gap(grid_units(x, scale), fmt, direction), scale)


def _formula_gap(u: Tensor, fmt: FloatFormat, direction: Tensor | float) -> Tensor:
    binade = _binade(u, fmt)
    # Comparisons, since the product of two small numbers of opposite sign can be -0.
    inward = ((u > 0) & (direction < 0)) | ((u < 0) & (direction > 0))
    halved = inward & (u.abs() == binade) & (binade > 2.0**fmt.e_min)
    gaps = binade * 2.0**-fmt.mantissa_bits
    return torch.where(halved, gaps * 0.5, gaps)


def position_units(u: Tensor, fmt: NumberFormat) -> Tensor:
    """How far u has come in its gap, from 0 to 1; 0 or 1 on a grid value. u float32 in grid units, same shape."""
    return rules_of(fmt, _FORMULA).position(u, fmt)


def _formula_position(u: Tensor, fmt: FloatFormat) -> Tensor:
    steps = (u / spacing_units(u, fmt)).abs()
    return steps - steps.floor()


def round_units(
    u: Tensor,
    fmt: NumberFormat,
    rounding: Rounding,
    noise: Tensor | None = None,
    random_bits: int | None = None,
    average: Tensor | None = None,
) -> Tensor:
    """u rounded to the grid as if it went on beyond the largest value, in grid units; NaN and inf stay.

    noise: counted bits in [0, 2^24), needed for stochastic rounding only; `random_bits` uses only their highest k.
    average: float32 in grid units, of u's shape, needed for toward_average only.
    """
    if rounding is Rounding.toward_average and average is None:
        raise ValueError("toward_average needs the average that decides; pass average=.")
    return rules_of(fmt, _FORMULA).round(u, fmt, rounding, noise, random_bits, average)


def _formula_round(
    u: Tensor,
    fmt: FloatFormat,
    rounding: Rounding,
    noise: Tensor | None = None,
    random_bits: int | None = None,
    average: Tensor | None = None,
) -> Tensor:
    if rounding is Rounding.nearest_even and _adds_exactly(fmt):
        # Adding 1.5 * 2^23 gaps leaves float32 no room for fractions of a gap: its own rounding is ours.
        shift = _binade(u, fmt).mul_(1.5 * 2.0 ** (23 - fmt.mantissa_bits))
        return (u + shift).sub_(shift).copysign_(u)
    gaps = spacing_units(u, fmt)
    t = u / gaps
    if rounding is Rounding.nearest_even and fmt.mantissa_bits > 0:
        return t.round_().mul_(gaps)
    if fmt.e_min > fmt.mantissa_bits:
        # Every gap is above 1, so a float32 sub-normal divided by it can vanish; a directed rounding must still see it.
        t = torch.where((t == 0) & (u != 0), torch.full_like(t, _TINY).copysign(u), t)
    if rounding is Rounding.toward_zero:
        return t.trunc_().mul_(gaps)
    if rounding is Rounding.toward_positive:
        return t.ceil_().mul_(gaps)
    if rounding is Rounding.toward_negative:
        return t.floor_().mul_(gaps)
    magnitude = t.abs()
    low = magnitude.floor()
    fraction = magnitude - low
    if rounding is Rounding.stochastic:
        if noise is None:
            raise ValueError("stochastic rounding needs a key for its counted bits; pass key=.")
        if random_bits is not None:
            fraction = (fraction * 2.0**random_bits).floor() * 2.0**-random_bits
            noise = noise & -(1 << (24 - random_bits))
        up = noise.to(torch.float32) * 2.0**-24 < fraction
    elif average is not None and rounding is Rounding.toward_average:
        up = average / gaps * t.sign() - low >= 0.5
    elif rounding is Rounding.nearest_away:
        up = fraction >= 0.5
    elif rounding is Rounding.nearest_ties_to_zero:
        up = fraction > 0.5
    elif rounding is Rounding.nearest_ties_up:
        up = (fraction > 0.5) | ((fraction == 0.5) & (u > 0))
    else:
        up = (fraction > 0.5) | ((fraction == 0.5) & _odd_code(u, fmt))
    return (low + up).copysign(u).mul_(gaps)


def _adds_exactly(fmt: FloatFormat) -> bool:
    """Whether rounding by adding and subtracting is exact: ties go by an integer's parity and nothing overflows."""
    return fmt.mantissa_bits > 0 and max(fmt.e_min, fmt.max_binade) - fmt.mantissa_bits + 24 < 128


def _odd_code(u: Tensor, fmt: FloatFormat) -> Tensor:
    """Whether the largest code not above |u| is odd, for M = 0: its code is the biased exponent, or 0 below that."""
    exponent = ((u.view(torch.int32) & _EXPONENT_FIELD) >> 23) - 127
    return (u.abs() >= 2.0**fmt.e_min) & (((exponent + fmt.bias) & 1) == 1)


def inside(u: Tensor, fmt: NumberFormat) -> Tensor:
    """Whether each element, in grid units, lies between the lowest and the highest value; NaN does not."""
    return (u >= float(fmt.lowest)) & (u <= float(fmt.highest))


def beyond(u: Tensor, fmt: NumberFormat) -> Tensor:
    """Whether each element, in grid units, lies below the lowest or above the highest value; NaN does not."""
    return (u < float(fmt.lowest)) | (u > float(fmt.highest))


def bound_units(r: Tensor, fmt: NumberFormat, overflow: Overflow = "saturate", *, in_place: bool = False) -> Tensor:
    """Apply the overflow rule and the format's zeros to unbounded-rounded values, in grid units.

    saturate: finite overflow and inf become +-max. inf: they become the format's inf, else its NaN. NaN stays NaN.
    `in_place` allows, but does not promise, that r is overwritten.
    """
    low, high = float(fmt.lowest), float(fmt.highest)
    if overflow == "saturate":
        bounded = r.clamp_(low, high) if in_place else r.clamp(low, high)
    else:
        special = torch.full_like(r, math.inf if fmt.has_inf else math.nan).copysign(r)
        bounded = torch.where(beyond(r, fmt), special, r)
    if fmt.has_negative_zero:
        return bounded
    # -0 + 0 is 0, in a fifth of the time; a compiler would leave the sum out.
    return torch.where(bounded == 0, 0.0, bounded) if torch.compiler.is_compiling() else bounded.add_(0.0)


def keep_infinite(x: Tensor, rounded: Tensor) -> Tensor:
    """rounded, with the infinite entries of x as they are; of one shape, float32. May give `rounded` itself."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        # There are hardly ever any, and to look at the ends is one pass over x, without a temporary.
        low, high = torch.aminmax(x)
        if -math.inf < low and high < math.inf:
            return rounded
    return torch.where(x.abs() == math.inf, x, rounded)


def round_to(
    x: Tensor,
    fmt: NumberFormat | str,
    rounding: Rounding | str = "nearest_even",
    *,
    scale: Scale = None,
    overflow: Overflow = "saturate",
    nonfinite: Nonfinite = "saturate",
    key: Tensor | int | None = None,
    offset: int = 0,
    random_bits: int | None = None,
    average: Tensor | None = None,
) -> Tensor:
    """Nearest values of the grid `scale * fmt`, under any rounding mode.

    x: any shape, float32, bf16 or fp16. scale: a number or tensor that broadcasts with x (x ~ q * scale).
    overflow: `saturate` sends finite overflow to the largest value; `inf` to the format's inf, else to its NaN, and
    raises ValueError for a format with neither. nonfinite: what becomes of an inf that enters: `saturate` treats it as
    overflow, `keep` leaves it. NaN stays NaN. -0 is kept where the format has it.
    Stochastic rounding works in value space, P(up) = (x - lo) / (hi - lo), with 24 bits counted from `key` (an int or
    int64 scalar tensor) and the flat index plus `offset`; the same key and index give the same bits on every device.
    A grid value never moves. `random_bits` in 1..24 keeps only the highest bits: no move below 2^-k of a gap.
    average: of the shape of x, in its units, what toward_average goes to.
    Returns the dtype of x where that holds the whole grid and there is no scale, else float32; detached from autograd.
    """
    fmt = _domain(fmt)
    mode = Rounding.parse(rounding)
    if overflow not in get_args(Overflow):
        raise ValueError(f"'{overflow}' is not an overflow; choose saturate or inf.")
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"'{nonfinite}' is not a choice for nonfinite; choose keep or saturate.")
    if overflow == "inf" and not (fmt.has_inf or fmt.has_nan):
        raise ValueError(f"{fmt} has neither inf nor NaN for an overflow to become; use overflow='saturate'.")
    if random_bits is not None and not 1 <= random_bits <= 24:
        raise ValueError(f"random_bits={random_bits}; stochastic rounding uses 1 to 24 bits.")
    u = grid_units(x, scale)
    noise = None
    if mode is Rounding.stochastic and key is not None:
        noise = counted_bits(u.shape, key, offset=offset, device=u.device)
    goal = None if average is None else grid_units(average, scale)
    q = bound_units(round_units(u, fmt, mode, noise, random_bits, goal), fmt, overflow)
    q = q if nonfinite == "saturate" else keep_infinite(in_float32(x), q)
    return q.to(x.dtype) if scale is None and _holds(x.dtype, fmt) else _scaled(q, scale)


def _holds(dtype: torch.dtype, fmt: NumberFormat) -> bool:
    """Whether every finite value of the format is a value of the dtype."""
    info = torch.finfo(dtype)
    return fmt.mantissa_bits <= -math.log2(info.eps) and (
        float(fmt.min_positive) >= info.smallest_normal * info.eps
        and max(-float(fmt.lowest), float(fmt.highest)) <= info.max
    )


def rung(x: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """Signed position on the grid of the point x rounds to (nearest even): 0 at zero, +-1 at the smallest values.

    int32, same shape. It is the code's magnitude with the sign; +0 and -0 share rung 0. NaN gives `NO_RUNG`.
    """
    fmt = _domain(fmt)
    u = grid_units(x, scale)
    return torch.where(u == u, rules_of(fmt, _FORMULA).rung(u, fmt), NO_RUNG)


def _formula_rung(u: Tensor, fmt: FloatFormat) -> Tensor:
    q = bound_units(_formula_round(u, fmt, Rounding.nearest_even), fmt)
    binade = _binade(q, fmt)
    steps = torch.where(q == q, q / (binade * 2.0**-fmt.mantissa_bits), 0.0)
    if fmt.e_min >= -126:
        passed = (binade.view(torch.int32) >> 23) - (fmt.e_min + 127)
    else:  # the lowest binades are float32 sub-normals, which have no exponent field
        passed = torch.frexp(binade).exponent - (fmt.e_min + 1)
    position = steps + (passed * 2.0**fmt.mantissa_bits).copysign(q)
    return torch.where(q == q, position, 0.0).to(torch.int32)


def at_rung(position: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """The value at a signed grid position: the inverse of `rung`. Beyond the ends it is +-max; `NO_RUNG` gives NaN.

    position: any shape, a signed integer dtype; TypeError for others. Returns float32, in the units of x.
    """
    fmt = _domain(fmt)
    if position.dtype not in _INTEGERS:
        raise TypeError(f"{position.dtype} holds no grid positions; at_rung takes signed integers, as rung gives.")
    position = position.to(torch.int64)
    value = rules_of(fmt, _FORMULA).at_rung(position, fmt)
    return _scaled(torch.where(position == NO_RUNG, math.nan, value), scale)


def _formula_at_rung(position: Tensor, fmt: FloatFormat) -> Tensor:
    index = position.clamp(-fmt.max_code, fmt.max_code).abs()
    # The first 2^M positions (sub-normals) and the next 2^M (the first binade) share one spacing.
    binade = (index >> fmt.mantissa_bits).sub(1).clamp(min=0)
    steps = (index - (binade << fmt.mantissa_bits)).to(torch.float32)
    # Two factors, because the power of two itself can exceed float32 where the product does not.
    half = binade >> 1
    value = steps * 2.0 ** (fmt.e_min - fmt.mantissa_bits) * power_of_two(half) * power_of_two(binade - half)
    return value.copysign(position.to(torch.float32))


_FORMULA = GridRules(_formula_spacing, _formula_gap, _formula_position, _formula_round, _formula_rung, _formula_at_rung)
"""The rules of an ExMy."""


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float32, for integer exponents in -126..127."""
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def _domain(fmt: NumberFormat | str) -> NumberFormat:
    """The format, if tensors can be cast to it exactly; otherwise ValueError."""
    fmt = parse_format(fmt) if isinstance(fmt, str) else fmt
    fmt.require_tensor_domain()
    return fmt
