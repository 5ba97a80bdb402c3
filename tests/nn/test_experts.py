"""Experts in one 3-D weight: a loop of quantised Linears, to the last bit, whoever is sent where."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from altgrad.conversion.saving import save_quantized
from altgrad.diagnosis.attribution import unattributed
from altgrad.models.llama import LlamaSpec
from altgrad.nn import PrecisionPolicy, commit, dequantize_model, quantize_model, weight_quantizers
from altgrad.nn.experts import ExpertLinear, StackedLinear
from altgrad.nn.linear import QuantizedLayer
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.packed import load_quantized
from altgrad.spec import LocatedError

EXPERTS, OUT, IN = 4, 48, 64
CASTS: dict[str, dict[str, Any]] = {
    "current": {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"},
    "delayed": {operand: {"format": "e4m3fn", "scaling": "delayed"} for operand in ("weight", "input", "grad_output")},
    "channel": {"weight": {"format": "e4m3fn", "scaling": {"kind": "current", "granularity": "channel"}},
                "input": {"format": "e4m3fn", "scaling": {"kind": "current", "granularity": "channel"}}},
    "stochastic": {"grad_output": {"format": "e5m2", "rounding": "stochastic"}, "input": "e4m3fn"},
    "mx": {"operands": "per_product", "weight": {"format": "e2m1", "scaling": "mx"},
           "input": {"format": "e2m1", "scaling": "mx"}, "grad_output": {"format": "e4m3fn", "scaling": "mx"}},
    "nvfp4": {"operands": "per_product", "weight": {"format": "e2m1", "scaling": "nvfp4"},
              "input": {"format": "e2m1", "scaling": "nvfp4"},
              "grad_output": {"format": "e2m1", "scaling": "nvfp4", "rounding": "stochastic"},
              "grad_weight": {"transform": {"kind": "hadamard", "size": 16, "signs": "fixed", "rest": "leave"}}},
}  # fmt: skip


AT_REST: dict[str, Any] = {
    "tensor": "e4m3fn", "channel": {"format": "e3m4", "scaling": {"kind": "current", "granularity": "channel"}},
    "stochastic": {"format": "e4m3fn", "rounding": "stochastic"}, "mx": {"format": "e2m1", "scaling": "mx"},
    "square": {"format": "e4m3fn", "scaling": {"kind": "block", "shape": "square", "size": 24}},
    "unscaled": {"format": "e5m2", "scaling": "unscaled"},
}  # fmt: skip


class Loop(nn.Module):
    """The same with a Linear for each expert, under the same names."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for number, each in enumerate(weight):
            layer = nn.Linear(IN, OUT, bias=False)
            layer.weight = nn.Parameter(each.detach().clone())
            self.add_module(str(number), layer)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Experts without a token are not called."""
        parts = x.split(counts.tolist())
        return torch.cat([layer(part) for layer, part in zip(self.children(), parts, strict=True) if len(part)])


def pair(casts: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[StackedLinear, Loop]:
    torch.manual_seed(0)
    stack = StackedLinear(EXPERTS, IN, OUT)
    nn.init.normal_(stack.weight)
    stack = stack.to(dtype)
    loop = Loop(stack.weight)
    for each in (stack, loop):
        quantize_model(each, PrecisionPolicy.uniform(**casts), seed=3)
    return stack, loop


def assert_same(
    stack: StackedLinear, loop: Loop, routings: list[list[int]], dtype: torch.dtype = torch.float32
) -> None:
    for counts in routings:
        x = torch.randn(sum(counts), IN, dtype=dtype)
        g = torch.randn(sum(counts), OUT, dtype=dtype)
        seen = []
        for net in (stack, loop):
            given = x.clone().requires_grad_()
            net.zero_grad()
            y = net(given, torch.tensor(counts))
            y.backward(g)
            seen.append((y.detach(), given.grad))
            commit(net)
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
        for number, layer in enumerate(loop.children()):
            expected = torch.zeros(OUT, IN, dtype=dtype) if layer.weight.grad is None else layer.weight.grad
            assert stack.weight.grad is not None and torch.equal(stack.weight.grad[number], expected)
    own, other = stack.state_dict(), loop.state_dict()
    buffers = [name for name in own if ".casts." in name]
    assert buffers == [name for name in other if ".casts." in name]
    assert all(torch.equal(own[name], other[name]) for name in buffers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASTS)
def test_it_is_a_loop_of_quantised_linears(name: str, dtype: torch.dtype) -> None:
    stack, loop = pair(CASTS[name], dtype)
    assert_same(stack, loop, [[16, 0, 5, 3], [0, 0, 24, 0], [1, 1, 1, 21]], dtype)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS).filter(any), min_size=1, max_size=3))
def test_it_is_that_loop_with_any_routing(routings: list[list[int]]) -> None:
    stack, loop = pair(CASTS["delayed"])
    assert_same(stack, loop, routings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uncast_one_grouped_product_has_the_bits_of_the_loop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = StackedLinear(EXPERTS, IN, OUT)
    nn.init.normal_(stack.weight)
    loop = Loop(stack.to(dtype).weight)
    assert_same(stack, loop, [[16, 0, 5, 3], [0, 0, 24, 0]], dtype)
    with torch.autocast("cpu", torch.bfloat16):
        x, counts = torch.randn(4, IN), torch.tensor([1, 0, 3, 0])
        assert torch.equal(stack(x, counts), loop(x, counts))


def test_no_token_at_all() -> None:
    for stack in (StackedLinear(EXPERTS, IN, OUT), pair(CASTS["current"])[0]):
        x = torch.zeros(0, IN, requires_grad=True)
        y = stack(x, torch.zeros(EXPERTS, dtype=torch.int64))
        y.sum().backward()
        assert y.shape == (0, OUT) and stack.weight.grad is not None and not stack.weight.grad.any()


def test_each_expert_has_a_scale_of_its_own() -> None:
    stack, _ = pair(CASTS["current"])
    with torch.no_grad():
        stack.weight[1] *= 1000
    grid = weight_quantizers(nn.ModuleDict({"experts": stack}))["experts.weight"].grid(stack.weight)
    assert grid.scale is not None and grid.scale.shape == (EXPERTS, 1, 1)
    assert grid.scale[1] > 100 * grid.scale[0]


def test_rules_name_experts_and_dequantising_gives_the_stack_back() -> None:
    stack, _ = pair(CASTS["current"])
    layers = list(stack.children())
    assert all(isinstance(layer, QuantizedLayer) and isinstance(layer, ExpertLinear) for layer in layers)
    copied = copy.deepcopy(stack)
    with torch.no_grad():
        copied.weight.zero_()  # a copy's experts are slices of the copy
    assert not copied(torch.randn(4, IN), torch.tensor([1, 1, 1, 1])).any() and stack.weight.any()
    dequantize_model(stack)
    assert [type(module) for module in stack.children()] == [ExpertLinear] * EXPERTS
    some = nn.ModuleDict({"experts": stack})
    quantize_model(some, PrecisionPolicy.uniform(match="experts.2", weight="e2m1"))
    assert [isinstance(module, QuantizedLayer) for module in stack.children()] == [False, False, True, False]


def test_a_stack_at_rest_has_a_scale_for_each_expert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": StackedLinear(3, 64, 32)})
    stack = cast(StackedLinear, model["experts"])
    for number, each in enumerate(nn.init.normal_(stack.weight).detach()):
        each *= 100**number
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for name, spec in AT_REST.items():
        folders = [tmp_path / f"{name}{source}" for source in ("memory", "file", "quantised")]
        policy = {"rules": [{"match": "*", "weight": spec}]}
        save_quantized(model, folders[0], policy=policy)
        save_quantized(tmp_path / "model.safetensors", folders[1], policy=policy)
        save_quantized(quantize_model(copy.deepcopy(model), policy), folders[2])
        cast_by = QuantizerSpec.model_validate(spec)
        expected = [
            Quantizer(cast_by, f"experts.{n}/weight", "weight", rows=32, reduced="last", shape=(32, 64))(w)
            for n, w in enumerate(stack.weight.detach())
        ]
        for folder in folders:
            assert torch.equal(load_quantized(folder)["experts.weight"], torch.stack(expected)), (name, folder.name)
    with pytest.raises(ValueError, match="do not cast all of them alike") as caught:
        save_quantized(model, None, policy={"rules": [{"match": "experts.1", "weight": "e4m3fn"}]})
    assert "\n" not in str(caught.value)


def test_errors_of_experts_are_not_attributed_in_a_line() -> None:
    stack, _ = pair(CASTS["current"])
    assert "and experts.0 is an expert, which a router sends other tokens" in unattributed(
        nn.ModuleDict({"experts": stack})
    )


def test_places_of_a_mixture() -> None:
    model = LlamaSpec(layers=3, width=32, heads=2, context=8, experts=4, active=2).build(20, 20)
    rules = ({"place": place, "weight": "e4m3fn"} for place in ("router", "experts.last(1)", "attention", "head"))
    decided = {d.name: d.rule for d in PrecisionPolicy.made_from({"rules": tuple(rules)}).decide(model)}
    assert decided["blocks.0.router"] == 0 and decided["blocks.2.experts.down.3"] == 1
    assert decided["blocks.1.experts.down.3"] is None
    assert decided["blocks.1.attention.q"] == 2 and decided["head"] == 3
    with pytest.raises(LocatedError, match="place mlp holds no Linear of this model"):
        PrecisionPolicy.made_from({"rules": ({"place": "mlp", "weight": "e4m3fn"},)}).decide(model)
