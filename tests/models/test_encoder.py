"""The encoder: padding is nothing to it, in values, gradients and casts; its head is called `classifier`."""

from typing import Any

import pytest
import torch
from torch import nn

import altgrad
from altgrad.data.dataset import PADDING
from altgrad.models.encoder import EncoderSpec, pooled
from altgrad.models.model import ModelSpec
from altgrad.nn.surgery import quantizers

POOLINGS = pytest.mark.parametrize("pooling", ["mean", "first"])


def make(**fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return EncoderSpec(**({"layers": 2, "width": 16, "heads": 2, "context": 12} | fields)).build(20, 5)


def texts() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 20, (3, 7))


def padded(tokens: torch.Tensor, by: int) -> torch.Tensor:
    return torch.cat([tokens, torch.full((len(tokens), by), PADDING)], 1)


def test_it_is_found_by_its_kind_and_answers_for_texts() -> None:
    spec = ModelSpec.of("encoder")
    assert isinstance(spec, EncoderSpec) and spec.answers == "text" and ModelSpec.of("gpt").answers == "token"
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        EncoderSpec(width=10)


@POOLINGS
@pytest.mark.parametrize("bias", [False, True])
def test_padding_changes_no_answer_and_no_gradient(pooling: str, bias: bool) -> None:
    found = []
    for tokens in (texts(), padded(texts(), 5)):
        model = make(pooling=pooling, bias=bias)
        logits = model(tokens)
        logits.square().sum().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (a, gradients), (b, others) = found
    torch.testing.assert_close(a, b)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)


@POOLINGS
def test_a_row_is_answered_as_if_it_were_alone(pooling: str) -> None:
    model = make(pooling=pooling)
    tokens = padded(texts(), 4)
    tokens[1, 3:] = PADDING
    whole = model(tokens)
    torch.testing.assert_close(whole[1:2], model(tokens[1:2, :3]))
    torch.testing.assert_close(whole[:1], model(tokens[:1, :7]))


def test_every_position_sees_both_sides_of_itself() -> None:
    model = make(pooling="first").eval()
    tokens = texts()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 20
    assert (model(tokens) != model(changed)).any(1).all()


def test_padding_enters_every_linear_as_zero_and_so_does_its_gradient() -> None:
    model, seen = make(), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "classifier":
            module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].detach()}))
            module.register_full_backward_hook(
                lambda _, __, out, name=name: seen.update({f"{name}/grad": out[0].detach()})
            )
    model(padded(texts(), 5)).square().sum().backward()
    assert len(seen) == 2 * 2 * 4
    for name, tensor in seen.items():
        assert (tensor[:, 7:] == 0).all(), name
        assert (tensor[:, :7] != 0).any(), name


def test_scales_never_see_padding() -> None:
    """With one scale per tensor, the quantised encoder too answers the same with and without padding."""
    found = []
    for tokens in (texts(), padded(texts(), 5)):
        model = altgrad.quantize_model(make(), {"rules": [{"weight": "e4m3fn", "input": "e4m3fn"}]})
        found.append(model(tokens))
        assert len(quantizers(model)) == 2 * 4 * 2
    torch.testing.assert_close(*found)


def test_a_row_of_padding_alone_gives_numbers_and_gradients() -> None:
    model = make()
    tokens = padded(texts(), 2)
    tokens[2] = PADDING
    logits = model(tokens)
    logits.sum().backward()
    assert logits.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits[2], model.get_submodule("classifier").bias)


def test_pooling_is_the_mean_over_tokens_or_the_first() -> None:
    states = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[True, True, False, False]])
    assert pooled(states, mask, "mean").tolist() == [[1.5, 2.5, 3.5]]
    assert pooled(states, mask, "first").tolist() == [[0.0, 1.0, 2.0]]


def test_names_sizes_and_limits() -> None:
    model = make()
    names = {name for name, _ in model.named_parameters()}
    assert {"embed.weight", "blocks.1.attention.qkv.weight", "classifier.weight", "classifier.bias"} <= names
    assert model(texts()[:, :1]).shape == (3, 5)
    with pytest.raises(ValueError, match="13 tokens are longer than the model's context of 12"):
        model(padded(texts(), 6))
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in make().named_parameters()}
    assert shapes == {name: p.shape for name, p in model.named_parameters()}
