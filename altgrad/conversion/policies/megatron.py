"""Megatron-LM: YAML for `--te-precision-config-file`, ordered globs over the names of its modules.

    configs:   {mxfp8: {transformer_engine_config_type: TEQuantizationParams, training_recipe: {...}}, ...}
    matchers:  {name: {config: mxfp8, type: glob, pattern: "*decoder.layers.*.mlp.linear_fc1", enabled: true}, ...}

The first matcher that finds a module chooses its config; the last one here finds all that is left and keeps it in
bfloat16. Each config holds whatever the command line says of FP8. A config names one of Transformer Engine's recipes
as Megatron makes them, with the format and nothing else to choose; delayed scaling is none of them.

Megatron joins layers: query, key and value are one `linear_qkv`, gate and up one `linear_fc1`, the experts of a block
one grouped layer. Layers that it joins must be cast alike. A place of a rule has Megatron's own names, so that a policy
of places needs no model, unless it counts blocks. It was not run here.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import yaml

from altgrad.conversion.policies.policy_target import (
    CONV1D,
    EXPERTS,
    LEAVE,
    LINEAR,
    Choice,
    Decided,
    Expressible,
    NotExpressible,
    Offer,
    PolicyTarget,
    as_comments,
)
from altgrad.conversion.policies.te import te_offers
from altgrad.nn.places import RulePlace, Spot
from altgrad.nn.slots import LayerPrecision

COMMIT = "d98e8a64ddf34856e74b24714e3bedb2f5a39553"
PLAIN = {
    "recipe.Float8CurrentScaling({format}, use_power_2_scales=False)": {"fp8_quantization_recipe": "tensorwise"},
    "recipe.Float8BlockScaling({format}, use_f32_scales=False, x_block_scaling_dim=1, w_block_scaling_dim=2, "
    "grad_block_scaling_dim=1)": {"fp8_quantization_recipe": "blockwise"},
    "recipe.MXFP8BlockScaling({format}, enable_2d_quantization=False)": {"fp8_quantization_recipe": "mxfp8"},
    "recipe.NVFP4BlockScaling(disable_rht=False, disable_stochastic_rounding=False, disable_2d_quantization=False, "
    "nvfp4_4over6='none')": {"fp4_quantization_recipe": "nvfp4"},
}
"""Transformer Engine's recipes as Megatron makes them, and what its configs call them."""
FORMATS = {"E4M3": "e4m3", "HYBRID": "hybrid"}
OUT = ("down_proj", "down", "w2", "fc2", "c_proj", "lin2", "fc_out", "dense_4h_to_h", "wo", "output.dense")
IN = (
    "gate_proj", "up_proj", "gate_up_proj", "gate", "up", "w1", "w3", "fc1", "c_fc", "lin1", "fc_in", "dense_h_to_4h",
    "wi", "wi_0", "wi_1", "intermediate.dense",
)  # fmt: skip
"""How libraries name the layers of an MLP that Megatron calls linear_fc2 and linear_fc1."""
QKV = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "qkv",
    "q",
    "k",
    "v",
    "query",
    "key",
    "value",
    "c_attn",
    "query_key_value",
)
"""And those of attention that it calls linear_qkv; others, such as those of latent attention, have no place there."""
INSIDE = {
    "attention": ("self_attention.linear_*",),
    "attention_output": ("self_attention.linear_proj",),
    "experts": ("mlp.experts.*linear_fc*",),
    "mlp": ("mlp.linear_fc*", "mlp.shared_experts.linear_fc*"),
}
"""What a place inside the blocks holds."""
INSIDE["body"] = tuple(name for place in ("attention", "mlp", "experts") for name in INSIDE[place])


