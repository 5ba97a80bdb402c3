"""The same well-spread positions of a weight, of what belongs to it, and of its scale, for measures that need a sort.

The scale may be one number, one for each channel, or one for each block; it is spread over the weight first.
"""

from torch import Tensor

from altgrad.measures import spread_sample
from altgrad.quantize import Grid

SIZE = 1 << 14
"""Elements of a sample: a share of 1/2 then has a standard error of 0.004."""


def sample_on(grid: Grid, *tensors: Tensor, size: int = SIZE) -> tuple[Grid, list[Tensor]]:
    """The tensors, all of one shape, at up to `size` positions, and the grid there."""
    scale = grid.scale
    if scale is not None and scale.numel() > 1:
        scale = spread_sample(scale.expand_as(tensors[0]), size)
    return Grid(grid.format, scale), [spread_sample(tensor, size) for tensor in tensors]
