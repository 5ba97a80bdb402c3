"""Where the bulk of a tensor lies: quantiles, exact or from a histogram that adds up over pieces and ranks.

    exact       sort, then interpolate between neighbours at q (n - 1), as NumPy's default does
    histogram   magnitudes in 2^k equal steps a binade; the bin is read off the bits of float32, so there is no
                logarithm to round; a quantile is off by less than its bin, 2^-k of its value
    sample      the same well-spread positions each time, for measures that cannot be added up

Nothing here waits for the device or draws a random number: the number of finite entries stays a tensor, and the sample
takes element i * step mod n with step near n / golden ratio and coprime to n (an additive recurrence has the least
discrepancy there), so that it neither keeps to some columns of a matrix nor misses its end. torch.quantile was left
out: it refuses more than 2^24 elements and counts NaN.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from altgrad.quantize import Grid

SAMPLE = 1 << 14
"""Elements of a sample: a share of 1/2 then has a standard error of 0.004."""


def quantiles(x: Tensor, shares: Sequence[float]) -> Tensor:
    """The quantiles of the finite entries of x at `shares` (in [0, 1]): float64 [len(shares)]; NaN without any.

    x: any shape, any float dtype. Costs a sort.
    """
    flat = x.detach().flatten()
    if flat.numel() == 0:
        return torch.full((len(shares),), math.nan, dtype=torch.float64, device=x.device)
    finite = flat.isfinite()
    ordered = ascending(torch.where(finite, flat, math.inf))
    count = finite.sum()
    place = torch.tensor(shares, dtype=torch.float64, device=x.device) * (count - 1).clamp(min=0)
    low = place.floor().to(torch.int64)
    high = torch.minimum(low + 1, (count - 1).clamp(min=0))
    below, above = ordered[low].to(torch.float64), ordered[high].to(torch.float64)
    return torch.where(count > 0, below + (place - low) * (above - below), math.nan)


def ascending(x: Tensor) -> Tensor:
    """A float tensor sorted along its last axis, NaN behind all. On a CPU by NumPy, whose vectors take a fifteenth of
    the time of torch's sort, which moves places along."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return x.sort().values
    return torch.from_numpy(np.sort(x.detach().numpy()))


def spread_sample(x: Tensor, size: int) -> Tensor:
    """`size` elements of x (all of them, if it has no more), flattened, always at the same well-spread positions."""
    flat, count = x.detach().flatten(), x.numel()
    if count <= size:
        return flat
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, count) != 1:
        step += 1
    return flat[torch.arange(size, device=x.device) * step % count]


def sample_on(grid: Grid, *tensors: Tensor, size: int = SAMPLE) -> tuple[Grid, list[Tensor]]:
    """Tensors of one shape at up to `size` positions, and the grid there: its scale may be one number, or one for each
    channel or block, and is spread over the tensor first.
    """
    scale = grid.scale
    if scale is not None and scale.numel() > 1:
        scale = spread_sample(scale.expand_as(tensors[0]), size)
    return Grid(grid.format, scale), [spread_sample(tensor, size) for tensor in tensors]


class LogBins(NamedTuple):
    """Bins of magnitude from 2^low to 2^high, each binade in 2^split equal steps.

    -126 <= low < high <= 128 and 0 <= split <= 23. Bin 0 is what lies below 2^low, zeros included; the last bin is what
    lies at 2^high or above.
    """

    low: int = -40
    high: int = 40
    split: int = 4

    @property
    def size(self) -> int:
        """Number of bins."""
        return ((self.high - self.low) << self.split) + 2

    @property
    def edges(self) -> list[float]:
        """The lower end of each bin."""
        steps = range((self.high - self.low) << self.split)
        part = 1 << self.split
        return [0.0, *(math.ldexp(1 + i % part / part, self.low + i // part) for i in steps), 2.0**self.high]


def log_histogram(x: Tensor, bins: LogBins) -> Tensor:
    """How many finite |x| fall into each bin: int64 [bins.size]. x: float32, bf16 or fp16."""
    magnitude = x.detach().to(torch.float32).abs().flatten()
    first = (bins.low + 127) << bins.split
    index = ((magnitude.view(torch.int32) >> (23 - bins.split)) - (first - 1)).clamp(0, bins.size - 1)
    return tally(index, magnitude < math.inf, bins.size)


def tally(index: Tensor, counted: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs in `index` where `counted`: int64 [size].

    torch.bincount was left out: its result's shape depends on the data, which breaks a graph.
    """
    empty = torch.zeros(size, dtype=torch.int64, device=index.device)
    return empty.scatter_add(0, index.flatten().to(torch.int64), counted.flatten().to(torch.int64))


def histogram_quantiles(histogram: Tensor, bins: LogBins, shares: Sequence[float]) -> Tensor:
    """Quantiles of the magnitudes in a `log_histogram`: float64 [len(shares)]; NaN for an empty one.

    Entries are taken to be evenly spread over their bin. A quantile in bin 0 is 0, and one in the last bin 2^high.
    """
    edges = torch.tensor([*bins.edges, 2.0**bins.high], dtype=torch.float64, device=histogram.device)
    total = histogram.sum()
    place = torch.tensor(shares, dtype=torch.float64, device=histogram.device) * (total - 1).clamp(min=0)
    through = histogram.cumsum(0)
    index = torch.searchsorted(through.to(torch.float64), place, right=True).clamp(max=bins.size - 1)
    held = histogram[index]
    inside = (place - (through[index] - held) + 0.5) / held.clamp(min=1)
    width = torch.where(index > 0, edges[index + 1] - edges[index], 0.0)
    return torch.where(total > 0, edges[index] + inside.clamp(max=1) * width, math.nan)
