"""The decoder of today: its names, its start, its causality, and that it is transformers' Llama and Qwen3."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from altgrad.models.llama import LlamaSpec
from altgrad.models.model import ModelSpec

SMALL = LlamaSpec(layers=2, width=32, heads=4, kv_heads=2, context=16)


def build(spec: LlamaSpec = SMALL, vocabulary: int = 256, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spec.build(vocabulary, vocabulary).eval()


def tokens(batch: int = 3, time: int = 16, vocabulary: int = 256) -> Tensor:
    return torch.randint(vocabulary, (batch, time), generator=torch.Generator().manual_seed(1))


def test_the_family_finds_it_by_name() -> None:
    asked = {"kind": "llama", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 16}
    assert ModelSpec.of(asked) == SMALL


def test_module_names_are_the_fixed_ones() -> None:
    linears = [name for name, module in build().named_modules() if isinstance(module, nn.Linear)]
    inner = ["attention.q", "attention.k", "attention.v", "attention.proj", "mlp.gate", "mlp.up", "mlp.down"]
    assert linears == [f"blocks.{i}.{name}" for i in range(2) for name in inner] + ["head"]


def test_start_is_normal_with_scaled_residual_projections() -> None:
    for name, parameter in build(SMALL.model_copy(update={"layers": 8, "qk_norm": True})).named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            expected = 0.02 / 4 if name.endswith(("attention.proj.weight", "mlp.down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_a_later_token_leaves_earlier_logits_bit_identical() -> None:
    model, before = build(), tokens()
    for position in (1, 7, 15):
        after = before.clone()
        after[:, position] = (after[:, position] + 1) % 256
        old, new = model(before), model(after)
        assert torch.equal(old[:, :position], new[:, :position])
        assert not torch.equal(old[:, position], new[:, position])


def test_attention_looks_at_distances_alone() -> None:
    """Positions rotate: the scores of a text do not change where other text of no weight stands before it."""
    attention = build(SMALL.model_copy(update={"layers": 1})).blocks[0].attention
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(3))
    from altgrad.models.llama import angles, rotated

    cosine, sine = angles(12, attention.per_head, 10000.0, torch.device("cpu"))
    spread = [
        (rotated(q, cosine[at + 3], sine[at + 3]) * rotated(k, cosine[at], sine[at])).sum().item() for at in range(9)
    ]
    assert spread == pytest.approx([spread[0]] * 9, abs=1e-5)


def library_model(spec: LlamaSpec, tied: bool = False) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 40, "hidden_size": spec.width, "intermediate_size": spec.inner,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.groups,
        "head_dim": spec.per_head, "rms_norm_eps": spec.eps, "rope_theta": spec.theta, "tie_word_embeddings": tied,
        "hidden_act": spec.activation.replace("gelu_tanh", "gelu_pytorch_tanh"),
        "max_position_embeddings": spec.context,
    }  # fmt: skip
    kind = "Qwen3" if spec.qk_norm else "Llama"
    torch.manual_seed(4)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms of ones would hide a wrong one
            if "norm" in name:
                p.add_(torch.randn_like(p) / 4)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True, "head_width": 16},
        {"tied": True, "theta": 500.0},
        {"activation": "gelu_tanh", "kv_heads": 1},
    ],
    ids=["llama", "qwen3", "tied", "geglu"],
)
def test_it_is_the_library_s_model_given_its_weights(changes: dict[str, Any]) -> None:
    spec = LlamaSpec.model_validate({**SMALL.tree(), **changes})
    theirs = library_model(spec, tied=spec.tied)
    ours = build(spec, vocabulary=40)
    ours.load_state_dict(spec.adopt(theirs.state_dict()), strict=not spec.tied)
    states: list[Tensor] = []
    for block in ours.blocks:
        block.register_forward_hook(lambda _, __, out: states.append(out))
    x = tokens(vocabulary=40)
    with torch.no_grad():
        expected = theirs.model(x, output_hidden_states=True).hidden_states
        assert torch.allclose(ours(x), theirs(x).logits, atol=1e-5)
    assert torch.allclose(states[0], expected[1], atol=1e-5)
    assert torch.allclose(ours.norm(states[1]), expected[2], atol=1e-5)


def test_an_untied_head_that_the_file_lacks_is_the_embedding() -> None:
    found = SMALL.adopt({"model.embed_tokens.weight": torch.ones(3, 2)})
    assert torch.equal(found["head.weight"], found["embed.weight"])


def test_meta_construction_and_initialisation_off_meta() -> None:
    with torch.device("meta"):
        model = SMALL.build(256, 256)
    assert model(tokens().to("meta")).shape == (3, 16, 256)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.initialise()
    torch.manual_seed(0)
    direct = SMALL.build(256, 256)
    direct.initialise()
    torch.manual_seed(0)
    direct.initialise()
    assert torch.equal(model(tokens()), direct(tokens()))


def test_one_graph_without_breaks() -> None:
    torch.compiler.reset()
    explained = torch._dynamo.explain(build())(tokens())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_initial_loss_is_the_logarithm_of_the_vocabulary() -> None:
    loss = nn.functional.cross_entropy(build()(tokens()).flatten(0, 1), tokens().flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.05)


def test_the_mlp_s_width_is_that_of_llama() -> None:
    assert [LlamaSpec(width=w).inner for w in (96, 128, 4096)] == [256, 352, 10944]
    assert LlamaSpec(hidden=7).inner == 7


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 30, "heads": 4}, "width 30 is not a multiple of heads 4"),
        ({"width": 20, "heads": 4}, "heads are 5 wide"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"layers": 0}, "greater than or equal to 1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        LlamaSpec.model_validate(wrong)


def test_a_tied_head_needs_as_many_outputs_as_tokens() -> None:
    with pytest.raises(ValueError, match="tied head gives 256 outputs, the data wants 10"):
        LlamaSpec(tied=True).build(256, 10)


def test_too_long_an_input_is_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens are longer than the model's context of 16"):
        build()(tokens(time=17))
