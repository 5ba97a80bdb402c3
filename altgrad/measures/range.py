"""Where the values of a tensor fall relative to the range of the format they enter.

With u the exact value in grid units, Q(u) its cast and n the numbers they are shares of:

    underflow    u != 0 finite, Q(u) = 0          of finite non-zero u
    subnormal    0 < |Q(u)| < smallest normal     of finite non-zero u
    saturation   |round(u)| > max, rounding as if the grid went on     of finite u
    non-finite   u is inf or NaN                  a count

Of a stored weight u is w~, what the step asks for, before storage bounds it: afterwards nothing is beyond max. Two more
numbers of it, over all n weights, say what a scale that is too small does in the long run, when requests are small and
w~ rounds to max and not beyond:

    pinned       the stored weight is +-max
    clipped      |u| > max, by however little

Saturation is judged on the *rounded* value: 450 rounds to 448 in e4m3fn and has not overflowed. (Transformer Engine
counts it, and divides both counts by all elements, zeros included; ours asks what became of the values there were.)
"""

import math

from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures.count import count


def range_counts(exact: Tensor, unbounded: Tensor, rounded: Tensor, fmt: FloatFormat) -> dict[str, Tensor]:
    """Counts, as int64 scalars: finite, nonzero (finite and not 0), underflow, subnormal, saturated, nonfinite.

    exact, unbounded (rounded before the overflow rule) and rounded are float32 of one shape, in grid units. For E = 0,
    which has no normals, subnormal is 0.
    """
    magnitude = exact.abs()
    finite = magnitude < math.inf
    nonzero = finite & (exact != 0)
    size = rounded.abs()
    lowest = 0.0 if fmt.min_normal is None else float(fmt.min_normal)
    counts = {
        "finite": finite,
        "nonzero": nonzero,
        "underflow": nonzero & (rounded == 0),
        "subnormal": nonzero & (size > 0) & (size < lowest),
        "saturated": finite & (unbounded.abs() > float(fmt.max)),
    }
    found = {name: count(mask) for name, mask in counts.items()}
    found["nonfinite"] = exact.numel() - found["finite"]
    return found


def pinned_counts(exact: Tensor, rounded: Tensor, fmt: FloatFormat) -> dict[str, Tensor]:
    """Counts of a stored weight, as int64 scalars: pinned, clipped, weights. exact: w~, in grid units as `rounded`."""
    top = float(fmt.max)
    found = {"pinned": count(rounded.abs() >= top), "clipped": count((exact.abs() > top) & (exact.abs() < math.inf))}
    return found | {"weights": found["pinned"].new_full((), exact.numel())}
