"""The decoder of today: its names, its start, its causality, and that it is transformers' Llama and Qwen3."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
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


MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama-tied": {"tied": True, "theta": 500.0},
    "Llama-geglu": {"activation": "gelu_tanh", "kv_heads": 1},
    "Mixtral": {"experts": 4, "active": 2},
    "Qwen3": {"qk_norm": True, "head_width": 16},
    "Qwen3Moe": {"qk_norm": True, "experts": 5, "active": 3},
}


def library_model(name: str, spec: LlamaSpec) -> Any:
    """The library's own, of these sizes, with norms that are not 1."""
    transformers = pytest.importorskip("transformers")
    kind = name.partition("-")[0]
    sizes: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "rms_norm_eps": 1e-5,
        "num_attention_heads": 4, "num_key_value_heads": spec.groups, "head_dim": spec.per_head,
        "rope_theta": spec.theta, "tie_word_embeddings": spec.tied, "max_position_embeddings": 16,
        "hidden_act": "gelu_pytorch_tanh" if "geglu" in name else "silu", "sliding_window": None,
        "num_local_experts": spec.experts, "num_experts": spec.experts, "num_experts_per_tok": spec.active,
        "moe_intermediate_size": 96, "norm_topk_prob": True,
    }  # fmt: skip
    if "Moe" not in kind and kind != "Mixtral":
        sizes = {key: value for key, value in sizes.items() if "expert" not in key}
    torch.manual_seed(4)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(torch.randn_like(p) / 4 + (1 if "norm" in key else 0))
    return model


def spec_of(name: str) -> LlamaSpec:
    return LlamaSpec.model_validate({**SMALL.tree(), **MODELS[name]})


def assert_alike(ours: nn.Module, theirs: Any) -> None:
    """Hidden states and logits to 1e-5 of their size."""
    states: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, out: states.append(out)) for block in ours.blocks]
    x = tokens(vocabulary=40)
    with torch.no_grad():
        logits, found = ours(x), theirs(x, output_hidden_states=True)
        pairs = [
            (logits, found.logits),
            (states[0], found.hidden_states[1]),
            (ours.norm(states[1]), found.hidden_states[2]),
        ]
    for handle in handles:
        handle.remove()
    for own, other in pairs:
        assert (own - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_library_s_model_given_its_weights(name: str, tmp_path: Path) -> None:
    spec, theirs = spec_of(name), library_model(name, spec_of(name))
    ours = build(spec, vocabulary=40)
    ours.load_state_dict(spec.adopt(theirs.state_dict()), strict=not spec.tied)
    assert_alike(ours, theirs)
    theirs.save_pretrained(tmp_path)  # in files a mixture has a matrix for each expert
    again = build(spec, vocabulary=40, seed=1)
    again.load_state_dict(spec.adopt(load_file(tmp_path / "model.safetensors")), strict=not spec.tied)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_library_s_model_is_it_given_its_weights(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    spec = spec_of(name)
    ours = build(spec, vocabulary=40)
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(torch.randn_like(p) / 4)
    spec.export(ours, tmp_path, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == f"{name.partition('-')[0]}ForCausalLM"
    assert_alike(ours, theirs)
    with pytest.raises(ValueError, match="is not empty"):
        spec.export(ours, tmp_path, None)


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe"])
def test_it_runs_in_bfloat16_and_a_router_under_autocast_is_float32(name: str) -> None:
    model = build(spec_of(name), vocabulary=40)
    seen: list[torch.dtype] = []
    for module_name, module in model.named_modules():
        if module_name.endswith("router"):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    exact = model(tokens(vocabulary=40))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens(vocabulary=40))
    assert (logits - exact).abs().max() < 0.05 and set(seen) <= {torch.float32}
    assert model.to(torch.bfloat16)(tokens(vocabulary=40)).dtype == torch.bfloat16


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
        ({"experts": 4}, "experts and active belong together"),
        ({"active": 2}, "experts and active belong together"),
        ({"experts": 2, "active": 3}, "active 3 is more than experts 2"),
        ({"experts": 2, "active": 1}, "greater than or equal to 2"),
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
