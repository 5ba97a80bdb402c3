"""Kind `llama`: a decoder language model as they are built today.

    x = embed(token)
    x = x + attention(norm1(x));  x = x + mlp(norm2(x))      for every block
    logits = head(norm(x))

    norm         RMSNorm (Zhang and Sennrich, arXiv 1910.07467)
    attention    rotary positions (Su et al., arXiv 2104.09864), grouped queries (arXiv 2305.13245), and with `qk_norm`
                 an RMSNorm over each head of queries and keys in front of the rotation, as Qwen3 has it
    mlp          down(act(gate(x)) * up(x)): SwiGLU, or with `gelu` GEGLU (Shazeer, arXiv 2002.05202)

Given the same weights it is transformers' Llama, or Qwen3 with `qk_norm`. It starts as `gpt` does
(`altgrad.models.weights`). There is no dropout and no bias: none of these models has them.

The rotation turns the first half of a head against its second, as transformers' checkpoints have it, not neighbours, as
the paper has it: the weights of one are a permutation of the other's. Its angles are made anew in each pass, once for
all blocks: they cost 1/width of an MLP, and a buffer would have to survive `meta` devices and sharding.
"""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.attention import attention
from altgrad.models.model import ModelSpec
from altgrad.models.weights import draw_weights

__all__ = ["Llama", "LlamaSpec"]

_Count = Annotated[int, Field(ge=1)]
_MULTIPLE = 32

_OUTSIDE = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
_INSIDE = {
    "input_layernorm": "norm1", "self_attn.q_proj": "attention.q", "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v", "self_attn.o_proj": "attention.proj", "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm", "post_attention_layernorm": "norm2", "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
}  # fmt: skip
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def from_transformers(tensors: Mapping[str, Tensor], *, tied: bool) -> Mapping[str, Tensor]:
    """Weights of transformers' Llama under our names; tensors that are not a Llama's come back as they were.

    The head is left out where ours is tied; an untied one that the file lacks, because it was tied there, is a copy of
    the embedding.
    """
    if "model.embed_tokens.weight" not in tensors:
        return tensors
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block is not None and block[2] in _INSIDE:
            found[f"blocks.{block[1]}.{_INSIDE[block[2]]}.weight"] = tensor
        else:
            stem, _, leaf = name.rpartition(".")
            found[f"{_OUTSIDE.get(stem, stem)}.{leaf}"] = tensor
    if tied:
        found.pop("head.weight", None)
    else:
        found.setdefault("head.weight", found["embed.weight"])
    return found


class LlamaSpec(ModelSpec):
    """Sizes of a decoder.

    `tied` makes head and embedding one parameter, which the policy then sees in two roles.
    """

    kind: ClassVar[str] = "llama"

    layers: _Count = 4
    """Blocks."""
    width: _Count = 128
    """Of the residual stream."""
    heads: _Count = 4
    """Attention heads."""
    kv_heads: _Count | None = None
    """Heads of keys and values, a divisor of heads; null: as many as heads."""
    head_width: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Of each head; null: width / heads."""
    hidden: _Count | None = None
    """Inside the MLP; null: 8/3 of width, rounded up to a multiple of 32."""
    context: _Count = 128
    """The most positions the model takes; the data cuts its blocks to it."""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """Of the gate: silu makes the MLP SwiGLU, gelu GEGLU; gelu_tanh is GELU's approximation."""
    qk_norm: bool = False
    """An RMSNorm of each head's queries and keys."""
    theta: Annotated[float, Field(gt=0)] = 10000.0
    """The base of the rotary angles; long contexts have larger ones."""
    eps: Annotated[float, Field(gt=0)] = 1e-5
    """What norms add to the mean square."""
    tied: bool = False
    """Head and embedding are one parameter, which the policy then sees in two roles."""

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def per_head(self) -> int:
        """The width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def inner(self) -> int:
        """The width inside the MLP."""
        return -(-8 * self.width // (3 * _MULTIPLE)) * _MULTIPLE if self.hidden is None else self.hidden

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose sizes that divide, or say "
                "head_width."
            )
        if self.per_head % 2:
            raise ValueError(
                f"heads are {self.per_head} wide, and rotary positions turn pairs; make width / heads (or head_width) "
                "even."
            )
        if self.heads % self.groups:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.groups}; each key serves equally many queries."
            )
        return self

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Also knows the names of transformers' Llama; see `altgrad.models.llama`."""
        return from_transformers(tensors, tied=self.tied)


