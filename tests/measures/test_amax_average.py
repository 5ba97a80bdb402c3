"""Claims about the moving average of amax, against pandas."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from altgrad.measures.range import add_amax, amax_average_start, average_amax


def averages(values: list[float], rho: float) -> list[float]:
    state = amax_average_start(torch.zeros(()))
    found = []
    for value in values:
        state = add_amax(state, torch.tensor(value, dtype=torch.float32), rho)
        found.append(float(average_amax(state)))
    return found


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("factor", [1e-40, 1.0, 3e38])
def test_it_is_the_bias_corrected_average_of_pandas(rho: float, factor: float) -> None:
    values = (np.abs(np.sin(np.arange(1, 60))) * factor).astype(np.float32)
    expected = pd.Series(values.astype(np.float64)).ewm(alpha=1 - rho, adjust=True).mean()
    assert averages(values.tolist(), rho) == pytest.approx(expected.tolist(), rel=1e-9)


def test_an_amax_of_zero_or_not_finite_leaves_it_as_it_was() -> None:
    values = [1.0, math.inf, 3.0, 0.0, math.nan, 2.0]
    gaps = pd.Series([1.0, None, 3.0, None, None, 2.0]).ewm(alpha=0.1, adjust=True, ignore_na=True).mean()
    assert averages(values, 0.9) == pytest.approx(gaps.tolist(), rel=1e-12)
    assert math.isnan(averages([0.0, math.nan], 0.9)[-1])


def test_it_works_elementwise_and_does_not_climb_from_zero() -> None:
    amax = torch.tensor([2.0, 0.0, 5.0])
    found = average_amax(add_amax(add_amax(amax_average_start(amax), amax), amax))
    assert found[[0, 2]].tolist() == pytest.approx([2, 5], rel=1e-12) and math.isnan(found[1])


def test_a_weight_of_the_past_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="rho=1.0; the weight of the past is in"):
        add_amax(amax_average_start(torch.zeros(())), torch.ones(()), 1.0)


def test_the_average_is_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    assert_one_graph(lambda x: average_amax(add_amax(amax_average_start(x), x)), torch.tensor([1.0, math.inf]))
