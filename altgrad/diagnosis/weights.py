"""How weights lie on a grid, layer by layer: stiffness field, alignment, code use, ranks.

The grid of a weight is that of its storage, else of its cast, else of the format that was asked for at its power-of-two
amax scale; the measures are those of the monitors of the same names, taken once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.measures import alignment, code_histogram, code_utilisation, matrix_ranks
from altgrad.measures.ranks import gram_singular_values
from altgrad.measures.stiffness import stiffness_exponents, stiffness_histogram, stiffness_quantiles
from altgrad.progress import progress
from altgrad.quantize import Grid, round_to
from altgrad.quantize.codes import to_codes
from altgrad.quantize.grid import grid_units
from altgrad.quantize.scaling import finite_amax, scale_of
from altgrad.training.restore import Restored


@dataclass(frozen=True)
class WeightPicture:
    """One parameter on its grid.

    stiffness: how many weights have each spacing 2^k, k relative to the weights' own units where one scale serves all;
    quantiles of the spacing in grid units at 1, 50 and 99 %. share_normal: weights above the sub-normal range.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    rms: float
    amax: float
    stiffness: Mapping[int, int]
    stiffness_quantiles: tuple[float, ...]
    share_normal: float
    mean_offset: float
    aligned_share: float
    utilisation: float
    unused_share: float
    zero_share: float
    stable_rank: float
    effective_rank: float
    r99: float
    numerical_rank: float


def weight_picture(name: str, weights: Tensor, grid: Grid) -> WeightPicture:
    """The picture of a matrix (or more axes, flattened for the ranks); float32, bf16 or fp16."""
    fmt, scale = grid.format, grid.scale
    values = weights.detach().to(torch.float32)
    histogram = stiffness_histogram(values, fmt, scale=scale)
    sizes = {k: int(n) for k, n in zip(stiffness_exponents(fmt), histogram, strict=True) if n}
    rounded = grid_units(round_to(values, fmt, scale=scale), scale)
    finite = rounded[rounded.isfinite()]
    codes = code_utilisation(code_histogram(to_codes(finite, fmt), fmt), fmt)
    ranks = matrix_ranks(gram_singular_values(values), values.shape)
    aligned = alignment(values, fmt, scale=scale)
    units = grid_units(values, scale).abs()
    normal = float("nan") if fmt.min_normal is None else float((units >= fmt.min_normal).double().mean())
    return WeightPicture(
        name, tuple(weights.shape), str(fmt), float(values.double().square().mean().sqrt()), float(values.abs().amax()),
        sizes, tuple(map(float, stiffness_quantiles(histogram, fmt, (0.01, 0.5, 0.99)))), normal,
        float(aligned["mean_offset"]), float(aligned["aligned_share"]), float(codes["utilisation"]),
        float(codes["unused_share"]), float(codes["zero_share"]), float(ranks["stable"]), float(ranks["effective"]),
        float(ranks["r99"]), float(ranks["numerical"]),
    )  # fmt: skip


def stored_pictures(tensors: Iterable[tuple[str, Tensor]], fmt: NumberFormat) -> list[WeightPicture]:
    """Pictures of (name, weights) pairs at the amax scale of one format."""
    return [weight_picture(name, x, Grid(fmt, scale_of(finite_amax(x.float()), fmt))) for name, x in tensors]


def trained_pictures(restored: Restored, fmt: NumberFormat) -> list[WeightPicture]:
    """Pictures of every matrix of a run on its own grid; on `fmt` where it has none."""
    own = {name: grid for name, _, grid in restored.state.optimizer.grids()}
    found = []
    parameters = list(restored.model.named_parameters())
    for number, (name, p) in enumerate(parameters):
        progress("looking at weights", number, len(parameters))
        if p.ndim >= 2:
            x = p.detach()
            found.append(weight_picture(name, x, own.get(name) or Grid(fmt, scale_of(finite_amax(x), fmt))))
    return found
