"""Claims about the stiffness field, against spacings counted one by one."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures.quantiles import LogBins, log_histogram
from altgrad.measures.stiffness import stiffness_bin, stiffness_exponents, stiffness_histogram, stiffness_quantiles
from altgrad.quantize import spacing

FORMATS = [FloatFormat.parse(f"e{e}m{7 - e}f") for e in range(8)]
FORMATS += [FloatFormat.parse(name) for name in ("e4m3fn", "e5m2", "e2m1", "bf16")]
SHARES = (0.0, 0.01, 0.5, 0.99, 1.0)


def spacing_exponent(value: float, fmt: FloatFormat) -> int:
    """log2 of the spacing, by frexp on the host."""
    binade = math.frexp(value)[1] - 1 if value else fmt.e_min
    return min(max(binade, fmt.e_min), max(fmt.e_min, fmt.max_binade)) - fmt.mantissa_bits


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**-6])
def test_the_histogram_counts_spacings(adversarial: dict[str, Tensor], fmt: FloatFormat, scale: float) -> None:
    exponents = stiffness_exponents(fmt)
    assert exponents[0] == fmt.e_min - fmt.mantissa_bits
    every = {**adversarial, "all values": torch.tensor(fmt.magnitudes, dtype=torch.float32) * scale}
    for case, w in every.items():
        found = stiffness_histogram(w, fmt, scale=scale)
        counts = Counter(spacing_exponent(v / scale, fmt) for v in w.flatten().tolist() if math.isfinite(v))
        assert found.tolist() == [counts[e] for e in exponents], case
        index = stiffness_bin(w, fmt, scale=scale)
        assert torch.equal(torch.exp2(index + float(exponents[0])) * scale, spacing(w, fmt, scale=scale)), case
    assert every["all values"].numel() == int(found.sum())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_quantiles_are_those_of_the_spacings(fmt: FloatFormat) -> None:
    torch.manual_seed(0)
    w = torch.randn(999) * torch.exp(torch.randn(999))
    gaps = spacing(w, fmt).double().numpy()
    found = stiffness_quantiles(stiffness_histogram(w, fmt), fmt, SHARES)
    assert found.tolist() == np.quantile(gaps, SHARES, method="inverted_cdf").tolist()
    assert bool(stiffness_quantiles(stiffness_histogram(torch.empty(0), fmt), fmt, SHARES).isnan().all())


def test_under_a_scale_for_each_channel_the_field_is_a_histogram_of_spacings() -> None:
    scale = torch.tensor([[1.0], [2.0**-20]])
    w = torch.tensor([[1.5, 3.0], [1.5 * 2.0**-20, 3.0 * 2.0**-20]])
    histogram = log_histogram(spacing(w, "e4m3fn", scale=scale), LogBins(split=0))
    assert histogram.nonzero().flatten().tolist() == [e + 41 for e in (-23, -22, -3, -2)]


def test_the_field_is_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)

    def every(w: Tensor, s: Tensor) -> object:
        histogram = stiffness_histogram(w, FORMATS[4], scale=s)
        return histogram, stiffness_quantiles(histogram, FORMATS[4], SHARES)

    assert_one_graph(every, torch.randn(20, 10), torch.tensor(0.5))
