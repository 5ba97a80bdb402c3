"""ManifoldAdamW: AdamW where there is no geometry, and steps in ulps where there is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, quantize_model, weight_quantizers
from altgrad.optim import AdamW, ManifoldAdamW, Update
from altgrad.optim.stiffness import factor, spacing_field
from altgrad.quantize import Grid, rung, spacing


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(9, 13), nn.LayerNorm(13), nn.Linear(13, 5))


def trajectory(optimizer_class: Any, steps: int = 30, **settings: Any) -> list[Tensor]:
    model = net()
    optimizer = optimizer_class(model.named_parameters(), lr=3e-3, weight_decay=0.1, **settings)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(6, 9)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "e4m3fn", "precondition": "off"},
        {"format": "e4m3fn", "power": 0.0},
        {"format": "e4m3fn", "stiffness": "constant"},
        {"format": "e0m7"},
        {"format": "e1m6"},
        {"format": "e0m7", "precondition": "both"},
        {"format": "e1m6", "precondition": "gradient_normalised", "power": 0.5},
        {"format": "e1m6", "normalise": "median"},
        {"format": "e0m7", "stiffness": "shuffled"},
        {},
    ],
)
def test_without_geometry_it_is_adamw_bit_for_bit(settings: dict[str, Any]) -> None:
    plain, manifold = trajectory(AdamW), trajectory(ManifoldAdamW, **settings)
    assert all(torch.equal(a, b) for a, b in zip(plain, manifold, strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "e4m3fn"},
        {"format": "e5m2", "power": 0.5},
        {"format": "e4m3fn", "precondition": "gradient"},
        {"format": "e4m3fn", "stiffness": "e5m2"},
        {"format": "e0m7", "stiffness": "e5m2"},
        {"format": "e4m3fn", "stiffness": "smooth"},
        {"format": "e4m3fn", "stiffness": "shuffled"},
        {"format": "e4m3fn", "stiffness": "reshuffled"},
    ],
)
def test_with_geometry_it_is_not(settings: dict[str, Any]) -> None:
    plain, manifold = trajectory(AdamW), trajectory(ManifoldAdamW, **settings)
    assert not torch.equal(plain[0], manifold[0])
    assert all(bool(p.isfinite().all()) for p in manifold)


def asked(optimizer_class: Any, w: Tensor, **settings: Any) -> Tensor:
    """What the optimizer asks of weights w after some steps of unit-variance gradients."""
    p = nn.Parameter(w.clone())
    seen: list[Update] = []
    optimizer = optimizer_class([p], lr=0.0, weight_decay=0.0, **settings)
    for step in range(20):
        torch.manual_seed(step)
        p.grad = torch.randn_like(w)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.observers.append(seen.append)
    optimizer.watching = True
    optimizer.step()
    return seen[0].requested


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e6m1f", "e7m0f"])
def test_whole_ulps_over_ten_binades(name: str) -> None:
    """Weights log-uniform over ten binades, update, p = 1: steps in ulps scatter less than AdamW's by several times."""
    torch.manual_seed(7)
    w = 2.0 ** (-10 * torch.rand(20_000)) * torch.randn(20_000).sign()
    storage = {"kind": "nearest", "format": name, "scaling": "current"}
    on_grid = nn.Parameter(w.clone())
    (_, _, grid), *_ = ManifoldAdamW([on_grid], storage=storage).grids()
    ulp = spacing(on_grid, grid.format, scale=grid.scale)
    manifold = asked(ManifoldAdamW, w, storage=storage, kappa=0.0)
    plain = asked(AdamW, w, storage=storage)
    variation = [float((d.abs() / ulp).std() / (d.abs() / ulp).mean()) for d in (manifold, plain)]
    assert variation[0] < 1 and variation[1] > 2 * variation[0], variation
    logs = ulp.log2()
    correlation = [float(torch.corrcoef(torch.stack([d.abs().log2(), logs]))[0, 1]) for d in (manifold, plain)]
    assert correlation[0] >= 0.7 and abs(correlation[1]) < 0.1, correlation
    assert logs.unique().numel() >= 8


