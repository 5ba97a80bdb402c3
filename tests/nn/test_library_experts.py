"""Experts of transformers, whose modules multiply by 3-D parameters: a loop of quantised layers, to the last bit."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.conversion.saving import save_quantized
from altgrad.nn import (
    PrecisionPolicy,
    casts_off,
    commit,
    dequantize_model,
    quantize_model,
    weight_quantizers,
)
from altgrad.nn.experts import ExpertLinear
from altgrad.nn.library_experts import CastExperts
from altgrad.nn.linear import QuantizedLayer
from altgrad.quantize.packed import load_quantized
from tests.nn.test_experts import CASTS
from tests.nn.test_places import SIZES, stock

transformers = pytest.importorskip("transformers", reason="transformers is an optional extra; its mixtures are run")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers itself
KINDS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 2, "head_dim": 8},
    "GptOss": {"num_local_experts": 4, "head_dim": 8, "num_experts_per_tok": 2},  # weights [in, out], biases
}


def mixture(kind: str) -> nn.Module:
    """Of one block, with parameters that are none of them zero."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 1, "num_key_value_heads": 4, **KINDS[kind]}
    model = stock(kind, "ForCausalLM", **sizes).to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    for module in model.modules():  # what to_empty leaves of the rotary positions
        if hasattr(module, "original_inv_freq"):
            module.inv_freq = module.original_inv_freq = torch.linspace(1, 0.01, len(module.inv_freq))
    return model


def experts_of(model: nn.Module) -> Any:
    return model.get_submodule("model.layers.0.mlp.experts")


class Loop(nn.Module):
    """What the experts' module computes, with a layer of its own for each matrix, under the same names."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.act = experts._apply_gate
        for number in range(len(experts.down_proj)):
            self.add_module(str(number), nn.ModuleDict())
            for name in ("gate_up_proj", "down_proj"):
                weight, bias = getattr(experts, name)[number], getattr(experts, f"{name}_bias", None)
                layer: Any = nn.Linear(*weight.shape[::-1], bias=bias is not None)
                if experts.is_transposed:
                    layer = transformers.pytorch_utils.Conv1D(weight.shape[1], weight.shape[0])
                layer.weight = nn.Parameter(weight.detach().clone())
                if bias is not None:
                    layer.bias = nn.Parameter(bias[number].detach().clone())
                self.get_submodule(str(number))[name] = layer  # type: ignore[index]

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Experts without a token are not called."""
        made = x.new_zeros(*chosen.shape, x.shape[1])
        for number, expert in self.named_children():
            if number.isdecimal() and (chosen == int(number)).any():
                token, place = (chosen == int(number)).nonzero(as_tuple=True)
                layers: Any = expert
                made = made.index_put((token, place), layers["down_proj"](self.act(layers["gate_up_proj"](x[token]))))
        return (made * weights[..., None]).sum(dim=1)


ROUTINGS = [[[0, 1], [2, 3], [1, 0], [3, 1], [0, 2]], [[1, 2], [1, 2], [2, 1]], [[3, 0]]]


@pytest.mark.parametrize(
    ("kind", "casts"),
    [*(("Mixtral", name) for name in CASTS), ("Qwen3Moe", "delayed"), ("GptOss", "current"), ("GptOss", "mx")],
)
def test_they_are_a_loop_of_quantised_layers(kind: str, casts: str) -> None:
    experts = experts_of(mixture(kind)).train()
    loop = Loop(experts).train()
    for each in (experts, loop):
        quantize_model(each, PrecisionPolicy.uniform(**CASTS[casts]), seed=3)
    for routing in ROUTINGS:
        chosen = torch.tensor(routing)
        x, weights = torch.randn(len(chosen), 32), torch.rand(chosen.shape)
        g, seen = torch.randn(len(chosen), 32), []
        for net in (experts, loop):
            given = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
            net.zero_grad()
            y = net(given[0], chosen, given[1])
            y.backward(g)
            seen.append([y.detach(), given[0].grad, given[1].grad])
            commit(net)
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
        for number, layers in loop.named_children():
            for name, p in layers.named_parameters():
                leaf, kept = name.replace(".weight", "").replace(".", "_"), p.grad
                expected = torch.zeros_like(p) if kept is None else kept
                made = getattr(experts, leaf).grad[int(number)]
                if name.endswith("bias"):  # a sum of rows, which lie in memory otherwise
                    torch.testing.assert_close(made, expected)
                else:
                    assert torch.equal(made, expected), name
    own, other = experts.state_dict(), loop.state_dict()
    buffers = [name for name in own if ".casts." in name]
    assert buffers == [name for name in other if ".casts." in name]
    assert all(torch.equal(own[name], other[name]) for name in buffers)


