"""Claims about steps in ulp, against NumPy's spacing and exact grids."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures.ulp import ulp_counts, ulps

E4M3 = FloatFormat.parse("e4m3fn")


def test_in_fp16_they_are_numpys() -> None:
    torch.manual_seed(0)
    w = (torch.randn(3000) * torch.exp2(torch.randint(-26, 12, (3000,)).float())).half()
    delta = torch.randn(3000)
    expected = delta.double().numpy() / np.spacing(np.abs(w.numpy())).astype(np.float64)
    np.testing.assert_allclose(ulps(delta, w, "fp16").numpy(), expected.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("name", ["e0m7", "e1m6", "e3m4", "e4m3fn", "e5m2", "e7m0"])
@pytest.mark.parametrize("factor", [1.0, 2.0**-43, 2.0**20])
def test_the_step_to_the_value_above_is_one_ulp_under_any_scale(name: str, factor: float) -> None:
    fmt = FloatFormat.parse(name)
    values = torch.tensor(fmt.magnitudes) * factor
    assert ulps(values.diff(), values[:-1], fmt, scale=factor).tolist() == [1] * fmt.max_code


def test_the_ulp_of_float32_masters_is_the_formats() -> None:
    assert ulps(torch.tensor([-0.125, 0.25]), torch.tensor([1.7, -3.99]), E4M3).tolist() == [-1, 1]


def test_counts_are_of_finite_steps(adversarial: dict[str, Tensor]) -> None:
    for case, steps in adversarial.items():
        values = [abs(v) for v in steps.flatten().tolist()]
        assert {key: int(value) for key, value in ulp_counts(steps).items()} == {
            "finite": sum(math.isfinite(v) for v in values),
            "zero": sum(v == 0 for v in values),
            "below_half": sum(v < 0.5 for v in values),
        }, case
        assert ulps(steps, torch.ones_like(steps), E4M3).shape == steps.shape
        assert not bool((ulps(torch.ones_like(steps), steps, E4M3) <= 0).any()), (
            case
        )  # a spacing is positive and finite


def test_ulps_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)

    def every(d: Tensor, w: Tensor) -> object:
        steps = ulps(d, w, E4M3, scale=torch.tensor(0.5))
        return steps, ulp_counts(steps)

    assert_one_graph(every, torch.randn(20, 10), torch.randn(20, 10))