class MegatronTarget(PolicyTarget):
    """Megatron-LM's precision of single modules."""

    name: ClassVar[str] = "megatron"
    page: ClassVar[str] = (
        f"https://github.com/NVIDIA/Megatron-LM/blob/{COMMIT}/megatron/core/extensions/"
        "TransformerEngineMixedPrecision.md"
    )
    layers: ClassVar[tuple[str, ...]] = (LINEAR, CONV1D, EXPERTS)

    def offers(self, wanted: LayerPrecision) -> Iterable[Offer]:
        for offer in te_offers(wanted):
            found = _in_megatron(offer.made)
            never = "" if found else f"Megatron's configs have no {offer.name} scaling with these choices"
            yield Offer(offer.name, json.dumps(found), offer.rule, offer.multiple, never=offer.never or never)

    def notes(self, choices: Sequence[Choice]) -> list[str]:
        numbers = "Megatron numbers layers from 0 in each pipeline stage; patterns with numbers hold in one stage."
        return [*super().notes(choices), numbers]

    def text(self, expressible: Expressible) -> str:
        recipes = {"bf16": {}} | {key: json.loads(made) for made, key in expressible.keys.items()}
        configs = {
            key: {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": recipe}
            for key, recipe in recipes.items()
        }
        found = _patterns(expressible) if expressible.blocks is None else _by_module(expressible)
        matchers = {}
        for number, (pattern, key) in enumerate([*found, ("*", "bf16")]):
            matchers[f"{number:03d}_{key}"] = {"config": key, "type": "glob", "pattern": pattern, "enabled": True}
        data = {"configs": configs, "matchers": matchers}
        return as_comments(expressible.head) + yaml.safe_dump(data, sort_keys=False, width=120)


def _in_megatron(made: str) -> dict[str, Any] | None:
    """What Megatron's configs call a recipe of Transformer Engine; None where they have none such."""
    inner = made.removeprefix("with_scales(").partition(", power_of_two=")[0]
    for plain, recipe in PLAIN.items():
        for form, word in FORMATS.items():
            if inner == plain.format(format=f"fp8_format=recipe.Format.{form}"):
                chosen = {"fp8_format": word} if "fp8_quantization_recipe" in recipe else {}
                return {**recipe, **chosen, "override_nonquantized_autocast": True}
    return None


def _by_module(expressible: Expressible) -> Iterator[tuple[str, str]]:
    """A pattern for each of Megatron's modules that is cast; one for all blocks where they agree."""
    found: dict[str, dict[int, tuple[str | None, Decided]]] = {}
    stacks = {re.split(r"\.\d+(?:\.|$)", c.decided.name)[0]: c for c in expressible.choices if _block(c) is not None}
    if len(stacks) > 1:
        raise NotExpressible(
            list(stacks.values())[-1].decided, f"the model has {len(stacks)} stacks of blocks; {LEAVE}"
        )
    for choice in expressible.choices:
        decided, key = choice.decided, expressible.key(choice)
        module = _module(decided, key is not None)
        if module is None:
            continue
        block = _block(choice)
        assert block is not None
        before, other = found.setdefault(module, {}).setdefault(block, (key, decided))
        if before != key:
            raise NotExpressible(
                decided, f"Megatron joins it and {other.name} to {module}, and they are cast differently; cast them "
                "alike, or take another target.",
            )  # fmt: skip
    for module, blocks in found.items():
        keys = {key for key, _ in blocks.values()}
        if len(keys) == 1 and len(blocks) == expressible.blocks:
            (only,) = keys
            yield from [(f"*decoder.layers.*.{module}", only)] if only is not None else []
        else:
            for block, (key, _) in blocks.items():
                yield from [(f"*decoder.layers.{block}.{module}", key)] if key is not None else []


def _block(choice: Choice) -> int | None:
    spot = choice.decided.spot
    return None if spot is None else spot.block


def _module(decided: Decided, cast: bool) -> str | None:
    """What a layer belongs to in a block of Megatron; None for what it has elsewhere, which it casts nowhere."""
    spot = decided.spot
    part = "" if spot is None else spot.part
    if spot is None or spot.block is None or part not in ("attention", "mlp", "experts"):
        if cast:
            what = f"is in {part}" if part else "is outside of the blocks"
            raise NotExpressible(decided, f"it {what}, where Megatron casts nothing; {LEAVE}")
        return None
    which = _leaf(decided.name, spot)
    if which is None:
        if not cast:
            return None
        raise NotExpressible(decided, f"which module of Megatron's it belongs to is not known by its name; {LEAVE}")
    if part == "attention":
        return f"self_attention.{which}"
    within = "experts.*" if part == "experts" else "shared_experts." if "shared" in decided.name else ""
    return f"mlp.{within}{which}"


def _leaf(name: str, spot: Spot) -> str | None:
    """What Megatron calls the layer inside attention, an MLP or an expert; None where the name does not say."""
    parts = [part for part in name.split(".") if not part.isdecimal()]
    if spot.part == "attention":
        return "linear_proj" if spot.is_output else "linear_qkv" if parts[-1] in QKV else None
    for ending in (".".join(parts[-2:]), parts[-1]):
        if ending in OUT or ending in IN:
            return "linear_fc2" if ending in OUT else "linear_fc1"
    return None


def _patterns(expressible: Expressible) -> Iterator[tuple[str, str]]:
    """Those of a policy's places, in its order."""
    for choice in expressible.choices:
        decided, key = choice.decided, expressible.key(choice)
        if decided.place is None:
            raise NotExpressible(decided, "its names are those of another model than Megatron's; give --model.")
        place = RulePlace.parse(decided.place)
        if place.name not in INSIDE:
            if key is None:
                continue
            raise NotExpressible(decided, f"Megatron casts nothing in {place.name}; {LEAVE}")
        if place.end is not None and (place.end == "last" or place.count.endswith("%")):
            raise NotExpressible(decided, "it counts a model's blocks; give --model.")
        blocks = ["*"] if place.end is None else [str(number) for number in range(int(place.count))]
        for block in blocks:
            for inside in INSIDE[place.name]:
                yield f"*decoder.layers.{block}.{inside}", key or "bf16"
