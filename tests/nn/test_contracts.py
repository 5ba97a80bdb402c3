"""Claims about torch's contracts: a quantised layer, and a cast alone, behave in autograd as torch's own layers do.

Each claim is made for every kind of scaling in every operand, since each kind has code of its own to go wrong.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from altgrad.nn import PrecisionPolicy, QuantizedLinear, quantize_model
from altgrad.quantize import Quantizer, ScalingSpec

SCALINGS = sorted(ScalingSpec.kinds())


def cast(scaling: str, **more: Any) -> dict[str, Any]:
    return {"format": "e2m1" if scaling == "nvfp4" else "e4m3fn", "scaling": scaling, **more}


def network(scaling: str = "current", *, inplace: bool = False, bias: bool = True, **more: Any) -> nn.Sequential:
    torch.manual_seed(0)
    spec = cast(scaling, **more)
    net = nn.Sequential(nn.Linear(8, 16, bias), nn.ReLU(inplace=inplace), nn.Linear(16, 8, bias))
    quantize_model(net, PrecisionPolicy.uniform(weight=spec, input=spec, grad_output=spec))
    return net


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), (2, 1, 3, 8), (8,)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_output_may_be_changed_in_place(scaling: str, shape: tuple[int, ...]) -> None:
    """ReLU(inplace=True) and y += x give the gradients that the same without in-place operations gives."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain, inplace = network(scaling), network(scaling, inplace=True)
    assert not plain[0](x)._is_view() and not inplace[0](x)._is_view()
    (plain(x) + x).sum().backward()
    y = inplace(x)
    y += x
    y.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain), gradients(inplace), strict=True))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (0, 3, 8)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_no_rows_are_rows(scaling: str, shape: tuple[int, ...]) -> None:
    """An expert without tokens: the output is empty and the gradients of the parameters are zero."""
    net = network(scaling)
    x = torch.zeros(shape, requires_grad=True)
    y = net(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    found = gradients(net)
    assert len(found) == 4 and not any(bool(g.any()) for g in found)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_any_strides_give_the_same_bits(scaling: str) -> None:
    net, other = network(scaling), network(scaling)
    x = torch.randn(6, 4, 8).transpose(0, 1)
    net(x).sum().backward()  # an expanded gradient
    other(x.contiguous()).backward(torch.ones(4, 6, 8))
    assert all(torch.equal(a, b) for a, b in zip(gradients(net), gradients(other), strict=True))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_second_derivatives_of_a_layer_are_refused_never_dropped(scaling: str) -> None:
    net = network(scaling)
    x = torch.randn(4, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


def test_a_cast_alone_is_differentiable_any_number_of_times() -> None:
    """The straight-through rule is the identity: y = Q(x)^3 has d2y/dx2 = 6 Q(x)."""
    quantizer = Quantizer("e4m3fn")
    x = torch.randn(32, requires_grad=True)
    (first,) = torch.autograd.grad(quantizer(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, 6 * quantizer(x).detach())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("what", ["layer", "cast"])
def test_transforms_of_functions_are_refused_by_us(what: str) -> None:
    net: nn.Module = network() if what == "layer" else nn.Sequential(Quantizer("e4m3fn"))
    p, x = dict(net.named_parameters()), torch.randn(3, 8)
    with pytest.raises(RuntimeError, match="AltGrad"):
        vmap(net)(x)
    with pytest.raises(RuntimeError, match="AltGrad"):
        jvp(net, (x,), (x,))
    with pytest.raises(RuntimeError, match="AltGrad"):
        grad(lambda x: functional_call(net, p, (x,)).sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="AltGrad"):
        net(torch.autograd.forward_ad.make_dual(x, x))
    assert net(x).shape == (3, 8)


@pytest.mark.parametrize("dtypes", [(a, b) for a in ("float32", "bfloat16") for b in ("float32", "bfloat16")])
def test_dtypes_are_mixed_only_where_linear_mixes_them(dtypes: tuple[str, str]) -> None:
    """Oracle: nn.Linear itself, with autocast and without, with a bias and without."""
    given, kept = (getattr(torch, name) for name in dtypes)
    for bias in (True, False):
        for auto in (True, False):
            net, plain = network(bias=bias)[0].to(kept), nn.Linear(8, 16, bias).to(kept)
            outcomes = []
            for layer in (net, plain):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=auto):
                    try:
                        outcomes.append(layer(torch.randn(2, 8, dtype=given)).dtype)
                    except RuntimeError:
                        outcomes.append(RuntimeError)
            assert outcomes[0] == outcomes[1], (dtypes, bias, auto)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64, torch.bool])
def test_a_dtype_that_no_cast_takes_is_refused_with_advice_that_fits(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="casts take float32, bfloat16 and float16"):
        network()(torch.ones(2, 8).to(dtype))
    with pytest.raises(TypeError, match="casts take float32, bfloat16 and float16"):
        Quantizer("e4m3fn")(torch.ones(2, 8).to(dtype))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_refused_in_one_line(layout: torch.layout) -> None:
    rows = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)], layout=layout)
    with pytest.raises(ValueError, match="a nested tensor cannot be cast") as caught:
        network()(rows)
    assert "\n" not in str(caught.value)


def test_layers_without_a_name_never_share_random_bits() -> None:
    """Nor do copies of one, as nn.TransformerEncoder makes them; layers of a model are named by it."""
    net = network(rounding="stochastic")
    policy = PrecisionPolicy.uniform(weight=cast("current", rounding="stochastic"))
    layers = [QuantizedLinear(64, 64, precision=policy.rules[0].layer()) for _ in range(2)]
    layers.append(copy.deepcopy(layers[0]))
    weight = torch.randn(64, 64)
    found = [layer.slot_casts["forward", "weight"].values(weight, True, torch.float32) for layer in layers]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert len({layer.slot_casts["forward", "weight"].site for layer in layers}) == 3
    again = copy.deepcopy(net)
    assert torch.equal(again[0](torch.ones(2, 8)), net[0](torch.ones(2, 8)))
    a, b = Quantizer(cast("current", rounding="stochastic")), Quantizer(cast("current", rounding="stochastic"))
    assert not torch.equal(a(weight), b(weight))
