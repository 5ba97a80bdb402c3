"""Claims about torch's own parents of Linears: each calls its quantised children in every mode, or is refused.

The first test finds these parents in torch's source, so that a new one does not come in unseen.
"""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, casts_off, dequantize_model, quantize_model
from altgrad.nn.first_pass import READERS

CASTS: Any = {"weight": "e2m1", "input": "e2m1"}
WIDE = {"batch_first": True, "dropout": 0.0}


def encoder_layer(**other: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(32, 4, 64, **WIDE | other)


PARENTS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "TransformerEncoderLayer": (encoder_layer, lambda m: m(inputs())),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(32, 4, 64, **WIDE),
        lambda m: m(inputs(), inputs().flip(1)),
    ),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(32, 4), lambda m: m(inputs(), inputs(), inputs())[0]),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(32, 20, [5, 10]),
        lambda m: m(inputs().flatten(0, 1), torch.arange(10))[0],
    ),
    "LinearCrossEntropyLoss": (
        lambda: nn.LinearCrossEntropyLoss(32, 20),
        lambda m: m(inputs().flatten(0, 1), torch.arange(10)),
    ),
}
"""How to build one of each, and what it computes."""


def inputs() -> Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def quantised(model: nn.Module, match: str = "*") -> nn.Module:
    return quantize_model(model, PrecisionPolicy.uniform(match=match, **CASTS))


def parents_in_torch() -> set[str]:
    """The classes of torch.nn that make a Linear for themselves."""
    found = {name: cls for name, cls in vars(nn).items() if inspect.isclass(cls) and issubclass(cls, nn.Module)}
    made = {name: inspect.getsource(cls.__init__) for name, cls in found.items() if "__init__" in vars(cls)}
    return {name for name, source in made.items() if "Linear(" in source and name != "Linear"}


@pytest.mark.parametrize("name", sorted(parents_in_torch()))
def test_every_parent_that_torch_has_runs_its_casts_in_every_mode_or_is_refused(name: str) -> None:
    build, run = PARENTS[name]
    torch.manual_seed(0)
    model = build()
    own = [child for child, module in model.named_modules() if type(module) is nn.Linear]
    refused = isinstance(model, READERS)
    if refused or not own:
        with pytest.raises(ValueError, match=f"belongs to a {name}, which multiplies by its matrices itself") as caught:
            quantised(model)
        assert "\n" not in str(caught.value)
        return
    policy = {"rules": [{"match": "*attn*"}, {"match": "*", **CASTS}]} if "Transformer" in name else None
    quantize_model(model, policy or PrecisionPolicy.uniform(**CASTS))
    assert_casts_run_in_every_mode(model, run)


def assert_casts_run_in_every_mode(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
    """In each mode, and not in the first pass alone, it computes what its layers' own forwards make of it."""
    with casts_off(model):
        plain = run(model.train()).detach()
    cast = run(model.train()).detach()
    assert not torch.allclose(plain, cast, atol=1e-3)
    for mode in (model.train, model.eval):
        mode()
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            for _ in range(2):
                with context():
                    torch.testing.assert_close(run(model).clone().detach(), cast, rtol=1e-5, atol=1e-5)


def stack(layer: nn.Module) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer, 2)  # type: ignore[arg-type]


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "stack": lambda: quantised(stack(encoder_layer()), "*linear*"),
    "one of a stack": lambda: quantised(stack(encoder_layer()), "layers.1.linear2"),
    "norm first, gelu": lambda: quantised(encoder_layer(norm_first=True, activation="gelu"), "*linear*"),
    "stack of a quantised layer": lambda: stack(quantised(encoder_layer(), "*linear*")),
    "copied": lambda: copy.deepcopy(quantised(stack(encoder_layer()), "*linear*")),
    "pickled": lambda: pickle.loads(pickle.dumps(quantised(stack(encoder_layer()), "*linear*"))),
    "in a model": lambda: quantised(
        nn.Sequential(nn.Linear(32, 32), stack(encoder_layer()), nn.Linear(32, 8)), "1*linear*"
    ),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", BUILDS)
def test_the_fused_encoder_is_off_wherever_it_has_casts(name: str) -> None:
    torch.manual_seed(0)
    assert_casts_run_in_every_mode(BUILDS[name](), lambda model: model(inputs()))


def test_padding_makes_no_nested_tensors_of_a_quantised_encoder() -> None:
    torch.manual_seed(0)
    model = quantised(stack(encoder_layer()), "*linear*").eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with_grad = model(inputs(), src_key_padding_mask=padding).detach()
    with torch.no_grad():
        without = model(inputs(), src_key_padding_mask=padding)
    torch.testing.assert_close(without[~padding], with_grad[~padding])


def test_a_layer_quantised_by_itself_keeps_its_parent_from_fusing() -> None:
    torch.manual_seed(0)
    layer = encoder_layer().eval()
    with torch.no_grad():
        plain = layer(inputs())
    quantised(layer.linear1)
    cast = layer(inputs()).detach()
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(layer(inputs()), cast)
    assert not torch.allclose(plain, cast, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_taken_back_it_is_the_fused_model_again_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = stack(encoder_layer()).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    before = [vars(module).keys() for module in model.modules()]
    with torch.no_grad():
        plain = model(inputs(), src_key_padding_mask=padding)
        dequantize_model(quantised(model, "*linear*"))
        assert torch.equal(model(inputs(), src_key_padding_mask=padding), plain)
    assert model.use_nested_tensor and all(layer.activation_relu_or_gelu == 1 for layer in model.layers)
    assert [vars(module).keys() for module in model.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("match", ["*", "*attn*", "*out_proj", "*in_proj_weight", "encoder.layers.0.self_attn"])
def test_attention_is_refused_under_every_name_that_a_rule_finds_it_by(match: str) -> None:
    model = nn.Transformer(32, 4, 1, 1, 64, **WIDE)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        quantised(model, match)
    assert "in_proj_weight" in str(caught.value) or "out_proj" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_remedy_that_is_named_for_attention_works() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 1, 1, 64, **WIDE)  # type: ignore[arg-type]
    rules: list[Any] = [{"match": "*", **CASTS}]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"put the rule \{match: '\*\w+_attn\*'\}, which casts nothing") as caught:
            quantize_model(model, {"rules": rules})
        rules.insert(0, {"match": str(caught.value).split("'")[1]})
    quantize_model(model, {"rules": rules})
    assert_casts_run_in_every_mode(model, lambda m: m(inputs(), inputs().flip(1)))


@pytest.mark.parametrize("rules", [[{"match": "*out_proj"}], [{"match": "*in_proj_weight"}]])
def test_no_half_of_attention_is_left_silently(rules: list[Any]) -> None:
    with pytest.raises(ValueError, match="belongs to a MultiheadAttention"):
        quantize_model(encoder_layer(), {"rules": [*rules, {"match": "*", **CASTS}]})