def test_the_modes_are_what_they_say() -> None:
    """Each against the formula, written out, over steps on one tensor."""
    torch.manual_seed(2)
    start = torch.randn(40) * 2.0 ** -(8 * torch.rand(40))
    gradients = [torch.randn(40) for _ in range(5)]
    for mode in ("update", "gradient", "gradient_normalised", "both"):
        p = nn.Parameter(start.clone())
        optimizer = ManifoldAdamW([p], lr=1e-2, weight_decay=0.1, precondition=mode, format="e5m2", power=0.5)  # type: ignore[arg-type]
        w, m, v = start.double(), torch.zeros(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
        for step, g in enumerate(gradients, 1):
            p.grad = g.clone()
            (_, _, grid), *_ = optimizer.grids()
            f = factor(spacing_field(p.detach(), grid), 0.5).double()
            floor = 2.0**-6 * p.detach().double().square().mean().sqrt()
            big = torch.maximum(p.detach().abs(), floor.float())
            s = spacing(big, grid.format, scale=grid.scale).double().sqrt()
            used = g.double() * {"update": 1.0, "gradient": s, "gradient_normalised": f, "both": f}[mode]
            m, v = 0.9 * m + 0.1 * used, 0.999 * v + 0.001 * used**2
            direction = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            w = w * (1 - 1e-3) - 1e-2 * direction * (f if mode in ("update", "both") else 1.0)
            optimizer.step()
            assert torch.equal(p.grad, g)
            assert torch.allclose(p.detach().double(), w, rtol=1e-5, atol=1e-7), (mode, step)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_without_a_mean_a_step_is_adams_times_the_spacing_in_the_weights_units(power: float) -> None:
    """Two tensors, the second the first times 2^5: its steps are 2^(5 p) times as long; with `rms` they are as long."""
    torch.manual_seed(4)
    w, g = torch.randn(60), torch.randn(60)
    asked = {}
    for normalise in ("none", "rms"):
        pair = [nn.Parameter(w.clone()), nn.Parameter(w * 32)]
        optimizer = ManifoldAdamW(pair, lr=1e-2, weight_decay=0.0, normalise=normalise, format="e4m3f", power=power)  # type: ignore[arg-type]
        grid = next(iter(optimizer.grids()))[2]
        for p in pair:
            p.grad = g.clone()
        optimizer.step()
        asked[normalise] = [p.detach() - start for p, start in zip(pair, (w, w * 32), strict=True)]
    s = spacing(torch.maximum(w.abs(), 2.0**-6 * w.square().mean().sqrt()), grid.format, scale=grid.scale)
    assert torch.allclose(asked["none"][0], -1e-2 * g.sign() * s.pow(power), rtol=1e-4, atol=1e-6)
    assert torch.allclose(asked["none"][1], asked["none"][0] * 32**power, rtol=1e-3, atol=1e-5)
    assert torch.allclose(asked["rms"][1], asked["rms"][0], atol=1e-5)


def test_gradient_side_stiffness_nearly_cancels_and_update_side_does_not() -> None:
    """Fact 2: Adam divides a per-coordinate rescaling out, but for eps."""
    torch.manual_seed(0)
    w = 2.0 ** (-8 * torch.rand(5000)) * torch.randn(5000).sign()
    plain = asked(AdamW, w)
    raw = asked(ManifoldAdamW, w, format="e5m2", precondition="gradient", eps=1e-20)
    real = asked(ManifoldAdamW, w, format="e5m2")
    assert torch.allclose(raw, plain, rtol=1e-4, atol=0)
    assert not torch.allclose(real, plain, rtol=0.5)


def test_the_grid_under_masters_is_that_of_the_forward_cast() -> None:
    model = net()
    quantize_model(model, PrecisionPolicy.uniform(match="0", weight={"format": "e3m4", "scaling": "current"}))
    optimizer = ManifoldAdamW(model.named_parameters())
    parameters = dict(model.named_parameters())
    optimizer.casts = {parameters[name]: q for name, q in weight_quantizers(model).items()}
    found = {name: grid for name, _, grid in optimizer.grids()}
    assert list(found) == ["0.weight"]
    assert str(found["0.weight"].format) == "e3m4"
    quantizer = weight_quantizers(model)["0.weight"]
    cast = quantizer.cast(parameters["0.weight"], live=False)
    assert cast.scale is not None and torch.equal(found["0.weight"].scale, cast.scale)


def test_tracking_counts_rungs_flips_and_updates() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(500))
    optimizer = ManifoldAdamW([p], lr=3e-2, storage={"kind": "stochastic", "format": "e3m4"}, track=True)
    (_, _, grid), *_ = optimizer.grids()
    travel, flips = torch.zeros(500, dtype=torch.int64), 0
    for step in range(10):
        torch.manual_seed(step)
        p.grad = torch.randn(500) * (torch.rand(500) > 0.3)
        before = rung(p, grid.format, scale=grid.scale)
        optimizer.step()
        after = rung(p, grid.format, scale=grid.scale)
        travel += (after - before).abs()
        flips += int((after != before).sum())
    state = optimizer.state[p]
    assert torch.equal(state["rung"], rung(p, grid.format, scale=grid.scale))
    assert torch.equal(state["travel"].long(), travel)
    assert int(state["flips"]) == flips > 0
    assert int(state["updates"]) > flips


@pytest.mark.parametrize(
    "bad",
    [
        {"power": 1.5},
        {"kappa": -1.0},
        {"betas": (1.0, 0.9)},
        {"precondition": "on"},
        {"normalise": "max"},
        {"lr": -1.0},
    ],
)
def test_values_out_of_range_name_group_and_setting(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"ManifoldAdamW, group 0 \(0\.weight, \.\.\.\): {next(iter(bad))} is "):
        ManifoldAdamW(net().named_parameters(), **bad)


def test_an_unknown_stiffness_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"group 0: stiffness is one of own, .* 'e9m9'|19 bits"):
        ManifoldAdamW([nn.Parameter(torch.ones(2))], stiffness="e9m9")


def test_gradients_of_zero_move_nothing_and_grids_are_kept() -> None:
    w = torch.randn(100)
    p = nn.Parameter(w)
    optimizer = ManifoldAdamW([p], weight_decay=0.0, storage={"kind": "stochastic", "format": "e4m3fn"})
    kept = p.detach().clone()
    for _ in range(5):
        p.grad = torch.zeros(100)
        optimizer.step()
    assert torch.equal(p, kept)
    assert isinstance(next(optimizer.grids())[2], Grid)