@pytest.mark.parametrize("kind", KINDS)
def test_uncast_they_have_the_bits_of_the_library_and_all_that_is_theirs_stays(kind: str) -> None:
    model = mixture(kind)
    tokens = torch.randint(64, (2, 9))
    plain, parameters, before = model(tokens).logits, dict(model.named_parameters()), type(experts_of(model))
    quantize_model(model, {"rules": [{"place": "experts", "weight": "e4m3fn", "input": "e4m3fn"}]})
    assert sum(isinstance(module, QuantizedLayer) for module in model.modules()) == 8
    experts, cast = experts_of(model), model(tokens).logits
    assert isinstance(experts, CastExperts) and isinstance(experts, before)
    assert not torch.equal(cast, plain) and dict(model.named_parameters()) == parameters
    assert set(weight_quantizers(model)) == {f"model.layers.0.mlp.experts.{n}_proj" for n in ("gate_up", "down")}
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(tokens).logits, cast)
        experts_of(again).down_proj.data.zero_()  # a copy's experts are slices of the copy
        assert not torch.equal(again(tokens).logits, cast) and torch.equal(model(tokens).logits, cast)
    model.set_experts_implementation("eager")  # as `generate` changes it, too
    assert torch.equal(model(tokens).logits, cast)
    model.set_experts_implementation("grouped_mm")
    with casts_off(model):
        assert torch.equal(model(tokens).logits, plain)
    dequantize_model(model)
    assert torch.equal(model(tokens).logits, plain) and type(experts) is before
    assert not any(isinstance(module, ExpertLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("*.experts.down_proj", [f"{n}.down_proj" for n in range(4)]),
        ("*.experts.2.*", ["2.gate_up_proj", "2.down_proj"]),
        ("*.mlp.experts", [f"{n}.{name}_proj" for n in range(4) for name in ("gate_up", "down")]),
        ("*experts.[13].gate_up_proj", ["1.gate_up_proj", "3.gate_up_proj"]),
    ],
)  # fmt: skip
def test_rules_name_a_parameter_its_module_or_one_expert_before_and_after(pattern: str, layers: list[str]) -> None:
    model = stock(
        "Mixtral", "ForCausalLM", **{**SIZES, "num_hidden_layers": 1}, num_local_experts=4, num_key_value_heads=4
    )
    policy = PrecisionPolicy.uniform(match=pattern, weight="e4m3fn")
    before = policy.decide(model)
    quantize_model(model, policy)
    assert sorted(d.name for d in policy.decide(model)) == sorted(d.name for d in before)
    found = [name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    assert sorted(found) == sorted(f"model.layers.0.mlp.experts.{each}" for each in layers)


def test_what_no_layer_can_reach_is_refused_in_one_line() -> None:
    model = mixture("Mixtral")
    experts_of(model)._is_expert_parallel = True
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts has experts on other devices") as caught:
        quantize_model(model, {"rules": [{"place": "experts", "weight": "e4m3fn"}]})
    assert "\n" not in str(caught.value) and not isinstance(experts_of(model), CastExperts)


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_saved_each_expert_has_its_scale_and_the_values_of_its_cast(kind: str, tmp_path: Path) -> None:
    model = mixture(kind)
    with torch.no_grad():
        experts_of(model).down_proj[1] *= 1000
    policy = {"rules": [{"place": "experts", "weight": {"format": "e2m1", "scaling": "mx"}}]}
    save_quantized(model, tmp_path / "plain", policy=policy)
    quantize_model(model, policy)
    save_quantized(model, tmp_path / "quantised")
    for folder in ("plain", "quantised"):
        read = load_quantized(tmp_path / folder)
        for name, module in model.named_modules():
            if isinstance(module, ExpertLinear):
                stored = read[f"model.layers.0.mlp.experts.{module.parameter}"][module.number]
                expected = module.casts["weight"](module.weight.detach())  # type: ignore[operator,index]
                assert torch.equal(stored, expected), name
    rule = {"match": "*.experts.2.down_proj", "weight": "e4m3fn"}
    with pytest.raises(ValueError, match="do not cast all of them alike") as caught:
        save_quantized(dequantize_model(model), tmp_path / "out", policy={"rules": [rule]})
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.long
def test_compiled_and_under_autocast_they_have_the_bits_of_eager() -> None:
    """Experts run between graphs; of an uncast stack there is one product, in a graph."""
    torch._dynamo.reset()
    tokens = torch.randint(64, (2, 9))
    for rules in (
        [{"place": "body", "weight": "e4m3fn", "input": "e4m3fn"}],
        [{"match": "*.gate_up_proj", "weight": "e4m3fn"}],
    ):
        model = quantize_model(mixture("Mixtral").train(), {"rules": rules})
        seen = []
        for run in (model, torch.compile(model, backend="aot_eager")):
            for reduced in (False, True):
                model.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                    loss = run(tokens, labels=tokens).loss
                loss.backward()
                seen.append([loss.detach(), *(p.grad for p in model.parameters())])
        for eager, compiled in zip(seen[:2], seen[2:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_generation_runs_the_casts() -> None:
    model = quantize_model(mixture("Mixtral").eval(), {"rules": [{"place": "experts", "weight": "e4m3fn"}]})
    experts, ran = experts_of(model), []
    experts.expert_layers("down_proj")[0].register_forward_hook(lambda *_: ran.append(1))
    made = model.generate(torch.randint(1, 64, (3, 4)), max_new_tokens=4, do_sample=False, use_cache=True)
    assert made.shape == (3, 8) and len(ran) >= 2
