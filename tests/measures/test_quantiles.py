"""Claims about quantiles, exact and from histograms, and about the sample, against NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.measures.quantiles import (
    LogBins,
    ascending,
    histogram_quantiles,
    log_histogram,
    quantiles,
    spread_sample,
)

SHARES = (0.0, 0.01, 0.37, 0.5, 0.99, 1.0)


def test_quantiles_are_numpys_over_the_finite_entries(adversarial: dict[str, Tensor]) -> None:
    for case, x in adversarial.items():
        finite = x[x.isfinite()].double().numpy()
        found = quantiles(x, SHARES)
        if finite.size == 0:
            assert bool(found.isnan().all()), case
        else:
            np.testing.assert_allclose(found.numpy(), np.quantile(finite, SHARES), rtol=1e-12, err_msg=case)


def test_bins_are_those_of_a_search_among_their_edges() -> None:
    bins = LogBins(-5, 4, 3)
    edges = np.array(bins.edges)
    assert len(edges) == bins.size == 9 * 8 + 2
    near = np.concatenate([np.nextafter(edges.astype(np.float32), np.float32(to)) for to in (0, np.inf)])
    x = np.concatenate([edges.astype(np.float32), near, [1e-45, 1e-3, 3e38, np.inf, np.nan]]).astype(np.float32)
    x = np.concatenate([x, -x])
    size = np.abs(x)[np.isfinite(x)]
    expected = np.bincount(np.searchsorted(edges, size, side="right") - 1, minlength=bins.size)
    assert log_histogram(torch.from_numpy(x), bins).tolist() == expected.tolist()


@pytest.mark.parametrize("split", [0, 2, 4, 6])
def test_a_histogram_quantile_is_within_its_bin_and_pieces_add_up(split: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(40000) * torch.exp(2 * torch.randn(40000))
    bins = LogBins(-30, 30, split)
    histogram = sum((log_histogram(piece, bins) for piece in x.split(777)), torch.zeros(bins.size, dtype=torch.int64))
    assert torch.equal(histogram, log_histogram(x, bins))
    exact = np.quantile(x.abs().double().numpy(), SHARES)
    found = histogram_quantiles(histogram, bins, SHARES).numpy()
    np.testing.assert_allclose(found, exact, rtol=2.0**-split)


def test_edges_of_histogram_quantiles(adversarial: dict[str, Tensor]) -> None:
    bins = LogBins()
    for case, x in adversarial.items():
        found = histogram_quantiles(log_histogram(x, bins), bins, SHARES)
        finite = x[x.isfinite()].abs()
        assert bool(found.isnan().all()) == (finite.numel() == 0), case
        if finite.numel():
            bounded = np.quantile(finite.clamp(max=2.0**40).double().numpy(), SHARES, method="lower")
            bounded[bounded < 2.0**-40] = 0
            assert bool((found.numpy() >= bounded * (1 - 2.0**-4)).all()), case


@pytest.mark.parametrize("shape", [(1000,), (64, 64), (101, 97), (4096, 3)])
def test_a_sample_takes_distinct_elements_spread_over_rows_and_columns(shape: tuple[int, ...]) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape)
    size = x.numel() // 4
    sample = spread_sample(x, size)
    assert len(sample.unique()) == len(sample) == size
    assert torch.equal(sample, spread_sample(x, size))
    for part in (sample / x.numel(), sample % shape[-1] / shape[-1]):
        counts = torch.histc(part.float(), bins=3, min=0, max=1)
        assert float(counts.amax() - counts.amin()) <= 0.05 * size + 3
    assert torch.equal(spread_sample(x, x.numel()), x.flatten())


def test_quantiles_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)

    def every(x: Tensor) -> object:
        histogram = log_histogram(x, LogBins())
        return quantiles(x, SHARES), histogram, histogram_quantiles(histogram, LogBins(), SHARES), spread_sample(x, 50)

    torch.manual_seed(0)
    assert_one_graph(every, torch.randn(30, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ascending_is_torchs_sort(dtype: torch.dtype) -> None:
    ends = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, math.nan], dtype=dtype)
    drawn = torch.randn(3, 4093, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in (ends, torch.cat([drawn, ends.expand(3, -1)], 1), drawn[:, ::3], drawn[:0], ends[:0]):
        torch.testing.assert_close(ascending(x), x.sort().values, rtol=0, atol=0, equal_nan=True)
