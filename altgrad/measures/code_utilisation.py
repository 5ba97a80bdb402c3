"""How much of a format its values use: the histogram of codes, and what can be read off it.

    utilisation   entropy of the histogram over the finite codes / log2(number of finite codes), in [0, 1]
    unused_share  finite codes that no value has / finite codes
    top_share     values at +-max (of a table at its two ends) / values
    zero_share    values at +-0 / values

Where a format has +0 and -0 they are two codes: one of them is capacity that the format spends. Codes of infinities and
NaN are no finite codes and are left out on both sides.
"""

import math

import torch
from torch import Tensor

from altgrad.formats import NumberFormat


def code_histogram(codes: Tensor, fmt: NumberFormat) -> Tensor:
    """How often each code occurs: int64 [2^bits]; codes as `to_codes` gives them, any integer dtype and shape."""
    return torch.bincount(codes.flatten().to(torch.int64), minlength=1 << fmt.bits)


def code_utilisation(histogram: Tensor, fmt: NumberFormat) -> dict[str, Tensor]:
    """The four measures above as float64 scalars, from a `code_histogram`; histograms of pieces may be added up first.

    With no finite value, unused_share is 1 and the other three are NaN.
    """
    finite = torch.cat([histogram[run.start : run.stop] for run in fmt.finite_codes]).to(torch.float64)
    total = finite.sum()
    entropy = torch.special.entr(finite / total).sum() / math.log(fmt.code_count)
    highest, lowest = fmt.end_codes
    return {
        "utilisation": entropy,
        "unused_share": (finite == 0).to(torch.float64).mean(),
        "top_share": (histogram[highest] + histogram[lowest]) / total,
        "zero_share": sum((histogram[code] for code in fmt.zero_codes), torch.zeros_like(total)) / total,
    }
