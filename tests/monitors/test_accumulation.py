"""Claims about the accumulation monitor: it measures products that have an accumulator, and says when they are off."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.nn import PrecisionPolicy, quantize_model

CASTS = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}


def trained(rule: dict[str, Any], width: int = 256, steps: int = 2, **monitor: Any) -> dict[str, float]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 8))
    quantize_model(net, PrecisionPolicy.made_from({"rules": [{"match": "*", **CASTS, **rule}]}))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(96, width)

    def loss() -> Tensor:
        return net(x).square().mean()

    watch = altgrad.watch(net, optimizer, [{"kind": "accumulation", "every": 1, **monitor}], replay=loss)
    alarms = 0
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        alarms += len(watch.alarms)
    found = {key: value for key, value in watch.metrics.items() if key.startswith("accumulation/")}
    return found | {"alarms": alarms}


def test_it_measures_each_product_that_has_an_accumulator() -> None:
    adding = {product: {"accumulator": "hopper_fast"} for product in ("forward", "grad_input", "grad_weight")}
    found = trained(adding)
    errors = {key: value for key, value in found.items() if key.endswith("/relative_error")}
    assert set(errors) == {
        f"accumulation/{layer}/{product}/relative_error"
        for layer, products in (("0", ("forward", "grad_weight")), ("2", ("forward", "grad_input", "grad_weight")))
        for product in products
    }
    assert all(2.0**-17 < each < 2.0**-9 for each in errors.values())
    assert 0 < found["accumulation/0/forward/truncated_share"] < 0.05
    assert found["alarms"] == 0


def test_a_short_accumulator_alarms_and_none_says_nothing() -> None:
    short = trained({"forward": {"accumulator": {"bits": 4, "result_bits": 4}}}, steps=3)
    assert short["accumulation/0/forward/relative_error"] > 2.0**-6 and short["alarms"] >= 1
    assert trained({}) == {"alarms": 0}


@pytest.mark.parametrize("largest", [0, 1])
def test_a_bound_out_of_range_is_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="largest"):
        trained({}, largest=largest)
