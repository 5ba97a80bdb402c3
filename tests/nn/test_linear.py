"""Claims about QuantizedLinear: its three products multiply exactly the rounded operands, forward and backward."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.formats import FloatFormat
from altgrad.nn import PrecisionPolicy, commit, dequantize_model, quantize_model
from altgrad.quantize import Quantizer, QuantizerSpec, round_to
from altgrad.quantize.scaling import finite_amax, scale_of


def scaled(x: Tensor, name: str) -> Tensor:
    """The cast under current power-of-two scaling, written out."""
    fmt = FloatFormat.parse(name)
    return round_to(x, fmt, scale=scale_of(finite_amax(x), fmt))


def quantised(linear: nn.Linear, **rule: Any) -> nn.Linear:
    return quantize_model(nn.Sequential(linear), PrecisionPolicy.uniform(**rule))[0]  # type: ignore[index]


def run(linear: nn.Linear, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    linear.zero_grad()
    y = linear(x)
    y.backward(grad)
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.fixture
def tensors() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(24, 40), torch.randn(6, 24), torch.randn(6, 40) * 1e-3


@pytest.mark.parametrize("formats", [("e4m3fn", "e4m3fn", "e5m2"), ("e3m4", "e0m7", "e7m0"), ("e2m1", "e5m2", "e8m7")])
def test_products_are_of_the_rounded_operands(
    tensors: tuple[nn.Linear, Tensor, Tensor], formats: tuple[str, ...]
) -> None:
    linear, x, grad = tensors
    weight, input, grad_output = formats
    quantised(linear, weight=weight, input=input, grad_output=grad_output)
    y, dx = run(linear, x, grad)
    qx, qw, qg = scaled(x, input), scaled(linear.weight.detach(), weight), scaled(grad, grad_output)
    assert torch.equal(y, F.linear(qx, qw, linear.bias.detach()))
    assert torch.equal(dx, qg @ qw)
    assert linear.weight.grad is not None and torch.equal(linear.weight.grad, qg.T @ qx)
    assert linear.bias.grad is not None and torch.equal(linear.bias.grad, grad.sum(0))


def test_a_batch_of_sequences_is_rows(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    quantised(linear, weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    flat = run(linear, x, grad)
    flat_weight = linear.weight.grad
    deep = run(linear, x.view(2, 3, 24), grad.view(2, 3, 40))
    assert flat_weight is not None and linear.weight.grad is not None
    assert torch.equal(deep[0].view(6, 40), flat[0])
    assert torch.equal(deep[1].view(6, 24), flat[1])
    assert torch.equal(linear.weight.grad, flat_weight)


def test_each_slot_can_differ(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    quantised(
        linear,
        weight="e4m3fn",
        input="e4m3fn",
        grad_output="e5m2",
        grad_input={"weight": "e5m2"},
        grad_weight={"grad_output": "none", "input": "none"},
    )
    y, dx = run(linear, x, grad)
    w = linear.weight.detach()
    assert torch.equal(y, F.linear(scaled(x, "e4m3fn"), scaled(w, "e4m3fn"), linear.bias.detach()))
    assert torch.equal(dx, scaled(grad, "e5m2") @ scaled(w, "e5m2"))
    assert linear.weight.grad is not None and torch.equal(linear.weight.grad, grad.T @ x)
    assert set(linear.casts) == {"input", "weight_forward", "weight_grad_input", "grad_output"}


def test_without_casts_it_is_the_plain_layer(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    plain = run(linear, x, grad)
    plain_grad = linear.weight.grad
    # One slot cast to a 16-bit format that holds these values exactly.
    linear.weight.data = round_to(linear.weight.data, "e8m7")
    before = run(linear, x, grad)
    assert linear.weight.grad is not None
    weight_grad = linear.weight.grad.clone()
    quantised(linear, weight={"format": "e8m7", "scaling": "unscaled"})
    after = run(linear, x, grad)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert torch.equal(weight_grad, linear.weight.grad)
    assert plain_grad is not None and not torch.equal(plain[0], after[0])


def test_clipped_gradients_are_zero_outside_the_range(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    x[0, 0] = 1e4
    unscaled = {"format": "e4m3fn", "scaling": "unscaled", "gradient": "clipped"}
    quantised(linear, input=unscaled)
    _, dx = run(linear, x, grad)
    expected = grad @ linear.weight.detach()
    expected[0, 0] = 0
    assert torch.equal(dx, expected)


def test_a_clipped_gradient_behind_grad_output_is_refused() -> None:
    with pytest.raises(ValueError, match="has no meaning"):
        PrecisionPolicy.uniform(grad_output={"format": "e5m2", "gradient": "clipped"})


@pytest.mark.parametrize("scaling", ["current", "delayed"])
def test_evaluation_leaves_no_trace(tensors: tuple[nn.Linear, Tensor, Tensor], scaling: str) -> None:
    linear, x, grad = tensors
    cast = {"format": "e4m3fn", "scaling": scaling, "rounding": "stochastic"}
    model = nn.Sequential(quantised(linear, weight=cast, input=cast, grad_output=cast))
    run(linear, x, grad)
    commit(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model(x * 100)
    model.eval()
    model(x * 100).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bfloat16_compute_multiplies_the_same_grid_values(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    quantised(linear, weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x)
    assert y.dtype == torch.bfloat16
    w = linear.weight.detach()
    exact = F.linear(scaled(x, "e4m3fn").bfloat16(), scaled(w, "e4m3fn").bfloat16(), linear.bias.detach().bfloat16())
    assert torch.equal(y, exact)
    y.backward(grad.bfloat16())
    assert linear.weight.grad is not None and linear.weight.grad.dtype == torch.float32
    qg = scaled(grad.bfloat16().float(), "e5m2").bfloat16()
    assert torch.equal(linear.weight.grad, (qg.T @ scaled(x, "e4m3fn").bfloat16()).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", ["e4m11", {"format": "e4m3fn", "scaling": {"kind": "current", "scale": "real"}}])
def test_what_a_short_float_does_not_hold_is_multiplied_in_float32_and_rounded_once(
    tensors: tuple[nn.Linear, Tensor, Tensor], cast: Any, dtype: torch.dtype
) -> None:
    """One operand that does not fit is enough; the other one enters as the short float has it."""
    linear, x, grad = tensors
    quantised(linear, weight=cast, grad_output="e5m2")
    with torch.autocast("cpu", dtype):
        y = linear(x)
    w, b = Quantizer(cast)(linear.weight.detach()), linear.bias.detach().to(dtype).float()
    assert y.dtype == dtype and torch.equal(y, F.linear(x.to(dtype).float(), w, b).to(dtype))
    x = x.requires_grad_()
    with torch.autocast("cpu", dtype):
        linear(x).backward(grad.to(dtype))
    qg = scaled(grad.to(dtype).float(), "e5m2")
    assert x.grad is not None and torch.equal(x.grad, (qg @ w).to(dtype).float())
    assert linear.weight.grad is not None  # both operands of this product fit
    assert torch.equal(linear.weight.grad, (qg.to(dtype).T @ x.detach().to(dtype)).float())


def test_frozen_and_first_layers_get_the_gradients_asked_for(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    linear, x, grad = tensors
    quantised(linear, weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    linear.weight.requires_grad_(False)
    linear(x).backward(grad)
    assert linear.weight.grad is None and linear.bias.grad is not None


def test_dequantised_model_is_the_same_model_bit_for_bit(tensors: tuple[nn.Linear, Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8, bias=False))
    _, x, _ = tensors
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    parameters, modules, names = list(model.parameters()), list(model), list(model.state_dict())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    quantize_model(model, PrecisionPolicy.uniform(weight="e2m1", input="e2m1", grad_output="e5m2"))
    assert not torch.equal(model(x), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    dequantize_model(model)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(a is b for a, b in zip(model, modules, strict=True)) and type(model[0]) is nn.Linear
    assert len(calls) == 3


def test_random_bits_are_keyed_by_seed_and_site() -> None:
    spec = QuantizerSpec.model_validate({"format": "e4m3fn", "rounding": "stochastic"})
    x = torch.randn(64)
    made = [Quantizer(spec, site, seed=seed)(x) for site, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2]) and not torch.equal(made[0], made[3])


def test_per_product_casts_each_operand_along_its_own_reduced_axis() -> None:
    torch.manual_seed(0)
    linear, x, grad = nn.Linear(64, 96), torch.randn(70, 64), torch.randn(70, 96) * 1e-3
    mx = {"format": "e4m3fn", "scaling": "mx"}
    quantised(linear, weight=mx, input=mx, grad_output=mx, operands="per_product")
    assert len(linear.casts) == 6
    y, dx = run(linear, x, grad)

    def along_last(t: Tensor) -> Tensor:
        return Quantizer(QuantizerSpec.model_validate(mx))(t)

    w = linear.weight.detach()
    assert torch.equal(y, F.linear(along_last(x), along_last(w), linear.bias.detach()))
    assert torch.equal(dx, along_last(grad) @ along_last(w.T).T)
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, along_last(grad.T) @ along_last(x.T).T, rtol=1e-6, atol=1e-9)
    assert not torch.equal(along_last(x), along_last(x.T).T)


def test_shared_operands_are_cast_once_and_per_product_rounds_on_its_own() -> None:
    linear = nn.Linear(8, 8)
    rule = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": {"format": "e5m2", "rounding": "stochastic"}}
    quantised(linear, **rule)
    assert set(linear.casts) == {"input", "weight", "grad_output"}
    dequantize_model(nn.Sequential(linear))
    quantised(linear, **rule, operands="per_product", grad_weight={"input": "none"})
    assert set(linear.casts) == {
        "input_forward", "weight_forward", "grad_output_grad_input", "weight_grad_input", "grad_output_grad_weight",
    }  # fmt: skip
