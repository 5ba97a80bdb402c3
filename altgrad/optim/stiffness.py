"""The stiffness of a weight, and the factor that turns an optimizer's direction into one measured in grid steps.

    T = spacing(max(|w|, kappa rms(w)))        the gap of the weight's own grid: one ulp, 2^(floor(log2|w|) - M)
    f = T^p / rms(T^p)                         p = 0: 1 everywhere; p = 1: whole ulps; rms over the tensor is always 1

What only matters up to a factor is kept up to a factor: T is in units of the largest scale of the tensor, and T^p is
taken of T / max(T), with its mean square in float64, because wide formats have spacings down to 2^-132.

The floor kappa lets weights cross zero: without it the step of a small weight shrinks with the weight. Other choices of
T are the controls of the experiment (docs/SCIENCE.md): is it *this* format's geometry that helps?

    own           the weight's own grid
    <format>      another format's grid, its largest value where the own grid has its largest
    smooth        sqrt(w^2 + beta^2), beta the smallest normal: the continuous curve the staircase follows
    constant      1
    shuffled      own, moved to other places of the tensor by one fixed permutation
    reshuffled    the same with a new permutation each step
"""

from typing import Annotated, Literal, get_args

import torch
from pydantic import PlainValidator
from torch import Tensor

from altgrad.formats import NumberFormat, parse_format
from altgrad.quantize import Grid
from altgrad.quantize.grid import grid_units, spacing_units
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.scaling import scale_of
from altgrad.quantize.traced import held

Control = Literal["own", "smooth", "constant", "shuffled", "reshuffled"]
Normalise = Literal["rms", "median", "none"]


def _stiffness(value: object) -> NumberFormat | str:
    """A control's name, or the NumberFormat that a name means; ValueError for neither."""
    if isinstance(value, NumberFormat) or value in get_args(Control):
        return value  # type: ignore[return-value]
    if not isinstance(value, str):
        raise ValueError(f"stiffness: {value!r} is neither one of {', '.join(get_args(Control))} nor a format's name.")
    try:
        fmt = parse_format(value)
        fmt.require_tensor_domain()
    except ValueError as error:
        raise ValueError(f"stiffness is one of {', '.join(get_args(Control))} or a format; {error}") from None
    return fmt


Stiffness = Annotated[NumberFormat | str, PlainValidator(_stiffness)]
"""A field that takes `own`, another control's name, or a format's name."""


def stiffness_of(value: NumberFormat | str) -> NumberFormat | str:
    """`value` checked: a control's name as it is, a format's name as the NumberFormat. ValueError otherwise."""
    return _stiffness(value)


def floored(w: Tensor, kappa: float | Tensor) -> Tensor:
    """max(|w|, kappa rms(w)), float32; rms over the whole tensor, in float64."""
    magnitude = w.detach().to(torch.float32).abs()
    return torch.maximum(magnitude, floor_of(magnitude, kappa))


def floor_of(w: Tensor, kappa: float | Tensor) -> Tensor:
    """kappa rms(w), a float32 scalar."""
    return kappa * _rms(w).to(torch.float32)


def spacing_field(w: Tensor, grid: Grid, *, stiffness: NumberFormat | str = "own", kappa: float = 2.0**-6) -> Tensor:
    """T in units of the tensor's largest scale: float32, the shape of w, positive.

    stiffness: `own`, `smooth`, `constant` or a NumberFormat. Shuffled ones: see `permutation`.
    """
    if stiffness == "constant":
        return torch.ones_like(w, dtype=torch.float32)
    magnitude, fmt, scale = floored(w, kappa), grid.format, grid.scale
    if isinstance(stiffness, NumberFormat):
        fmt = stiffness
        top = torch.ones((), device=w.device) if scale is None else scale
        scale = scale_of(top.clamp(max=2.0**127 / float(grid.format.max)) * float(grid.format.max), fmt)
    units = grid_units(magnitude, scale)
    if stiffness == "smooth":
        field = torch.hypot(units, torch.full_like(units, float(grid.format.flat_below)))
    else:
        field = spacing_units(units, fmt)
    return field if scale is None or scale.numel() == 1 else field * (scale / scale.amax())


def absolute(field: Tensor, grid: Grid) -> Tensor:
    """A `spacing_field` of the own grid in the units of the weight: the stiffness S."""
    return field if grid.scale is None else field * grid.scale.amax()


def factor(field: Tensor, power: float | Tensor, normalise: Normalise = "rms") -> Tensor:
    """f = T^p / rms(T^p) (or the median of T^p, the lower of two): float32, the shape of `field`.

    Exactly 1 everywhere for p = 0 and for a constant field. `none` means S^p in the weight's units, of which the field
    alone knows nothing: see `absolute`.
    """
    assert normalise != "none"
    relative = field / field.amax()
    powered = relative if isinstance(power, float) and power == 1 else relative.pow(power)
    if normalise == "median":
        return powered / powered.flatten().median()
    return (powered / _rms(powered)).to(torch.float32)


def permutation(field: Tensor, key: int, step: Tensor | int = 0) -> Tensor:
    """A random order of the field's elements, int64 [numel]: the same for equal keys and steps on every device."""
    return counted_bits((field.numel(),), fold(key, step), device=field.device).argsort(stable=True)


def _rms(x: Tensor) -> Tensor:
    """Root mean square, float64 scalar."""
    return held(x.to(torch.float64, copy=True).square_().mean().sqrt())
