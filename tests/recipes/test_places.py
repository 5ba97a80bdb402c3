"""Claims about where recipes cast: exactly the layers that their authors' rules say, in our GPT and in stock models."""

import functools

import pytest
from torch import nn

from altgrad.nn import PrecisionPolicy
from altgrad.recipes.book import find
from altgrad.recipes.catalogue import names
from altgrad.spec import LocatedError
from tests.nn.test_places import SIZES, STACKED, TABLE, stock

BODY: dict[str, tuple[str, list[str]]] = {
    "gpt": ("blocks.{}.", ["attention.qkv", "attention.proj", "mlp.up", "mlp.down"]),
    "Llama": (
        "model.layers.{}.",
        [
            *(f"self_attn.{each}_proj" for each in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        ],
    ),
    "Mixtral": (
        "model.layers.{}.",
        [*(f"self_attn.{each}_proj" for each in "qkvo"), *STACKED.split()],
    ),
    "Bert": (
        "bert.encoder.layer.{}.",
        [
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense",
        ],
    ),
}  # fmt: skip
"""The Linears of each of the two blocks. Routers, embeddings and norms are none of them."""
HEAD = {"gpt": ["head"], "Llama": ["lm_head"], "Mixtral": ["lm_head"], "Bert": ["bert.pooler.dense", "classifier"]}
CASTLESS = ("bf16_sr", "eco", "adam_8bit", "adam_fp8", "muon_8bit")
RULES: dict[str, tuple[tuple[int, ...], bool]] = {
    "te_nvfp4": ((0,), False), "torchao_nvfp4": ((0,), False),  # 15 % of two blocks is one
    "modded_nanogpt_head": ((), True), "nanochat": ((0, 1), True),
    **dict.fromkeys(CASTLESS, ((), False)),
}  # fmt: skip
"""Which blocks a recipe casts, and whether the head; the others cast the blocks and nothing else."""


@functools.cache
def model(name: str) -> nn.Module:
    return TABLE[name][0]()


@functools.cache
def policy(name: str) -> PrecisionPolicy:
    return PrecisionPolicy.made_from(find(name).expansion().run["precision"])


@pytest.mark.parametrize("name", names())
def test_a_recipe_casts_exactly_these_layers(name: str) -> None:
    blocks, head = RULES.get(name, ((0, 1), False))
    for each, (prefix, layers) in BODY.items():
        decisions = policy(name).decide(model(each))
        cast = [d.name for d in decisions if d.precision is not None and d.precision.casts()]
        expected = [prefix.format(block) + layer for block in blocks for layer in layers]
        assert sorted(cast) == sorted(expected + HEAD[each] * head), each


@pytest.mark.parametrize("name", sorted(set(names()) - set(CASTLESS)))
def test_a_recipe_that_finds_nothing_says_what_places_the_model_has(name: str) -> None:
    without_body = nn.ModuleDict({"wte": nn.Embedding(8, 4), "lm_head": nn.Linear(4, 8)})
    without_head = stock("Llama", "Model", **SIZES)
    _, head = RULES.get(name, ((0, 1), False))
    if name != "modded_nanogpt_head":
        first = {
            "mx_norms": "place norms holds no norm with a weight",
            "deepseek_v3": "place attention_output holds no Linear",
            "te_fp8_attention": "no attention of this model can be reached",
        }.get(name, "place body holds no Linear")  # fmt: skip
        places = "" if name == "te_fp8_attention" else r" .* whose places are head 1 \(lm_head\)\."
        with pytest.raises(LocatedError, match=first + places):
            policy(name).decide(without_body)
    if head:
        message = r"place head holds no Linear .* whose places are body 14 \(model\.|places are body 14 \(layers"
        with pytest.raises(LocatedError, match=message):
            policy(name).decide(without_head)
