"""Claims about norms, against exact sums of squares."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from altgrad.measures.sqnr import l2_norm, linf_norm


def test_norms_are_those_of_exact_sums(adversarial: dict[str, Tensor]) -> None:
    for case, x in adversarial.items():
        values = x.flatten().tolist()
        if any(math.isnan(v) for v in values):
            assert math.isnan(l2_norm(x)) and math.isnan(linf_norm(x)), case
        elif any(math.isinf(v) for v in values):
            assert float(l2_norm(x)) == float(linf_norm(x)) == math.inf, case
        else:
            assert float(linf_norm(x)) == max(map(abs, values), default=0), case
            square = sum(Fraction(v) ** 2 for v in values)
            assert float(l2_norm(x)) ** 2 == pytest.approx(float(square), rel=1e-12), case


@pytest.mark.parametrize("factor", [1e-44, 1e-30, 1e30, 3e38])
def test_squares_of_float32_neither_overflow_nor_vanish(factor: float) -> None:
    x = torch.tensor([1.0, -1.0, 1.0, 1.0]) * factor
    assert float(l2_norm(x)) == pytest.approx(2 * float(x[0]), rel=1e-12)


@pytest.mark.parametrize("factor", [1e-300, 1e-200, 1e200, 1e300])
def test_nor_do_those_of_float64(factor: float) -> None:
    x = torch.tensor([3.0, -4.0], dtype=torch.float64) * factor
    assert float(l2_norm(x)) == pytest.approx(5 * factor, rel=1e-12)
    assert float(l2_norm(x * 0)) == 0


def test_a_norm_of_norms_is_the_norm_of_all() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts = torch.stack([l2_norm(part) for part in x.split(7)])
    assert float(l2_norm(parts)) == pytest.approx(float(l2_norm(x)), rel=1e-12)


def test_norms_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    assert_one_graph(lambda x: (l2_norm(x), linf_norm(x), l2_norm(x.double())), torch.linspace(-1, 2, 30))
