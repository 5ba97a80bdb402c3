"""How much of a format its values use: the histogram of codes, and what can be read off it.

    utilisation   entropy of the histogram over the finite codes / log2(number of finite codes), in [0, 1]
    unused_share  finite codes that no value has / finite codes
    top_share     values at +-max / values
    zero_share    values at +-0 / values

Where a format has +0 and -0 they are two codes: one of them is capacity that the format spends. Codes of infinities and
NaN are no finite codes and are left out on both sides.
"""

import math

import torch
from torch import Tensor

from altgrad.formats import FloatFormat


def code_histogram(codes: Tensor, fmt: FloatFormat) -> Tensor:
    """How often each code occurs: int64 [2^bits]; codes as `to_codes` gives them, any integer dtype and shape."""
    return torch.bincount(codes.flatten().to(torch.int64), minlength=1 << fmt.bits)


def code_utilisation(histogram: Tensor, fmt: FloatFormat) -> dict[str, Tensor]:
    """The four measures above as float64 scalars, from a `code_histogram`; histograms of pieces may be added up first.

    With no finite value, unused_share is 1 and the other three are NaN.
    """
    sign = 1 << (fmt.bits - 1)
    positive = histogram[: fmt.max_code + 1]
    negative = histogram[sign : sign + fmt.max_code + 1]
    finite = torch.cat((positive, negative if fmt.has_negative_zero else negative[1:])).to(torch.float64)
    total = finite.sum()
    entropy = torch.special.entr(finite / total).sum() / math.log(fmt.code_count)
    zero = positive[0] + (negative[0] if fmt.has_negative_zero else 0)
    return {
        "utilisation": entropy,
        "unused_share": (finite == 0).to(torch.float64).mean(),
        "top_share": (positive[-1] + negative[-1]) / total,
        "zero_share": zero / total,
    }
