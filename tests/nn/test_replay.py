"""Claims about running a model again: nothing counts, and with casts off it is the plain model bit for bit."""

import copy

import torch
from torch import nn

from altgrad.nn import (
    PrecisionPolicy,
    QuantizedLinear,
    casts_off,
    compared,
    dequantize_model,
    observed,
    quantize_model,
    quantizers,
    unrecorded,
)  # fmt: skip

CASTS = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}


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


def test_compared_shows_each_product_of_a_layer_used_twice_beside_the_uncast_one() -> None:
    torch.manual_seed(0)
    layer = QuantizedLinear(8, 8, precision=PrecisionPolicy.uniform(**CASTS).rules[0].layer(), site="twice").train()
    x, before = torch.randn(5, 8, requires_grad=True), {k: v.clone() for k, v in layer.state_dict().items()}
    shown: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    with unrecorded(layer), compared(layer, lambda _, product, made, exact: shown.append((product, made, exact))):
        first = layer(x)
        second = layer(first)
        loss = second.square().sum() + layer.weight.sum()  # another use of the weight, which is no product
        first.retain_grad(), second.retain_grad()
        loss.backward()
    assert [product for product, _, _ in shown] == ["forward"] * 2 + ["grad_input", "grad_weight"] * 2
    w, b, g1, g2 = layer.weight.detach(), layer.bias.detach(), first.grad, second.grad
    given = {"forward": [x @ w.T + b, first @ w.T + b], "grad_input": [g2 @ w, g1 @ w]}
    given["grad_weight"] = [g2.T @ first, g1.T @ x]
    for product, made, exact in shown:
        assert torch.allclose(exact, given[product].pop(0), atol=1e-5), product
        assert 0 < (made - exact).norm() / exact.norm() < 0.2
    made = {product: [m for p, m, _ in shown if p == product] for product in given}
    assert torch.equal(made["forward"][1], second)
    assert torch.allclose(sum(made["grad_weight"]) + 1, layer.weight.grad)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert "forward" not in vars(layer)
