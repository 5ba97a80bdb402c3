"""The weights of transformers' Llama, Mixtral, Qwen3 and Qwen3Moe under our names, and ours under theirs.

    model.embed_tokens                          embed
    model.layers.I.self_attn.{q,k,v}_proj       blocks.I.attention.{q,k,v}
    model.layers.I.mlp.gate_proj                blocks.I.mlp.gate            and so on, _INSIDE
    model.layers.I.mlp.gate                     blocks.I.router
    model.layers.I.mlp.experts.gate_up_proj     blocks.I.experts.gate, .up   [experts, 2 out, in] in two halves
    model.layers.I.mlp.experts.down_proj        blocks.I.experts.down

Files have a matrix for each expert instead, `block_sparse_moe.experts.E.w1` (Mixtral) or `mlp.experts.E.gate_proj`
(Qwen3Moe), which are stacked.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_transformers", "to_transformers"]

_OUTSIDE = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
_INSIDE = {
    "input_layernorm": "norm1", "self_attn.q_proj": "attention.q", "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v", "self_attn.o_proj": "attention.proj", "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm", "post_attention_layernorm": "norm2", "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down", "mlp.gate": "router",
}  # fmt: skip
_ROUTER = "block_sparse_moe.gate"
_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
_OURS = re.compile(r"blocks\.(\d+)\.(.+)")


def from_transformers(tensors: Mapping[str, Tensor], *, tied: bool) -> Mapping[str, Tensor]:
    """The same weights under our names; tensors that are none of these models' come back as they were.

    The head is left out where ours is tied; an untied one that the file lacks, because it was tied there, is a copy of
    the embedding.
    """
    if "model.embed_tokens.weight" not in tensors:
        return tensors
    found: dict[str, Tensor] = {}
    apart: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            stem, _, leaf = name.rpartition(".")
            found[f"{_OUTSIDE.get(stem, stem)}.{leaf}"] = tensor
            continue
        at, inside = f"blocks.{block[1]}", block[2]
        expert = _EXPERT.fullmatch(inside)
        stem = inside.removesuffix(".weight").replace(_ROUTER, "mlp.gate")
        if expert is not None and expert[2] in _PARTS:
            apart.setdefault(f"{at}.experts.{_PARTS[expert[2]]}.weight", {})[int(expert[1])] = tensor
        elif inside == "mlp.experts.gate_up_proj":
            found[f"{at}.experts.gate.weight"], found[f"{at}.experts.up.weight"] = tensor.chunk(2, dim=1)
        elif inside == "mlp.experts.down_proj":
            found[f"{at}.experts.down.weight"] = tensor
        else:
            found[f"{at}.{_INSIDE[stem]}.weight" if stem in _INSIDE else name] = tensor
    found |= {name: torch.stack([each[number] for number in sorted(each)]) for name, each in apart.items()}
    if tied:
        found.pop("head.weight", None)
    else:
        found.setdefault("head.weight", found["embed.weight"])
    return found


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of our model under the names that transformers' modules have."""
    outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
    inside = {ours: theirs for theirs, ours in _INSIDE.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = _OURS.fullmatch(name)
        stem, _, leaf = name.rpartition(".")
        if block is None:
            found[f"{outside[stem]}.{leaf}"] = tensor
            continue
        at, part = f"model.layers.{block[1]}", block[2].removesuffix(".weight")
        if part == "experts.gate":
            up = tensors[f"blocks.{block[1]}.experts.up.weight"]
            found[f"{at}.mlp.experts.gate_up_proj"] = torch.cat([tensor, up], dim=1)
        elif part == "experts.down":
            found[f"{at}.mlp.experts.down_proj"] = tensor
        elif part != "experts.up":
            found[f"{at}.{inside[part]}.{leaf}"] = tensor
    return found
