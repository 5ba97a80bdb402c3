"""Claims about places: which layers each holds, by name, in our models and in those of transformers."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from altgrad.models.model import ModelSpec
from altgrad.nn import PrecisionPolicy, QuantizedLayer, QuantizedLinear, quantize_model
from altgrad.nn.names import nameable
from altgrad.nn.places import NAMES, Places, RulePlace
from altgrad.spec import LocatedError, SpecError

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OURS = {"layers": 2, "width": 8, "heads": 2, "context": 4}


def ours(kind: str) -> nn.Module:
    return ModelSpec.of({"kind": kind, **OURS}).build(16, 3)  # type: ignore[no-any-return]


def stock(name: str, head: str, config: str = "", **sizes: Any) -> nn.Module:
    """Of transformers, from its configuration."""
    transformers = pytest.importorskip("transformers", reason="transformers is an optional extra; its models are built")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made: nn.Module = getattr(transformers, name + head)(getattr(transformers, config or f"{name}Config")(**sizes))
    transformers.logging.set_verbosity(before)
    return made


class Mixture(nn.Module):
    """Two blocks, each with a choice of three experts, which are Linears, and one that every token passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.block() for _ in range(2))
        self.lm_head = nn.Linear(4, 8)

    def block(self) -> nn.Module:
        def expert() -> nn.Module:
            return nn.ModuleDict({"gate_proj": nn.Linear(4, 8), "down_proj": nn.Linear(8, 4)})

        moe = nn.ModuleDict({"gate": nn.Linear(4, 3), "experts": nn.ModuleList(expert() for _ in range(3))})
        moe.update({"shared_experts": expert(), "shared_expert_gate": nn.Linear(4, 1)})
        return nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)}), "mlp": moe})


