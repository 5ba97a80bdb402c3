"""Claims about the gradient signal to noise ratio, against NumPy and simulation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.measures.gsnr import GradientMoments, add_gradient, gsnr, gsnr_summary, merge_moments, moments_start


def moments_of(gradients: Tensor) -> GradientMoments:
    moments = moments_start(gradients[0])
    for gradient in gradients:
        moments = add_gradient(moments, gradient)
    return moments


@pytest.mark.parametrize("number", [6, 7, 32])
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30, 1e-13])
def test_it_is_the_unbiased_formula_of_each_coordinate(number: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = factor * (torch.randn(number, 6, 5, generator=generator) + 3 * torch.randn(6, 5, generator=generator))
    x = gradients.double().numpy()
    mean, variance = x.mean(0), x.var(0, ddof=1)
    expected = (number - 3) / (number - 1) * mean**2 / variance - 1 / number
    moments = moments_of(gradients)
    np.testing.assert_allclose(gsnr(moments).numpy(), expected, rtol=1e-9, atol=1e-12)
    summary = gsnr_summary(moments)
    assert float(summary["median"]) == pytest.approx(np.median(expected), rel=1e-9)
    assert float(summary["mean"]) == pytest.approx(expected.mean(), rel=1e-9)
    freedom = mean.size * (number - 1)
    pooled = (freedom - 2) / freedom * (mean**2).sum() / variance.sum() - 1 / number
    assert float(summary["pooled"]) == pytest.approx(pooled, rel=1e-9)
    assert float(summary["constant_share"]) == 0


@pytest.mark.parametrize("true", [0.0, 0.3])
@pytest.mark.parametrize("number", [6, 8, 16])
def test_it_is_unbiased_for_normal_gradients(number: int, true: float) -> None:
    """The mean over 40,000 coordinates, the pooled ratio, and the mean over gradients of one coordinate each."""
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(number, 40000, generator=generator, dtype=torch.float64) + math.sqrt(true)
    moments = moments_of(gradients)
    ratios, summary = gsnr(moments), gsnr_summary(moments)
    error = float(ratios.std()) / math.sqrt(40000)
    assert abs(float(ratios.mean()) - true) <= 4 * error
    assert abs(float(summary["pooled"]) - true) <= 4 * error and error < 0.02
    alone = [float(gsnr_summary(GradientMoments(moments.number, *parts))["pooled"]) for parts in
             zip(moments.mean[:50, None], moments.deviation[:50, None], strict=True)]  # fmt: skip
    assert alone == pytest.approx(ratios[:50].tolist())


def test_fewer_than_six_micro_batches_have_none() -> None:
    for number in range(6):
        moments = moments_of(torch.randn(5, 7, generator=torch.Generator().manual_seed(2))[:number]) if number else None
        summary = gsnr_summary(moments or moments_start(torch.zeros(7)))
        assert all(math.isnan(value) for value in summary.values())


def test_coordinates_that_never_vary_are_counted_and_left_out() -> None:
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(6, 10, generator=generator)
    gradients[:, :3] = torch.tensor([0.0, 0.1, -1e-40])
    moments = moments_of(gradients)
    assert gsnr(moments).isnan().tolist() == [True] * 3 + [False] * 7
    summary = gsnr_summary(moments)
    assert float(summary["constant_share"]) == pytest.approx(0.3)
    assert float(summary["mean"]) == pytest.approx(float(gsnr(moments)[3:].mean()))
    still = gsnr_summary(moments_of(torch.full((6, 4), 0.1)))
    assert math.isnan(still["median"]) and math.isnan(still["pooled"]) and float(still["constant_share"]) == 1


def test_moments_of_two_ranks_merge_to_those_of_all() -> None:
    gradients = torch.randn(9, 8, generator=torch.Generator().manual_seed(4)) + 5
    merged = merge_moments(moments_of(gradients[:4]), moments_of(gradients[4:]))
    for a, b in zip(merged, moments_of(gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    nothing = moments_start(gradients[0])
    for a, b in zip(merge_moments(nothing, nothing), nothing, strict=True):
        assert torch.equal(a, b)


def test_adversarial_gradients_have_a_ratio_or_nan(adversarial: dict[str, Tensor]) -> None:
    for case, x in adversarial.items():
        ratios = gsnr(moments_of(torch.stack([x, -x, 0 * x, x, -x, x / 2])))
        assert not bool(ratios.isinf().any()), case
        assert bool((ratios.isnan() == ((x == 0) | ~x.isfinite())).all()), case


def test_gsnr_is_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    gradients = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))
    moments = moments_of(gradients[:4])
    assert_one_graph(lambda g, *m: gsnr_summary(add_gradient(GradientMoments(*m), g)), gradients[4], *moments)
