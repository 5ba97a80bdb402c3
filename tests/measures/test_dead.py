"""Claims about dead, dormant and grad-dead units, against counts one by one."""

import math

import pytest
import torch
from torch import Tensor

from altgrad.measures.dead import TAU, activation_sums, alive_features, alive_rows, dead_share, dormant_share
from altgrad.quantize import round_to


def test_a_feature_is_dead_if_no_token_of_the_window_woke_it() -> None:
    batches = torch.zeros(3, 2, 5, 4)
    batches[2, 1, 4, 1] = 1e-45
    batches[0, 0, 0, 2] = math.nan
    alive = torch.stack([alive_features(batch) for batch in batches]).any(dim=0)
    assert alive.tolist() == [False, True, True, False]
    assert float(dead_share(alive, torch.tensor(30))) == 0.5


def test_a_feature_that_the_cast_kills_is_alive_before_and_dead_after() -> None:
    activation = torch.tensor([[1e-4, 0.5], [-1e-4, 0.0]])
    assert alive_features(activation).tolist() == [True, True]
    assert alive_features(round_to(activation, "e4m3fn")).tolist() == [False, True]


def test_a_row_is_dead_if_every_gradient_left_it_zero() -> None:
    gradient = torch.zeros(3, 4)
    gradient[1, 3] = -1e-40
    assert alive_rows(gradient).tolist() == [False, True, False]
    assert alive_rows(torch.tensor([0.0, 2.0])).tolist() == [False, True]
    assert float(dead_share(alive_rows(gradient), torch.tensor(1))) == pytest.approx(2 / 3)


@pytest.mark.parametrize("factor", [1e-13, 1.0, 1e30])
def test_a_feature_is_dormant_at_a_fortieth_of_the_layers_mean(factor: float) -> None:
    """With means 1, 1, 1 and x the layer's is (3 + x) / 4, so x is dormant up to 3 tau / (4 - tau)."""
    bound = 3 * TAU / (4 - TAU)
    for x, dormant in ((bound * 0.999, 0.25), (bound * 1.001, 0)):
        first = torch.tensor([[1.0, 2.0, -1.0, x], [-1.0, 0.0, 1.0, -x]]) * factor
        second = torch.tensor([[[1.0, -1.0, 1.0, x]]]) * factor
        sums = [activation_sums(batch) for batch in (first, second)]
        magnitude, tokens = (torch.stack([s[name] for s in sums]).sum(0) for name in ("magnitude", "tokens"))
        assert int(tokens) == 3
        assert float(dormant_share(magnitude, tokens)) == dormant


def test_edges_of_the_shares(adversarial: dict[str, Tensor]) -> None:
    for case, x in adversarial.items():
        tokens = torch.tensor(x.shape[0])
        dead, dormant = dead_share(alive_features(x), tokens), dormant_share(**activation_sums(x))
        values = x.T.tolist()
        if case == "empty":
            assert math.isnan(dead) and math.isnan(dormant)
            continue
        assert float(dead) == sum(all(v == 0 for v in column) for column in values) / len(values), case
        assert math.isnan(dormant) == (case in ("inf", "NaN", "mixed")), case
        assert case != "zeros" or float(dormant) == 1
    assert math.isnan(dead_share(alive_rows(torch.empty(0, 3)), torch.tensor(1)))
    assert alive_rows(torch.empty(3, 0)).tolist() == [False] * 3
    assert math.isnan(dormant_share(**activation_sums(torch.empty(4, 0))))


def test_dead_units_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)

    def every(x: Tensor) -> object:
        sums = activation_sums(x)
        return dead_share(alive_features(x), sums["tokens"]), alive_rows(x), dormant_share(**sums)

    assert_one_graph(every, torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).relu())