def angles(time: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 `[time, width]`, of what positions 0 to time - 1 turn each pair of a head by.

    Pair i turns by position / theta^(2 i / width); both halves of a head have the same angles.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    turn = torch.outer(torch.arange(time, dtype=torch.float32, device=device), 1.0 / theta ** (pairs / width))
    both = torch.cat([turn, turn], dim=-1)
    return both.cos(), both.sin()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x `[..., time, width]` turned, in its own dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = x * cosine + torch.cat([-second, first], dim=-1) * sine
    return turned.to(x.dtype)


class LlamaAttention(nn.Module):
    """Causal self-attention with rotary positions and grouped queries, `[batch, time, width]` to the same."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.per_head = spec.per_head
        self.q = nn.Linear(spec.width, spec.heads * spec.per_head, bias=False)
        self.k = nn.Linear(spec.width, spec.groups * spec.per_head, bias=False)
        self.v = nn.Linear(spec.width, spec.groups * spec.per_head, bias=False)
        self.proj = nn.Linear(spec.heads * spec.per_head, spec.width, bias=False)
        norms = [nn.RMSNorm(spec.per_head, spec.eps) if spec.qk_norm else nn.Identity() for _ in range(2)]
        self.q_norm, self.k_norm = norms

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Position t attends to positions 0..t."""
        batch, time, _ = x.shape
        q, k, v = (layer(x).view(batch, time, -1, self.per_head) for layer in (self.q, self.k, self.v))
        q = rotated(self.q_norm(q).transpose(1, 2), cosine, sine)
        k = rotated(self.k_norm(k).transpose(1, 2), cosine, sine)
        mixed = attention(q, k, v.transpose(1, 2), causal=True)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.width, spec.inner, bias=False)
        self.up = nn.Linear(spec.width, spec.inner, bias=False)
        self.down = nn.Linear(spec.inner, spec.width, bias=False)
        self.activation = spec.activation

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        out: Tensor = self.down(activated(self.gate(x), self.activation) * self.up(x))
        return out


def activated(x: Tensor, activation: str) -> Tensor:
    """The activation of that name."""
    if activation == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class LlamaBlock(nn.Module):
    """One pre-norm block: attention, then MLP, each added to the residual stream."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(spec.width, spec.eps)
        self.attention = LlamaAttention(spec)
        self.norm2 = nn.RMSNorm(spec.width, spec.eps)
        self.mlp = GatedMLP(spec)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """`[batch, time, width]` to the same."""
        x = x + self.attention(self.norm1(x), cosine, sine)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Llama(nn.Module):
    """The module that `Llama.build` returns: int64 tokens `[batch, time]` to logits `[batch, time, outputs]`.

    Module names are fixed, policies and pictures rely on them: `embed`, `blocks.<i>.norm1`,
    `blocks.<i>.attention.{q, k, v, proj}` (and `q_norm`, `k_norm`), `blocks.<i>.norm2`, `blocks.<i>.mlp.{gate, up,
    down}`, `norm`, `head`.
    """

    def __init__(self, spec: LlamaSpec, vocabulary: int, outputs: int) -> None:
        super().__init__()
        if spec.tied and outputs != vocabulary:
            raise ValueError(f"a tied head gives {vocabulary} outputs, the data wants {outputs}; set tied: false.")
        self.context, self.theta, self.per_head = spec.context, spec.theta, spec.per_head
        self.embed = nn.Embedding(vocabulary, spec.width)
        self.blocks = nn.ModuleList(LlamaBlock(spec) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.width, spec.eps)
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
        x = self.embed(inputs)
        cosine, sine = angles(time, self.per_head, self.theta, inputs.device)
        for block in self.blocks:
            x = block(x, cosine, sine)
        logits: Tensor = self.head(self.norm(x))
        return logits
