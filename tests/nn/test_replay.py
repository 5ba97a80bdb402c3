"""Claims about running a model again: nothing counts, and with casts off it is the plain model bit for bit."""

import copy

import torch
from torch import nn

from altgrad.nn import (
    PrecisionPolicy,
    QuantizedLinear,
    casts_off,
    dequantize_model,
    observed,
    quantize_model,
    quantizers,
    unrecorded,
)  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    spec = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
    return quantize_model(net, PrecisionPolicy.uniform(weight=spec, input=spec, grad_output=spec))


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(net(x).square().mean(), list(net.parameters())))


def test_an_unrecorded_pass_changes_no_buffer_and_shows_nothing() -> None:
    net, x = network(), torch.randn(32, 8)
    for quantizer in quantizers(net):
        quantizer.watching = True
        quantizer.observers.append(lambda cast: (_ for _ in ()).throw(AssertionError(cast.site)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with unrecorded(net):
        gradients(net, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(quantizer.recording and quantizer.live for quantizer in quantizers(net))


def test_with_casts_off_it_is_the_plain_model_bit_for_bit_and_then_quantised_again() -> None:
    net, x = network(), torch.randn(32, 8)
    plain = dequantize_model(copy.deepcopy(net))
    with casts_off(net):
        found = gradients(net, x)
        assert type(net[0]) is nn.Linear
    assert type(net[0]) is QuantizedLinear
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(plain, x), strict=True))
    assert not torch.equal(gradients(net, x)[0], found[0])


def test_both_come_back_after_an_error() -> None:
    net = network()
    try:
        with unrecorded(net), casts_off(net):
            raise KeyError
    except KeyError:
        pass
    assert type(net[0]) is QuantizedLinear and net[0].recording and "recording" not in net[0].__dict__


def test_an_observed_pass_shows_every_cast_to_the_observer_alone_and_changes_no_buffer() -> None:
    net, x = network(), torch.randn(32, 8)
    for quantizer in quantizers(net):
        quantizer.observers.append(lambda cast: (_ for _ in ()).throw(AssertionError(cast.site)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen: list[str] = []
    with observed(net, lambda cast: seen.append(cast.site)):
        gradients(net, x)
    assert sorted(seen) == sorted(quantizer.site for quantizer in quantizers(net))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(quantizer.watching for quantizer in quantizers(net))
