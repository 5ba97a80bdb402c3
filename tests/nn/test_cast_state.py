"""Claims about the state of casts: it lives as that of a module does, made anew, loaded, averaged and copied."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.quantize import Quantizer, Rounding, ScalingSpec

SPECS = [
    {"scaling": scaling, "rounding": rounding, "format": "e2m1" if scaling == "nvfp4" else "e4m3fn"}
    for scaling in sorted(ScalingSpec.kinds())
    for rounding in (Rounding.nearest_even.value, Rounding.stochastic.value)
] + [{"scaling": "current", "rounding": "toward_average", "format": "e4m3fn"}]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec['scaling']}-{spec['rounding']}")


def network(spec: dict[str, Any]) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    other = {**spec, "rounding": "nearest_even"} if spec["rounding"] == "toward_average" else spec
    quantize_model(net, PrecisionPolicy.uniform(weight=spec, input=other, grad_output=other))
    return net


def used(spec: dict[str, Any], steps: int = 2) -> nn.Sequential:
    net = network(spec)
    for _ in range(steps):
        net(torch.randn(4, 8)).sum().backward()
        commit(net)
    return net


def casts_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in net.named_buffers() if ".casts." in name}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_spec
def test_reset_parameters_begins_again(spec: dict[str, Any]) -> None:
    fresh, net = network(spec), used(spec)
    net[0].reset_parameters()
    assert same(casts_of(net), casts_of(fresh)) and not torch.equal(net[0].weight, fresh[0].weight)


@every_spec
def test_memory_allotted_for_a_model_on_meta_begins_again(spec: dict[str, Any]) -> None:
    with torch.device("meta"):
        net = network(spec)
    net.to_empty(device="cpu")
    assert same(casts_of(net), casts_of(network(spec)))
    net[0].reset_parameters()
    assert bool(net[0](torch.randn(2, 8)).isfinite().all())


@every_spec
def test_weights_trained_without_casts_load_strictly(spec: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    plain, net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), used(spec)
    stateful = bool(casts_of(net))
    with caplog.at_level(logging.WARNING, logger="altgrad"):
        net.load_state_dict(plain.state_dict())
    assert same(casts_of(net), casts_of(network(spec))) and torch.equal(net[0].weight, plain[0].weight)
    assert len(caplog.records) == stateful  # once, however many casts there are


@every_spec
def test_its_own_state_loads_strictly_and_in_silence(spec: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    net, other = used(spec), network(spec)
    other.load_state_dict(net.state_dict())
    assert same(casts_of(net), casts_of(other)) and not caplog.records
    partial = {k: v for k, v in net.state_dict().items() if not k.endswith("casts.weight.scaling.ready")}
    if len(partial) < len(net.state_dict()):  # delayed: half a state is damage, not the absence of one
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict(partial)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "ema"])
@every_spec
def test_an_averaged_model_with_its_buffers_casts_on_the_grid(spec: dict[str, Any], average: Any) -> None:
    net = network(spec)
    averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
    for _ in range(4):
        (net(torch.randn(16, 8)) * torch.randn(16, 4)).sum().backward()
        commit(net)
        averaged.update_parameters(net)
    averaged.eval()
    quantizer = averaged.module[0].slot_casts["forward", "weight"]
    weight = averaged.module[0].weight.detach()
    assert isinstance(quantizer, Quantizer) and bool(averaged(torch.randn(2, 8)).isfinite().all())
    scale = quantizer.cast(weight, False).scale
    if scale is not None and quantizer.spec.scaling.power_of_two:
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    error = (quantizer(weight) - weight).abs().max() / weight.abs().max()
    gap = 2 / 6 if spec["format"] == "e2m1" else 32 / 256  # the widest, of the largest value that a scale may leave
    assert error <= gap * 1.01, "the averaged scale fits the averaged weight"


def test_a_scale_averaged_off_the_powers_of_two_becomes_one() -> None:
    quantizer = Quantizer({"format": "e4m3fn", "scaling": "delayed"})
    quantizer(torch.ones(4))
    quantizer.commit()
    quantizer.scaling.committed.mul_(1.5)
    scale = quantizer.cast(torch.ones(4), False).scale
    assert scale is not None and float(scale) == 2 * 2.0**-8


@every_spec
def test_a_copy_has_the_state_and_the_casts_of_its_own(spec: dict[str, Any]) -> None:
    net = used(spec)
    again = copy.deepcopy(net)
    assert same(casts_of(net), casts_of(again))
    before = casts_of(net)
    again(torch.randn(4, 8)).sum().backward()
    commit(again)
    assert same(casts_of(net), before)
    assert all(again[0].slot_casts[slot] is not net[0].slot_casts[slot] for slot in net[0].slot_casts)
