"""The scale under which a format rounds a tensor with the least squared error: an exact search.

Rounding |x| to s * g is a choice of the nearest of the values s g_r, so |x| falls into cells between midpoints s m_r;
and with the magnitudes sorted and their counts n, sums S1 and sums of squares S2 accumulated once, the error of *any*
scale is a sum over codes, not over elements:

    error(s) = S2 - 2 s sum_r g_r S1_r + s^2 sum_r g_r^2 n_r

Three facts bound the search. Where nothing saturates, the grid of s / 2 contains that of s, so no scale of 2 amax / max
or above needs a look. What lies above s max contributes at least (|x| - s max)^2, which only grows as s falls: once
that alone reaches the best error found, no smaller scale can win. And between two scales at which some |x| changes its
cell, error(s) is a parabola, with its minimum at sum g_r S1_r / sum g_r^2 n_r. Powers of two between the bounds are all
tried, so that answer is exact. Real scales are tried in 256 steps a binade, and from the best eight the parabola's
minimum is taken and the cells redrawn until both agree: a local minimum each (Lloyd, Least squares quantization in PCM,
1982), the least of which is the answer. Formats of more than 2^12 values, to which the scale hardly matters, get
coarser steps and two starts of ten redrawings. Trying scales by casting (`scaling: mse`) costs a pass over the tensor
for each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.measures.quantiles import ascending
from altgrad.quantize.scaling import MAX_SCALE, MIN_SCALE, scale_of

_BINADES = 280  # more than float32 has, sub-normals included
_CHUNK = 1 << 21  # cells looked up at a time
_MANY_CODES = 1 << 13


class _Effort(NamedTuple):
    """How finely the real scale is searched for."""

    steps: int  # tried in each binade
    starts: int
    redrawings: int


_FINE, _COARSE = _Effort(256, 8, 100), _Effort(8, 2, 10)


class Magnitudes:
    """Magnitudes, sorted, with running counts, sums and sums of squares in float64."""

    def __init__(self, values: Tensor, counts: Tensor, *, signed: bool = False) -> None:
        """values: float64 [n], ascending, finite, and not negative unless `signed`. counts: float64 [n], how often each
        occurs. signed: values instead of magnitudes, which formats need whose two halves differ."""
        self.sorted, self.signed = values, signed
        zero = values.new_zeros(1)
        self.count = torch.cat((zero, counts.cumsum(0)))
        self.sum = torch.cat((zero, (values * counts).cumsum(0)))
        self.square_sum = torch.cat((zero, (values.square() * counts).cumsum(0)))

    @classmethod
    def of(cls, x: Tensor, *, signed: bool = False) -> "Magnitudes":
        """Those of the finite elements of x (any shape, float32, bf16 or fp16): 32 bytes an element."""
        flat = x.detach().flatten().to(torch.float64)
        flat = flat if signed else flat.abs()
        values = ascending(flat[flat.abs() < math.inf])
        return cls(values, torch.ones_like(values), signed=signed)

    @property
    def amax(self) -> Tensor:
        """The largest, as a float32 scalar; 0 where there is none."""
        return (
            self.sorted.new_zeros(()).float() if self.sorted.numel() == 0 else self.sorted[[0, -1]].abs().amax().float()
        )

    def errors(self, scales: Tensor, fmt: NumberFormat) -> Tensor:
        """Sum of squared errors of rounding to nearest, saturating, under each of `scales` [n]: float64 [n].

        Exact up to float64's cancellation, about 1e-13 of the tensor's energy.
        """
        size = max(1, _CHUNK // len(self._grid(fmt)))
        parts = [self._products(scales[start : start + size], fmt) for start in range(0, len(scales) or 1, size)]
        cross, energy = (torch.cat(part) for part in zip(*parts, strict=True))
        return (self.square_sum[-1] - 2 * scales * cross + scales.square() * energy).clamp(min=0)

    def clipping(self, scales: Tensor, fmt: NumberFormat) -> Tensor:
        """The part of `errors` that no scale below can undo: sum of (|x| - s max)^2 over |x| > s max, for each s."""
        top = scales * float(fmt.highest)
        first = torch.searchsorted(self.sorted, top, right=True)
        count = self.count[-1] - self.count[first]
        above, squares = self.sum[-1] - self.sum[first], self.square_sum[-1] - self.square_sum[first]
        found = (squares - 2 * top * above + top.square() * count).clamp(min=0)
        if self.signed:
            bottom = scales * float(fmt.lowest)
            last = torch.searchsorted(self.sorted, bottom)
            under = self.square_sum[last] - 2 * bottom * self.sum[last] + bottom.square() * self.count[last]
            found = found + under.clamp(min=0)
        return found

    def settled(self, scales: Tensor, fmt: NumberFormat, redrawings: int) -> Tensor:
        """Each scale moved to a local minimum of the error; it stays where the tensor rounds to zero throughout."""
        for _ in range(redrawings):
            cross, energy = self._products(scales, fmt)
            moved = torch.where(energy > 0, cross / energy, scales)
            if torch.equal(moved, scales):
                break
            scales = moved
        return scales

    def _grid(self, fmt: NumberFormat) -> tuple[float, ...]:
        """The values that a cell each is of."""
        ranked = fmt.ranked
        return ranked if self.signed else ranked[len(ranked) // 2 :]

    def _products(self, scales: Tensor, fmt: NumberFormat) -> tuple[Tensor, Tensor]:
        """sum g S1 and sum g^2 n over the cells, for each scale."""
        values = torch.tensor(self._grid(fmt), dtype=torch.float64)
        edges = torch.searchsorted(self.sorted, scales[:, None] * ((values[1:] + values[:-1]) / 2))
        last = torch.full((len(scales), 1), self.sorted.numel())
        edges = torch.cat((torch.zeros_like(last), edges, last), dim=1)
        sums, counts = self.sum[edges].diff(dim=1), self.count[edges].diff(dim=1)
        return (values * sums).sum(1), (values.square() * counts).sum(1)


def best_power_of_two(magnitudes: Magnitudes, fmt: NumberFormat) -> float:
    """The power of two of least squared error, the largest of equals; 1 for a tensor of zeros, or of nothing.

    Within [2^-126, 2^127], as all scales. ValueError for a format outside the tensor domain.
    """
    fmt.require_tensor_domain()
    start = float(scale_of(magnitudes.amax, fmt))
    best, least = start, math.inf
    for number in range(_BINADES):
        scale = torch.tensor([start * 2.0**-number], dtype=torch.float64)
        if float(scale) < MIN_SCALE or float(magnitudes.clipping(scale, fmt)) >= least:
            break
        error = float(magnitudes.errors(scale, fmt))
        if error < least:
            best, least = float(scale), error
    return best


def best_real(magnitudes: Magnitudes, fmt: NumberFormat) -> float:
    """The float32 scale of least squared error; 1 for a tensor of zeros, or of nothing. Otherwise as above."""
    power = best_power_of_two(magnitudes, fmt)
    amax_scale = float(scale_of(magnitudes.amax, fmt, power_of_two=False))
    known = torch.tensor([power, amax_scale], dtype=torch.float64)
    errors = magnitudes.errors(known, fmt)
    if float(errors[0]) == 0:
        return power
    effort = _COARSE if fmt.code_count > _MANY_CODES else _FINE
    steps = torch.arange(_BINADES * effort.steps, dtype=torch.float64) / effort.steps
    scales = 2 * amax_scale * torch.exp2(-steps)
    scales = scales[magnitudes.clipping(scales, fmt) < errors.amin()]
    scales = torch.cat((known, scales)).clamp(MIN_SCALE, MAX_SCALE)
    starts = scales[magnitudes.errors(scales, fmt).argsort(stable=True)[: effort.starts]]
    settled = magnitudes.settled(starts, fmt, effort.redrawings).clamp(MIN_SCALE, MAX_SCALE)
    found = torch.cat((known, settled)).float().double()
    return float(found[magnitudes.errors(found, fmt).argmin()])
