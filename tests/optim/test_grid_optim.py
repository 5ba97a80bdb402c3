"""GridOptim: rungs as asked, unbiased in value, and the index walk's bias at its closed form."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.optim import GridOptim, Update
from altgrad.optim.stiffness import floored
from altgrad.quantize import round_to, rung, spacing

EIGHT = ("e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f")


def test_landing_value_asks_for_clipped_rungs_in_value() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(200))
    optimizer = GridOptim([p], lr=3.0, momentum=0.5, rung_clip=2.0, storage={"kind": "stochastic", "format": "e4m3fn"})
    seen: list[Update] = []
    optimizer.observers.append(seen.append)
    optimizer.watching = True
    velocity = torch.zeros(200)
    for step in range(5):
        torch.manual_seed(step)
        g = torch.randn(200)
        before = p.detach().clone()
        (_, _, grid), *_ = optimizer.grids()
        p.grad = g.clone()
        optimizer.step()
        velocity = 0.5 * velocity + g
        rungs = (3.0 * velocity).clamp(-2, 2)
        expected = -rungs * spacing(floored(before, 2.0**-6), grid.format, scale=grid.scale)
        assert torch.allclose(seen[-1].requested, expected, rtol=1e-5, atol=0)
        assert torch.equal(p.grad, g)


def test_landing_index_moves_whole_rungs_and_never_more_than_the_clip() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(2000))
    optimizer = GridOptim(
        [p], lr=0.3, momentum=0.0, rung_clip=1.0, landing="index", storage={"kind": "index", "format": "e4m3fn"}
    )
    (_, _, grid), *_ = optimizer.grids()
    before = rung(p, grid.format, scale=grid.scale)
    p.grad = torch.full((2000,), 1.0)
    optimizer.step()
    moved = rung(p, grid.format, scale=grid.scale) - before
    assert set(moved.tolist()) <= {-1, 0}
    share = float((moved == -1).float().mean())
    assert abs(share - 0.3) <= 4 * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize("fmt", EIGHT)
def test_landing_value_does_not_drift(fmt: str) -> None:
    """Zero-mean rungs, so few that the weights stay in range: mean 1, mean square 1 plus the variances so far."""
    steps, count = (20 if fmt == "e7m0f" else 200), 20_000
    p = nn.Parameter(torch.ones(count))
    storage = {"kind": "stochastic", "format": fmt, "scaling": {"kind": "current", "margin": 4}}
    optimizer = GridOptim([p], lr=1.0, momentum=0.0, storage=storage, track=False)
    scale = float(optimizer.state[p]["storage_scale"])
    gap = float(spacing(torch.ones(()), fmt, scale=scale))
    share = min(0.2, 0.05 / (steps * gap**2))
    variance = torch.zeros(count, dtype=torch.float64)
    for step in range(steps):
        torch.manual_seed(step)
        p.grad = share * (torch.randint(0, 2, (count,)) * 2.0 - 1)
        wanted = p.detach() - p.grad * spacing(floored(p, 2.0**-6), fmt, scale=scale)
        low = round_to(wanted, fmt, "toward_negative", scale=scale).double()
        high = round_to(wanted, fmt, "toward_positive", scale=scale).double()
        variance += (wanted.double() - p.detach()).square() + (wanted.double() - low) * (high - wanted.double())
        optimizer.step()
    values = p.detach().double()
    assert abs(float(values.mean()) - 1) <= 4 * math.sqrt(float(values.var()) / count)
    spread = float(values.square().std()) / math.sqrt(count)
    assert abs(float(values.square().mean()) - 1 - float(variance.mean())) <= 4 * spread
    assert float((values.abs() < 2**-20).double().mean()) < 0.01
    assert values.unique().numel() > 1


@pytest.mark.parametrize("p_move", [0.05, 0.2, 0.4])
def test_landing_index_drifts_by_its_closed_form(p_move: float) -> None:
    """M = 0, +-1 rung with probability p each way: E grows by 2p + p/2 + 1 - 2p = 1 + p/2 a step (fact 6)."""
    steps, count = 20, 200_000
    p = nn.Parameter(torch.ones(count))
    storage = {"kind": "index", "format": "e7m0f", "scaling": {"kind": "current", "margin": 0}}
    optimizer = GridOptim([p], lr=1.0, momentum=0.0, landing="index", storage=storage, track=False)
    optimizer.state[p]["storage_scale"].fill_(1.0)
    for step in range(steps):
        torch.manual_seed(step)
        p.grad = 2 * p_move * (torch.randint(0, 2, (count,)) * 2.0 - 1)
        optimizer.step()
    values = p.detach().double()
    expected = (1 + p_move / 2) ** steps
    assert abs(float(values.mean()) - expected) <= 4 * math.sqrt(float(values.var()) / count)
    assert expected - 1 > 8 * math.sqrt(float(values.var()) / count), "the bias must be far outside the noise"


@pytest.mark.parametrize("landing", ["value", "index"])
def test_zero_gradient_and_decay_move_nothing(landing: Any) -> None:
    p = nn.Parameter(torch.randn(300))
    kind = "stochastic" if landing == "value" else "index"
    optimizer = GridOptim([p], landing=landing, storage={"kind": kind, "format": "e5m2"})
    kept = p.detach().clone()
    for _ in range(10):
        p.grad = torch.zeros(300)
        optimizer.step()
    assert torch.equal(p, kept)
    assert int(optimizer.state[p]["updates"]) == int(optimizer.state[p]["flips"]) == 0


def test_masters_move_in_value_and_their_projection_flips() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(500))
    optimizer = GridOptim([p], lr=0.1, momentum=0.9, storage={"kind": "master", "format": "e4m3fn"})
    for step in range(10):
        torch.manual_seed(step)
        p.grad = torch.randn(500)
        optimizer.step()
    (_, _, grid), *_ = optimizer.grids()
    state = optimizer.state[p]
    assert 0 < int(state["flips"]) < int(state["updates"]) == 5000
    assert not torch.equal(p, p.to(torch.float8_e4m3fn).float()) and grid.scale is not None


def test_a_parameter_without_a_format_walks_on_the_stand_in() -> None:
    p = nn.Parameter(torch.tensor([1.0, 0.0, -0.5]))
    optimizer = GridOptim([p], lr=1.0, momentum=0.0, rung_clip=1.0)
    p.grad = torch.tensor([10.0, 10.0, 0.25])
    optimizer.step()
    scale = 2.0**-8
    gaps = spacing(torch.tensor([1.0, 2.0**-6 * math.sqrt(1.25 / 3), 0.5]), "e4m3fn", scale=scale)
    assert torch.allclose(p.detach(), torch.tensor([1.0, 0.0, -0.5]) - gaps * torch.tensor([1.0, 1.0, 0.25]))


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"rung_clip": 0.0}, {"kappa": -1.0}, {"landing": "codes"}])
def test_values_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"GridOptim, group 0: {next(iter(bad))} is "):
        GridOptim([nn.Parameter(torch.ones(3))], **bad)


def test_index_landing_wants_index_storage() -> None:
    with pytest.raises(ValueError, match="needs storage index; the storage is stochastic"):
        GridOptim([nn.Parameter(torch.ones(3))], landing="index", storage={"kind": "stochastic", "format": "e5m2"})
