"""Kind `gpt`: a decoder language model in nanoGPT's shape.

    x = embed(token) + positions(index)
    x = x + attention(norm1(x));  x = x + mlp(norm2(x))      for every block
    logits = head(norm(x))

Pre-norm blocks, GELU, learned positions, no biases unless asked for: GPT-2 (Radford et al. 2019) as nanoGPT trains it
(github.com/karpathy/nanoGPT), written anew. Weights start at N(0, 0.02); the two projections that write into the
residual stream start at 0.02 / sqrt(2 * layers), which keeps its variance independent of depth (GPT-2, section 2.3).

The products inside attention are quantised where a rule says so (`attention: {query: ...}`). Else q, k and v go to
`scaled_dot_product_attention` as the `qkv` layer returns them, and softmax(q k^T) v runs in the compute dtype, as
Transformer Engine's recipes have it by default. Rotary positions and gated MLPs were left out: they change the
picture of a layer's numerics, and the reference people know is this shape.

The names and layouts of GPT-2's weights, translated to our decoder's.

GPT-2 at Hugging Face and nanoGPT use the same names; they differ in layout. Hugging Face keeps the four projections of
a block as `Conv1D` weights, [in, out]; nanoGPT as Linear weights, [out, in]. Which it is shows in the fused projection,
the only one that is never square: [width, 3 width] or [3 width, width].
"""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.attention import attention
from altgrad.models.model import ModelSpec
from altgrad.models.weights import draw_weights

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


__all__ = ["GPT", "GPTSpec"]

_Count = Annotated[int, Field(ge=1)]


class GPTSpec(ModelSpec):
    """Sizes of a decoder. `width` is the residual stream's; every head has width / heads; the MLP is 4 * width wide.

    `tied` makes head and embedding one parameter (the policy then sees one weight in two roles, so it is off by
    default). `dropout` applies to attention weights and to what each sublayer adds to the residual stream; its draws
    come from the global torch generator, which the training loop seeds for every micro-batch. `gelu: tanh` is the
    approximation that GPT-2 was trained with.
    """

    kind: ClassVar[str] = "gpt"

    layers: _Count = 4
    """How many blocks the model has."""
    width: _Count = 128
    """Width of the residual stream, in elements; the MLP is four times as wide."""
    heads: _Count = 4
    """Attention heads, each width / heads wide."""
    context: _Count = 128
    """The most tokens the model takes; the data cuts its blocks to it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share (0 to 1) set to 0 of attention weights and of what each sublayer adds to the residual stream."""
    bias: bool = False
    """Whether linear layers and norms have one."""
    tied: bool = False
    """Head and embedding are one parameter, which the policy then sees in two roles."""
    gelu: Literal["exact", "tanh"] = "exact"
    """tanh is the approximation that GPT-2 was trained with."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose sizes that divide.")
        return self

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Also knows the names of GPT-2 at Hugging Face and of nanoGPT; see `altgrad.models.gpt`."""
        return from_gpt2(tensors, tied=self.tied)


class Attention(nn.Module):
    """Causal multi-head self-attention, `[batch, time, width]` to the same."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.dropout = spec.dropout
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=spec.bias)
        self.proj = nn.Linear(spec.width, spec.width, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Position t attends to positions 0..t."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(self, q, k, v, causal=True, dropout=dropout)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, time, width))
        return out


class Widths(Protocol):
    """What a block has to know of its model's spec."""

    @property
    def width(self) -> int:
        """Width of the residual stream, in elements."""

    @property
    def bias(self) -> bool:
        """Whether linear layers have one."""

    @property
    def gelu(self) -> str:
        """`exact` or `tanh`."""

    @property
    def dropout(self) -> float:
        """Of what each sublayer adds to the residual stream."""


class MLP(nn.Module):
    """down(gelu(up(x))), four times as wide inside."""

    def __init__(self, spec: Widths) -> None:
        super().__init__()
        self.up = nn.Linear(spec.width, 4 * spec.width, bias=spec.bias)
        self.down = nn.Linear(4 * spec.width, spec.width, bias=spec.bias)
        self.approximate = "tanh" if spec.gelu == "tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        out: Tensor = self.down(functional.gelu(self.up(x), approximate=self.approximate))
        return out


class GPTBlock(nn.Module):
    """One pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, spec: Widths, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.width, bias=spec.bias)
        self.attention = attention
        self.norm2 = nn.LayerNorm(spec.width, bias=spec.bias)
        self.mlp = MLP(spec)
        self.dropout = spec.dropout

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        """`[batch, time, width]` to the same; what else is given goes to attention."""
        x = x + functional.dropout(self.attention(self.norm1(x), *given), self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.norm2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """The module that `GPT.build` returns: int64 tokens `[batch, time]` to logits `[batch, time, outputs]`.

    Module names are fixed, policies and pictures rely on them: `embed`, `positions`, `blocks.<i>.norm1`,
    `blocks.<i>.attention.qkv`, `blocks.<i>.attention.proj`, `blocks.<i>.norm2`, `blocks.<i>.mlp.up`,
    `blocks.<i>.mlp.down`, `norm`, `head`.
    """

    def __init__(self, spec: GPTSpec, vocabulary: int, outputs: int) -> None:
        super().__init__()
        if spec.tied and outputs != vocabulary:
            raise ValueError(f"a tied head gives {vocabulary} outputs, the data wants {outputs}; set tied: false.")
        self.context = spec.context
        self.embed = nn.Embedding(vocabulary, spec.width)
        self.positions = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(GPTBlock(spec, Attention(spec)) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width, bias=spec.bias)
        self.head = nn.Linear(spec.width, outputs, bias=False)
        if spec.tied:
            self.head.weight = self.embed.weight
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every weight afresh from the global torch generator; also what a decoder moved off `meta` needs."""
        draw_weights(self, len(self.blocks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits for the token after each position. `time` may be 1 to `context`; more is a ValueError."""
        time = inputs.shape[1]
        if time > self.context:
            raise ValueError(f"{time} tokens are longer than the model's context of {self.context}.")
        x = self.embed(inputs) + self.positions(torch.arange(time, device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
