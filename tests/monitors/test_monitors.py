"""Claims about every discovered monitor: it watches without touching, survives YAML, and reports what is there."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.monitors import MonitorSpec, Watch
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW, OptimizerSpec, parameter_groups
from altgrad.quantize import spacing

KINDS = list(MonitorSpec.kinds())
STOCHASTIC = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}


def model(quantised: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    policy = PrecisionPolicy.uniform(weight=STOCHASTIC, input="e4m3fn", grad_output="e5m2")
    return quantize_model(net, policy) if quantised else net


def train(net: nn.Module, kinds: list[str], steps: int = 20, spoil: int | None = None) -> list[dict[str, Any]]:
    optimizer = OptimizerSpec.of("adamw").build(parameter_groups(net, OptimizerSpec.of("adamw")))
    specs = [MonitorSpec.of({"kind": kind, "every": 3}) for kind in kinds]
    watch = Watch(specs, net, optimizer)
    seen: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        x = torch.randn(8, 16)
        watch.begin(step)
        loss = net(x).square().mean()
        loss.backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        if step == spoil:
            grads["2.weight"][0, 0] = math.nan
        _, _, reports = watch.gradients(loss, torch.nn.utils.get_total_norm(grads.values()), grads)
        optimizer.step()
        optimizer.zero_grad()
        commit(net)
        seen.append(reports | watch.casts())
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantised", [True, False])
def test_watching_changes_no_bit(kind: str, quantised: bool) -> None:
    watched, alone = model(quantised), model(quantised)
    train(watched, [kind])
    train(alone, [])
    for (name, a), b in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_is_due_first_and_at_its_cadence(kind: str) -> None:
    steps = [step for step, reports in enumerate(train(model(), [kind]), 1) if kind in reports]
    assert steps == [1, 3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_survives_yaml_and_restart(kind: str) -> None:
    spec = MonitorSpec.of(kind)
    assert MonitorSpec.of(spec.tree()) == spec
    assert type(spec).__doc__ and type(spec.build()).__doc__
    built = spec.build()
    state = built.state()
    built.restore(state)
    assert built.state() == state


@pytest.mark.parametrize("kind", KINDS)
def test_reports_are_finite_or_nan(kind: str) -> None:
    for reports in train(model(), [kind]):
        for report in reports.values():
            assert all(math.isfinite(value) or math.isnan(value) for value in report.metrics.values())


def test_range_sees_every_role_of_every_cast() -> None:
    first = train(model(), ["range"], steps=1)[0]["range"].metrics
    sites = {key.rpartition("/")[0] for key in first}
    casts = {f"{layer}/{operand}" for layer in "02" for operand in ("weight", "input", "grad_output")}
    assert sites == casts | {f"{layer}.weight/{role}" for layer in "02" for role in ("requested", "stored")}


def test_range_measures_what_was_cast() -> None:
    """The numbers of the first step, computed again from the tensors themselves."""
    net = nn.Sequential(nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(4, 16) * torch.exp2(torch.randint(-15, 5, (4, 16)).float()))
    weight = net[0].weight.detach().clone()
    quantize_model(net, PrecisionPolicy.uniform(weight={"format": "e4m3fn", "scaling": "unscaled"}))
    metrics = train(net, ["range"], steps=1)[0]["range"].metrics
    half = spacing(torch.zeros(()), "e4m3fn") / 2
    assert metrics["0/weight/underflow_rate"] == float((weight.abs() <= half).float().mean(dtype=torch.float64))
    assert metrics["0/weight/saturation_rate"] == float((weight.abs() > 464).float().mean(dtype=torch.float64))
    assert metrics["0/weight/amax"] == float(weight.abs().max())
    assert metrics["0.weight/requested/amax"] == pytest.approx(1e-3, rel=1e-3)


def test_counts_add_up_over_micro_batches() -> None:
    net = model()
    optimizer = AdamW(net.named_parameters())
    watch = Watch([MonitorSpec.of("range")], net, optimizer)
    watch.begin(1)
    for _ in range(3):
        net(torch.randn(8, 16)).square().mean().backward()
    table = watch.tables["range"][watch.rows["0/input"]]
    assert int(table[0]) == 3 * 8 * 16


def test_finite_names_what_went_bad_and_stops_after_patience() -> None:
    report = train(model(), ["finite"], steps=3, spoil=3)[2]["finite"]
    assert report.skip and report.stop == "the gradient of 2.weight is not finite."
    spec = MonitorSpec.of({"kind": "finite", "patience": 2})
    monitor = spec.build()
    bad = [math.nan, 1.0]
    first, second = monitor.report(["w"], bad), monitor.report(["w"], bad)  # type: ignore[attr-defined]
    assert first.skip and first.stop is None and second.stop == "the loss is not finite, 2 steps in a row."
    monitor.report(["w"], [1.0, 1.0])  # type: ignore[attr-defined]
    assert monitor.state() == {"bad_steps": 0}
