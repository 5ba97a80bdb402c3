"""Where a format's range ends, in the units of a scaled tensor: the threshold of partition-relative clipping.

    range mode    t = s x_max
    norm mode     t = s x_max min(1, R_F / R_e5m2),        R_F = log2(x_max / x_min>0)

with s the scale and x_min>0 the smallest positive value. R_F counts binades, sub-normals included; e5m2 has 31.8 of
them, e4m3fn 17.8, e0m7 7.0, and e7m0 126, for which both modes agree. A bias multiplies x_max and x_min alike and
divides s, so neither mode depends on it; and a gradient times 2^k has a threshold times 2^k.
"""

import math
from typing import Literal

from torch import Tensor

from altgrad.formats import FloatFormat

ClipMode = Literal["range", "norm"]
_REFERENCE = FloatFormat.parse("e5m2")


def binades(fmt: FloatFormat) -> float:
    """R_F = log2(largest / smallest positive value)."""
    return math.log2(float(fmt.max)) - math.log2(float(fmt.min_subnormal))


def clip_threshold(fmt: FloatFormat, scale: Tensor, mode: ClipMode = "range") -> Tensor:
    """The magnitude at which a tensor of this scale is clipped; of the scale's shape and dtype."""
    factor = 1.0 if mode == "range" else min(1.0, binades(fmt) / binades(_REFERENCE))
    return scale * float(fmt.max) * factor
