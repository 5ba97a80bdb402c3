"""The decoder: its names, its start, its causality, and that it can be traced, tied and built without memory."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.gpt import GPTSpec
from altgrad.models.model import ModelSpec

SMALL = GPTSpec(layers=2, width=32, heads=4, context=16)


def build(spec: GPTSpec = SMALL, vocabulary: int = 256, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spec.build(vocabulary, vocabulary)


def tokens(batch: int = 3, time: int = 16) -> Tensor:
    return torch.randint(256, (batch, time), generator=torch.Generator().manual_seed(1))


def test_the_family_finds_it_by_name() -> None:
    assert ModelSpec.of({"kind": "gpt", "layers": 2, "width": 32, "heads": 4, "context": 16}) == SMALL


def test_module_names_are_the_fixed_ones() -> None:
    linears = [name for name, module in build().named_modules() if isinstance(module, nn.Linear)]
    inner = ["attention.qkv", "attention.proj", "mlp.up", "mlp.down"]
    assert linears == [f"blocks.{i}.{name}" for i in range(2) for name in inner] + ["head"]
    others = [name for name, module in build().named_modules() if isinstance(module, nn.Embedding | nn.LayerNorm)]
    assert others == ["embed", "positions", *[f"blocks.{i}.norm{j}" for i in range(2) for j in (1, 2)], "norm"]


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = build(seed=5), build(seed=5), build(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_start_is_normal_with_scaled_residual_projections_and_zero_biases(bias: bool) -> None:
    model = build(GPTSpec(layers=8, width=64, heads=2, context=64, bias=bias))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 2:
            into_residual = name.endswith(("attention.proj.weight", "mlp.down.weight"))
            expected = 0.02 / 4 if into_residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert (parameter == 1).all()
    assert any(name.endswith("bias") for name, _ in model.named_parameters()) == bias


def test_initial_loss_is_the_logarithm_of_the_vocabulary() -> None:
    logits = build()(tokens())
    assert logits.shape == (3, 16, 256)
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens().flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.05)


def test_a_later_token_leaves_earlier_logits_bit_identical() -> None:
    model = build().eval()
    before = tokens()
    for position in range(1, 16):
        after = before.clone()
        after[:, position] = (after[:, position] + 1) % 256
        old, new = model(before), model(after)
        assert torch.equal(old[:, :position], new[:, :position])
        assert not torch.equal(old[:, position], new[:, position])


def test_a_shorter_sequence_gives_the_same_logits() -> None:
    model = build().eval()
    torch.testing.assert_close(model(tokens()[:, :5]), model(tokens())[:, :5])


def test_attention_is_the_textbook_formula() -> None:
    attention = build().blocks[0].attention
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(2))
    q, k, v = (t.view(2, 16, 4, 8).transpose(1, 2) for t in attention.qkv(x).split(32, dim=-1))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~torch.ones(16, 16).tril().bool(), -math.inf)
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 16, 32))
    torch.testing.assert_close(attention(x), expected)


def test_tied_shares_the_parameter() -> None:
    tied = build(SMALL.model_copy(update={"tied": True}))
    assert tied.head.weight is tied.embed.weight
    assert len(list(tied.parameters())) == len(list(build().parameters())) - 1
    assert tied.head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_tied_head_needs_as_many_outputs_as_tokens() -> None:
    with pytest.raises(ValueError, match="tied head gives 256 outputs, the data wants 10"):
        GPTSpec(tied=True).build(256, 10)


def test_outputs_may_differ_from_the_vocabulary() -> None:
    assert SMALL.build(256, 10)(tokens()).shape == (3, 16, 10)


def test_meta_construction_allocates_nothing() -> None:
    with torch.device("meta"):
        model = GPTSpec(layers=2, width=8192, heads=64, context=8192).build(100_000, 100_000)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_decoder_moved_off_meta_initialises_to_the_same_weights() -> None:
    with torch.device("meta"):
        model = SMALL.build(256, 256)
    model.to_empty(device="cpu")
    torch.manual_seed(7)
    model.initialise()
    direct = SMALL.build(256, 256)
    torch.manual_seed(7)
    direct.initialise()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), direct.parameters(), strict=True))


def test_dropout_acts_in_training_only() -> None:
    model = build(SMALL.model_copy(update={"dropout": 0.5}))
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_graph_without_breaks(dropout: float) -> None:
    torch.compiler.reset()
    model = build(SMALL.model_copy(update={"dropout": dropout}))
    explained = torch._dynamo.explain(model)(tokens())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_too_long_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens are longer than the model's context of 16"):
        build()(tokens(time=17))


def test_width_must_divide_by_heads() -> None:
    with pytest.raises(ValidationError, match="width 30 is not a multiple of heads 4"):
        GPTSpec(width=30, heads=4)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"dropout": 1.0}, {"context": -1}, {"hidden": 3}])
def test_sizes_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GPTSpec.model_validate(wrong)