STACKED = " ".join(f"mlp.experts.{n}.{name}_proj" for n in range(4) for name in ("gate_up", "down"))
"""Experts of transformers, in 3-D parameters: each has the name that it would have in a list."""
QKVO = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
TABLE: dict[str, tuple[Callable[[], nn.Module], str, dict[str, str], dict[str, str]]] = {
    # model, where its blocks are, what each place holds of a block, and outside of blocks
    "gpt": (
        lambda: ours("gpt"), "blocks",
        {"attention": "attention.qkv attention.proj", "attention_output": "attention.proj", "mlp": "mlp.up mlp.down"},
        {"head": "head"},
    ),
    "encoder": (
        lambda: ours("encoder"), "blocks",
        {"attention": "attention.qkv attention.proj", "attention_output": "attention.proj", "mlp": "mlp.up mlp.down"},
        {"head": "classifier"},
    ),
    "Llama": (
        lambda: stock("Llama", "ForCausalLM", **SIZES), "model.layers",
        {"attention": QKVO, "attention_output": "self_attn.o_proj", "mlp": "mlp.gate_proj mlp.up_proj mlp.down_proj"},
        {"head": "lm_head"},
    ),
    "Mixtral": (
        lambda: stock("Mixtral", "ForCausalLM", num_local_experts=4, num_key_value_heads=4, **SIZES), "model.layers",
        {"attention": QKVO, "attention_output": "self_attn.o_proj", "router": "mlp.gate.weight",
         "experts": STACKED},
        {"head": "lm_head"},
    ),
    "Qwen2Moe": (
        lambda: stock("Qwen2Moe", "ForCausalLM", num_experts=4, num_key_value_heads=4, **SIZES), "model.layers",
        {"attention": QKVO, "attention_output": "self_attn.o_proj", "router": "mlp.gate.weight mlp.shared_expert_gate",
         "experts": STACKED,
         "mlp": "mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj"},
        {"head": "lm_head"},
    ),
    "experts that are Linears": (
        Mixture, "layers",
        {"attention": "self_attn.q_proj", "router": "mlp.gate mlp.shared_expert_gate",
         "experts": " ".join(f"mlp.experts.{n}.gate_proj mlp.experts.{n}.down_proj" for n in range(3)),
         "mlp": "mlp.shared_experts.gate_proj mlp.shared_experts.down_proj"},
        {"head": "lm_head"},
    ),
    "Bert": (
        lambda: stock("Bert", "ForSequenceClassification", **SIZES), "bert.encoder.layer",
        {"attention": "attention.self.query attention.self.key attention.self.value attention.output.dense",
         "attention_output": "attention.output.dense",
         "mlp": "intermediate.dense output.dense"}, {"head": "bert.pooler.dense classifier"},
    ),
    "GPT2": (
        lambda: stock("GPT2", "LMHeadModel", vocab_size=64, n_embd=32, n_layer=2, n_head=4), "transformer.h",
        {"attention": "attn.c_attn attn.c_proj", "attention_output": "attn.c_proj", "mlp": "mlp.c_fc mlp.c_proj"},
        {"head": "lm_head"},
    ),
    "OPT": (
        lambda: stock("OPT", "ForCausalLM", ffn_dim=48, word_embed_proj_dim=16, **{
            key: value for key, value in SIZES.items() if key != "intermediate_size"}), "model.decoder.layers",
        {"attention": " ".join(f"self_attn.{n}_proj" for n in ("k", "v", "q", "out")),
         "attention_output": "self_attn.out_proj", "mlp": "fc1 fc2"},
        {"embeddings": "model.decoder.project_out model.decoder.project_in", "head": "lm_head"},
    ),
    "nn.TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), "layers",
        {"attention": "self_attn.in_proj_weight self_attn.out_proj", "attention_output": "self_attn.out_proj",
         "mlp": "linear1 linear2"}, {},
    ),
    "a plain MLP": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), "", {}, {"mlp": "0 2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_each_place_holds_exactly_these_layers(name: str) -> None:
    build, blocks, inside, outside = TABLE[name]
    model = build()
    places, things = Places(model), nameable(model)
    expected = {place: [] for place in NAMES} | {place: names.split() for place, names in outside.items()}
    for place, names in inside.items():
        expected[place] += [f"{blocks}.{number}.{each}" for number in range(2) for each in names.split()]
    expected["body"] = [each for place in ("attention", "experts", "mlp") for each in expected[place]]
    for place, names in expected.items():
        held = [thing.name for thing in things if places.holds(RulePlace(place), thing)]
        assert sorted(held) == sorted(names), place
    assert places.blocks == (2 if blocks else 0)


def held(text: str, layers: int) -> list[int]:
    """The blocks of a GPT that a place holds."""
    model = ModelSpec.of({"kind": "gpt", **OURS, "layers": layers}).build(16, 3)
    policy = PrecisionPolicy.made_from({"rules": [{"place": text, "weight": "e4m3fn"}]})
    return sorted({int(d.name.split(".")[1]) for d in policy.decide(model) if d.rule is not None})


@pytest.mark.parametrize(
    ("text", "layers", "blocks"),
    [
        ("body.first(2)", 4, [0, 1]), ("body.last(1)", 4, [3]), ("attention.last(3)", 2, [0, 1]),
        ("body.last(15%)", 4, [3]), ("body.last(15%)", 7, [5, 6]), ("mlp.first(50%)", 4, [0, 1]),
        ("body.last(12.5%)", 8, [7]), ("body.last(100%)", 3, [0, 1, 2]), ("attention_output.last(1)", 3, [2]),
    ],
)  # fmt: skip
def test_blocks_are_counted_and_percentages_rounded_up(text: str, layers: int, blocks: list[int]) -> None:
    assert held(text, layers) == blocks


def test_the_first_rule_that_finds_a_layer_decides_it_by_place_or_by_name() -> None:
    rules = [{"match": "blocks.0.mlp.up"}, {"place": "body.last(1)"}, {"place": "body", "weight": "e4m3fn"}]
    policy = PrecisionPolicy.made_from({"rules": rules})
    decided = {d.name: d.rule for d in policy.decide(ours("gpt"))}
    first = {"blocks.0.attention.qkv": 2, "blocks.0.attention.proj": 2, "blocks.0.mlp.up": 0, "blocks.0.mlp.down": 2}
    assert decided == first | {name.replace(".0.", ".1."): 1 for name in first} | {"head": None}
    assert sum(isinstance(m, QuantizedLinear) for m in quantize_model(ours("gpt"), policy).modules()) == 3


def test_a_place_that_finds_nothing_is_an_error_that_names_those_of_the_model() -> None:
    policy = PrecisionPolicy.made_from({"rules": [{"place": "experts", "weight": "e4m3fn"}]})
    with pytest.raises(LocatedError) as caught:
        policy.decide(ours("gpt"))
    assert caught.value.location == ("rules", 0, "place")
    assert str(caught.value) == (
        "place experts holds no Linear of this model, whose places are body 8 (blocks.0.attention.qkv, ...), attention "
        "4 (blocks.0.attention.qkv, ...), attention_output 2 (blocks.0.attention.proj, ...), mlp 4 (blocks.0.mlp.up, "
        "...), head 1 (head)."
    )
    shadowed = PrecisionPolicy.made_from({"rules": [{"place": "body"}, {"place": "mlp", "weight": "e4m3fn"}]})
    with pytest.raises(LocatedError, match="place mlp decides nothing: earlier rules match all its layers"):
        shadowed.decide(ours("gpt"))


def test_what_stays_as_it_is_may_be_absent() -> None:
    rules = [{"place": place} for place in ("router", "experts", "norms", "embeddings", "head")]
    policy = PrecisionPolicy.made_from({"rules": [*rules, {"place": "body", "weight": "e4m3fn"}]})
    assert {d.rule for d in policy.decide(ours("gpt"))} == {4, 5}


def test_experts_are_of_the_body_unless_a_rule_leaves_them() -> None:
    body = {"place": "body", "weight": "e4m3fn"}
    model = quantize_model(TABLE["Mixtral"][0](), {"rules": [body]})
    assert sum(isinstance(module, QuantizedLayer) for module in model.modules()) == 8 + 2 * 4 * 2
    model = quantize_model(TABLE["Mixtral"][0](), {"rules": [{"place": "experts"}, body]})
    assert sum(isinstance(module, QuantizedLayer) for module in model.modules()) == 8


def test_experts_in_one_tensor_of_a_module_that_is_not_known_are_refused() -> None:
    sizes = {key: size for key, size in SIZES.items() if key != "intermediate_size"}
    model = stock("Llama4", "ForCausalLM", config="Llama4TextConfig", num_local_experts=4, **sizes)
    with pytest.raises(
        ValueError, match=r"model.layers.0.feed_forward.experts.gate_up_proj is 3-D .* only matrices are cast"
    ):
        quantize_model(model, {"rules": [{"place": "body", "weight": "e4m3fn"}]})


def test_what_no_cast_would_reach_is_refused_as_by_name() -> None:
    with pytest.raises(ValueError, match="layers.0.self_attn.out_proj belongs to a MultiheadAttention"):
        quantize_model(TABLE["nn.TransformerEncoder"][0](), {"rules": [{"place": "body", "weight": "e4m3fn"}]})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"place": "bodi"}, "'bodi' is not a place. Did you mean 'body'?"),
        ({"place": "body.last(15)%"}, "'body.last(15)%' is not a place. There are body, attention,"),
        ({"place": "head.first(2)"}, "head.first(2): head is outside of the blocks; write head."),
        ({"place": "body", "match": "*"}, "a rule has match or place, and this one has both"),
    ],
)
def test_what_is_no_place_is_refused_in_one_line(rule: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        PrecisionPolicy.made_from({"rules": [rule]})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_rule_by_place_reads_back_and_one_by_name_is_written_as_before() -> None:
    policy = PrecisionPolicy.made_from({"rules": [{"place": "body.last(15%)"}, {"weight": "e4m3fn"}]})
    by_place, by_name = policy.tree()["rules"]
    assert by_place["place"] == "body.last(15%)" and "match" not in by_place
    assert by_name["match"] == "blocks.*" and "place" not in by_name
    assert PrecisionPolicy.parse(policy.to_yaml()) == policy
