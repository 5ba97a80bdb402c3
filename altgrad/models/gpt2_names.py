"""The names and layouts of GPT-2's weights, translated to our decoder's.

GPT-2 at Hugging Face and nanoGPT use the same names; they differ in layout. Hugging Face keeps the four projections of
a block as `Conv1D` weights, [in, out]; nanoGPT as Linear weights, [out, in]. Which it is shows in the fused projection,
the only one that is never square: [width, 3 width] or [3 width, width].
"""

import re
from collections.abc import Mapping

from torch import Tensor

_OUTSIDE = {"wte": "embed", "wpe": "positions", "ln_f": "norm"}
_INSIDE = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.proj",
    "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
}  # fmt: skip
_BLOCK = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
_MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def from_gpt2(tensors: Mapping[str, Tensor], *, tied: bool) -> Mapping[str, Tensor]:
    """The same weights under our names and in our layout; tensors that are not GPT-2's come back as they were.

    The causal mask that some versions store is left out, and so is the head where ours is tied. An untied head that the
    file lacks, because it was tied there, is a copy of the embedding.
    """
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    fused = short.get("h.0.attn.c_attn.weight")
    if fused is None or "wte.weight" not in short:
        return tensors
    conv1d = fused.shape[1] == 3 * fused.shape[0]
    found: dict[str, Tensor] = {}
    for name, tensor in short.items():
        stem, _, leaf = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if _MASKS.fullmatch(name) or name == "lm_head.weight":
            continue
        if block is not None and block[2] in _INSIDE:
            is_projection = leaf == "weight" and block[2].rpartition(".")[2].startswith("c_")
            found[f"blocks.{block[1]}.{_INSIDE[block[2]]}.{leaf}"] = tensor.T if conv1d and is_projection else tensor
        else:
            found[f"{_OUTSIDE.get(stem, stem)}.{leaf}"] = tensor
    if not tied:
        found["head.weight"] = short.get("lm_head.weight", short["wte.weight"])
    return found
