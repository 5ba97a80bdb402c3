"""Claims about transformers' Conv1D, which keeps its weight as [in, out]: quantised, it is the Linear of the transpose.

transformers is optional, so a class of its name and definition stands in for it; where it is installed, a small GPT-2
is trained for three steps.
"""

import copy
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, QuantizedLayer, commit, dequantize_model, quantize_model
from altgrad.quantize import Quantizer, ScalingSpec


class Conv1D(nn.Module):
    """y = x W + b, W [nx, nf]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")


Pair = tuple[nn.Sequential, nn.Sequential]


@pytest.fixture
def pair() -> Pair:
    """A Conv1D and the Linear of its transpose, wide in magnitude along both axes, with parameters of their own."""
    torch.manual_seed(0)
    conv, linear = Conv1D(40, 24), nn.Linear(24, 40)
    with torch.no_grad():
        conv.weight.mul_(torch.exp2(torch.randint(-8, 8, (24, 1)) + torch.randint(-8, 8, (1, 40)).float()))
        conv.bias.normal_()
        linear.weight.copy_(conv.weight.T)
        linear.bias.copy_(conv.bias)
    return nn.Sequential(conv), nn.Sequential(linear)


SCALINGS: list[Any] = [
    *ScalingSpec.kinds(),
    *({"kind": kind, "granularity": "channel"} for kind in ("current", "delayed", "mse")),
    {"kind": "block", "size": 5},
    {"kind": "block", "size": 8, "shape": "square"},
    {"kind": "current", "granularity": "channel", "scale": "real"},
]


@pytest.mark.parametrize("operands", ["shared", "per_product"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_quantised_conv1d_is_the_quantised_linear_of_the_transpose(pair: Pair, scaling: Any, operands: str) -> None:
    """The casts bit for bit; the products up to the order in which a matrix product sums."""
    by_channel = isinstance(scaling, dict) and scaling.get("granularity") == "channel"
    tokens = "current" if by_channel and scaling["kind"] == "delayed" else scaling
    cast = {"format": "e2m1", "scaling": scaling}
    other = {"format": "e2m1", "scaling": tokens}
    for model in pair:
        quantize_model(model, PrecisionPolicy.uniform(weight=cast, input=other, grad_output=other, operands=operands))
    conv, linear = (model[0] for model in pair)
    assert conv.casts.keys() == linear.casts.keys() and conv.slot_casts.keys() == linear.slot_casts.keys()
    for _ in range(2):
        x, grad = torch.randn(2, 3, 24), torch.randn(2, 3, 40) * 1e-3
        for slot, own in conv.slot_casts.items():
            if slot[1] == "weight":
                others: Quantizer = linear.slot_casts[slot]
                assert own.reduced != others.reduced
                values = own.values(conv.weight.detach(), False, torch.float32)
                assert torch.equal(values.T, others.values(linear.weight.detach(), False, torch.float32))
        found = []
        for model in pair:
            own_x = x.clone().requires_grad_()
            model.zero_grad()
            y = model(own_x)
            y.backward(grad)
            weight = model[0].weight.grad
            found.append((y.detach(), own_x.grad, weight.T if model is pair[0] else weight, model[0].bias.grad))
            commit(model)
        for one, two in zip(*found, strict=True):
            assert one.shape == two.shape
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7 * float(two.abs().max()))


def whole_numbers(*shape: int) -> Tensor:
    """Values that e3m4 holds under a scale of a power of two, and whose products add up without rounding."""
    return torch.randint(-31, 32, shape).float()


@pytest.mark.parametrize("operands", ["shared", "per_product"])
@pytest.mark.parametrize("name", ["e2m1", "e3m4"])
@pytest.mark.parametrize("scaling", ["current", {"kind": "current", "granularity": "channel"}, "mx", "block"], ids=str)
def test_where_sums_are_exact_every_product_is_the_linears_bit_for_bit(scaling: Any, name: str, operands: str) -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(Conv1D(40, 24)), nn.Sequential(nn.Linear(24, 40))
    with torch.no_grad():
        pair[0][0].weight.copy_(whole_numbers(24, 40))
        pair[1][0].weight.copy_(pair[0][0].weight.T)
        for model in pair:
            model[0].bias.fill_(3.0)
    cast = {"format": name, "scaling": scaling}
    x, grad = whole_numbers(6, 24), whole_numbers(6, 40)
    found = []
    for model in pair:
        quantize_model(model, PrecisionPolicy.uniform(weight=cast, input=cast, grad_output=cast, operands=operands))
        own_x = x.clone().requires_grad_()
        y = model(own_x)
        y.backward(grad)
        weight = model[0].weight.grad
        found.append((y.detach(), own_x.grad, weight.T if model is pair[0] else weight, model[0].bias.grad))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(found[0][3], grad.sum(0))


def test_backward_multiplies_the_rounded_operands(pair: Pair) -> None:
    conv = quantize_model(pair[0], PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2"))[0]  # type: ignore[index]
    x, grad = torch.randn(6, 24, requires_grad=True), torch.randn(6, 40)
    conv(x).backward(grad)
    qx, qw, qg = Quantizer("e4m3fn")(x.detach()), Quantizer("e4m3fn")(conv.weight.detach()), Quantizer("e5m2")(grad)
    assert x.grad is not None and torch.equal(x.grad, qg @ qw.T)
    assert torch.equal(conv.weight.grad, (qg.T @ qx).T) and conv.weight.grad.shape == (24, 40)
    assert torch.equal(conv.bias.grad, grad.sum(0))


def test_a_clipped_gradient_is_masked_as_the_weight_is_kept(pair: Pair) -> None:
    with torch.no_grad():
        pair[0][0].weight[3, 7] = 1e4
    clipped = {"format": "e4m3fn", "scaling": "unscaled", "gradient": "clipped"}
    conv = quantize_model(pair[0], PrecisionPolicy.uniform(weight=clipped))[0]  # type: ignore[index]
    conv(torch.randn(6, 24)).sum().backward()
    assert conv.weight.grad[3, 7] == 0 and int((conv.weight.grad == 0).sum()) == 1


def test_surgery_keeps_the_object_and_undoes_itself(pair: Pair) -> None:
    model, x = pair[0], torch.randn(6, 24)
    conv, parameters, names = model[0], list(model.parameters()), list(model.state_dict())
    calls: list[int] = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    before = model(x)
    quantize_model(model, PrecisionPolicy.uniform(weight="e2m1", input="e2m1"))
    assert model[0] is conv and isinstance(conv, Conv1D) and isinstance(conv, QuantizedLayer)
    assert not torch.equal(model(x), before)
    with pytest.raises(ValueError, match="0 is quantised already"):
        quantize_model(model, PrecisionPolicy.uniform(weight="e2m1"))
    dequantize_model(model)
    assert type(conv) is Conv1D and list(model.state_dict()) == names and torch.equal(model(x), before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True)) and len(calls) == 3


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_quantised_conv1d_can_be_copied(
    pair: Pair, again: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("transformers.pytorch_utils")
    module.Conv1D = Conv1D  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", module)
    model, x = quantize_model(pair[0], PrecisionPolicy.uniform(weight="e2m1")), torch.randn(6, 24)
    made = again(model)
    assert type(made[0]) is type(model[0]) and torch.equal(made(x), model(x))  # type: ignore[index]
    assert type(dequantize_model(made)[0]) is Conv1D  # type: ignore[index]


def test_what_is_derived_from_conv1d_and_what_only_has_its_name_is_not_touched() -> None:
    class Own(Conv1D):
        pass

    with pytest.raises(ValueError, match="0 is a Own; only a plain"):
        quantize_model(nn.Sequential(Own(4, 4)), PrecisionPolicy.uniform(weight="e2m1"))
    other = type("Conv1D", (nn.Module,), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="the model has no Linear"):
        quantize_model(nn.Sequential(other()), PrecisionPolicy.uniform(weight="e2m1"))


class Experts(nn.Module):
    def __init__(self, leaf: str) -> None:
        super().__init__()
        self.register_parameter(leaf, nn.Parameter(torch.ones(3, 4, 4)))


@pytest.mark.parametrize("leaf", ["weight", "gate_up_proj"])
@pytest.mark.parametrize("pattern", ["*", "mlp.first.experts", "mlp.0.experts.{leaf}"])
def test_experts_in_one_tensor_are_refused_and_can_be_left_out(leaf: str, pattern: str) -> None:
    mlp = nn.ModuleList([nn.ModuleDict({"experts": Experts(leaf), "up": nn.Linear(4, 4)})])
    model, match = nn.ModuleDict({"mlp": mlp}), pattern.format(leaf=leaf)
    with pytest.raises(ValueError) as caught:
        quantize_model(model, PrecisionPolicy.uniform(match=match, weight="e4m3fn"))
    assert str(caught.value).startswith(f"mlp.0.experts.{leaf} is 3-D [3, 4, 4], as the weights of experts are;")
    assert "\n" not in str(caught.value) and not any(isinstance(m, QuantizedLayer) for m in model.modules())
    rules = [{"match": f"mlp.0.experts.{leaf}"}, {"match": "*", "weight": "e4m3fn"}]
    quantize_model(model, {"rules": rules})
    assert isinstance(mlp[0]["up"], QuantizedLayer)  # type: ignore[index]


def test_convolutions_and_tables_that_broadcast_are_no_experts() -> None:
    net = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 4))
    net.register_parameter("positions", nn.Parameter(torch.ones(1, 5, 4)))
    quantize_model(net, PrecisionPolicy.uniform(weight="e4m3fn"))
    assert [name for name, m in net.named_modules() if isinstance(m, QuantizedLayer)] == ["1"]


@pytest.mark.filterwarnings("ignore")  # of transformers itself
def test_gpt2_of_transformers_is_quantised_trained_and_taken_back() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra; its GPT-2 is run")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=16, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.randint(64, (4, 16))
    parameters, plain = dict(model.named_parameters()), model(tokens).logits.detach()
    policy = {"match": "*.h.*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}
    quantize_model(model, {"rules": [policy]})
    layers = [name for name, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    assert len(layers) == 2 * 4 and "transformer.h.1.attn.c_attn" in layers
    assert not torch.equal(model(tokens).logits, plain)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(3):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
        losses.append(loss.item())
    assert losses[2] < losses[0]  # by 0.5, sd 0.04 over four seeds
    dequantize_model(model)
    assert all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in layers)
    assert parameters.keys() == dict(model.named_parameters()).keys()
    assert all(parameters[name] is p for name, p in model.named_parameters())
    again = transformers.GPT2LMHeadModel(config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(tokens).logits, model.eval()(tokens).logits)
