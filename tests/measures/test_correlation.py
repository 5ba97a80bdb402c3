"""Claims about the correlation of steps and stiffness, against scipy."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures import share
from altgrad.measures.correlation import below_half_by_binade, log_correlation
from altgrad.measures.stiffness import stiffness_exponents
from altgrad.quantize import spacing

FORMATS = [FloatFormat.parse(name) for name in ("e2m5", "e4m3fn", "e5m2", "e7m0")]


def drawn(coupling: float, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights over a few binades, and steps that follow them more or less; some steps are 0 or not finite."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(900, generator=generator) * torch.exp(torch.randn(900, generator=generator))
    a = w.abs() ** coupling * torch.exp(0.5 * torch.randn(900, generator=generator)) * w.sign()
    a[::7] = 0
    a[5:8] = torch.tensor([math.inf, -math.inf, math.nan])
    return a * factor, w


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("coupling", [-1.0, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("factor", [1.0, 1e-13, 1e13])
def test_both_are_scipys_over_what_is_finite_and_not_zero(fmt: FloatFormat, coupling: float, factor: float) -> None:
    a, w = drawn(coupling, factor)
    gaps = spacing(w * factor, fmt, scale=factor)
    found = log_correlation(a.reshape(30, 30), gaps.reshape(30, 30))
    used = (a != 0) & a.isfinite()
    x, y = a[used].double().abs().log2().numpy(), gaps[used].double().log2().numpy()
    assert float(found["n"]) == len(x)
    assert float(found["pearson"]) == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-9, abs=1e-12)
    assert float(found["spearman"]) == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-9, abs=1e-12)


def test_ties_share_their_mean_rank_whatever_their_order() -> None:
    a, s = torch.tensor([1.0, 1, 2, 2, 2, 4, 8]), torch.tensor([1.0, 2, 1, 2, 2, 1, 2])
    expected = stats.spearmanr(a.numpy(), s.numpy()).statistic
    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        assert float(log_correlation(a[order], s[order])["spearman"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "s"),
    [
        ([1.0, 2, 3], [0.1] * 3),
        ([0.3] * 4, [1.0, 2, 3, 4]),
        ([1.0, 2], [1.0, 2]),
        ([1.0, 2, 0, math.inf, math.nan], [1.0, 2, 3, 4, 5]),
        ([0.0] * 5, [1.0, 2, 3, 4, 5]),
        ([], []),
        ([1.0], [1.0]),
    ],
)
def test_a_constant_side_or_fewer_than_three_have_none(a: list[float], s: list[float]) -> None:
    found = log_correlation(torch.tensor(a), torch.tensor(s))
    assert math.isnan(found["pearson"]) and math.isnan(found["spearman"])


def test_a_constant_stiffness_that_no_float_holds_exactly_is_still_constant() -> None:
    torch.manual_seed(0)
    found = log_correlation(torch.randn(10001), torch.full((10001,), 0.1))
    assert math.isnan(found["pearson"]) and math.isnan(found["spearman"])


def test_adversarial_tensors_give_a_correlation_or_nan(adversarial: dict[str, Tensor]) -> None:
    for case, a in adversarial.items():
        found = log_correlation(a, spacing(a.flip(0), "e4m3fn"))
        for name in ("pearson", "spearman"):
            value = float(found[name])
            assert math.isnan(value) or -1 <= value <= 1, case


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_steps_below_half_a_spacing_are_counted_in_their_binade(fmt: FloatFormat) -> None:
    a, w = drawn(0.5, 0.05)
    found = below_half_by_binade(a, w, fmt, scale=0.5)
    gaps = spacing(w, fmt, scale=0.5)
    for place, exponent in enumerate(stiffness_exponents(fmt)):
        here = (gaps == 2.0**exponent * 0.5) & (a != 0) & a.isfinite()
        assert int(found["attempted"][place]) == int(here.sum())
        assert int(found["below_half"][place]) == int((here & (a.abs() < gaps / 2)).sum())
    shares = share(found["below_half"], found["attempted"])
    assert torch.equal(shares.isnan(), found["attempted"] == 0)


def test_correlations_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    a, w = drawn(0.5)

    def every(a: Tensor, w: Tensor) -> object:
        return log_correlation(a, spacing(w, FORMATS[1])), below_half_by_binade(a, w, FORMATS[1])

    assert_one_graph(every, a, w)
