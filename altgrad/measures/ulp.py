"""Steps in ulp: a requested or realised change of a weight, divided by the spacing of the *format* at that weight.

    ulps = delta / spacing(w)

Its size says what storage can do with a step: below 1/2, nearest storage drops it (but for the finer side of a power of
two); 0.01 flips one weight in a hundred under stochastic storage. Reported are the quantiles 1/50/99 of |ulps| and the
share below 1/2. The ulp of float32, in which masters are kept, is another thing and of no interest here.
"""

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, parse_format
from altgrad.measures.share import count
from altgrad.quantize.grid import Scale, grid_units, spacing_units

SHARES = (0.01, 0.5, 0.99)
"""The quantiles that are reported."""


def ulps(delta: Tensor, weights: Tensor, fmt: NumberFormat | str, *, scale: Scale = None) -> Tensor:
    """delta / spacing(w), signed, float32, of the weights' shape; both float32, bf16 or fp16.

    Divided in grid units, where a spacing never leaves float32.
    """
    fmt = parse_format(fmt) if isinstance(fmt, str) else fmt
    fmt.require_tensor_domain()
    return grid_units(delta, scale) / spacing_units(grid_units(weights, scale), fmt)


def ulp_counts(steps: Tensor) -> dict[str, Tensor]:
    """Counts of `ulps`, as int64 scalars: finite, zero, and below_half (|ulps| < 1/2, zeros included).

    The share of weights is below_half / finite; that of steps which were asked for, (below_half - zero) / (finite -
    zero).
    """
    size = steps.abs()
    return {
        "finite": count(size < torch.inf),
        "zero": count(size == 0),
        "below_half": count(size < 0.5),
    }
