"""Kind `encoder`: a bidirectional encoder that answers once for a text, in the shape of `gpt`.

    x = (embed(token) + positions(index)) * mask
    x = x + attention(norm1(x)) ;  x = x + mlp(norm2(x))      for every block
    logits = classifier(pool(norm(x)))

Attention looks both ways (BERT, arXiv 1810.04805) and never at padding; blocks are pre-norm, without biases unless
asked for, and start at the decoder's N(0, 0.02). `pooling: mean` averages over a text's tokens, `first` takes the first
one, which every tokenizer here makes the same for all texts. The head is called `classifier`, as rank alarms expect
(`altgrad.monitors.rank`).

Padding is zero all through: where embeddings and what attention mixes are masked and there are no biases, every operand
of every Linear is exactly 0 there, and so is its gradient. A zero enters no amax and no underflow rate, so casts and
counters see texts alone. With `bias: true` padding has values, as in any encoder of BERT's kind.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from altgrad.models.attention import attention
from altgrad.models.gpt import GPTBlock
from altgrad.models.model import Answers, ModelSpec
from altgrad.models.weights import draw_weights

__all__ = ["Encoder", "EncoderSpec", "pooled"]

_Count = Annotated[int, Field(ge=1)]


class EncoderSpec(ModelSpec):
    """Sizes of an encoder; as those of `gpt`, and `pooling`: which token or tokens answer for the text."""

    kind: ClassVar[str] = "encoder"

    layers: _Count = 4
    """How many blocks the model has."""
    width: _Count = 128
    """Width of the residual stream, in elements; the MLP is four times as wide."""
    heads: _Count = 4
    """Attention heads, each width / heads wide."""
    context: _Count = 128
    """The most tokens the model takes; the data cuts its blocks to it."""
    pooling: Literal["mean", "first"] = "mean"
    """Which token or tokens answer for the text."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share (0 to 1) set to 0 of attention weights and of what each sublayer adds to the residual stream."""
    bias: bool = False
    """Whether linear layers and norms have one."""
    gelu: Literal["exact", "tanh"] = "exact"
    """tanh is GPT-2's approximation."""

    @property
    def answers(self) -> Answers:
        return "text"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose sizes that divide.")
        return self


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """`[batch, time, width]` to `[batch, width]`: the mean over positions where mask is true, or the first position.

    A row without any token has a mean of 0.
    """
    if pooling == "first":
        return states[:, 0]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class EncoderAttention(nn.Module):
    """Multi-head self-attention that looks both ways, at tokens only."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.dropout = spec.dropout
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=spec.bias)
        self.proj = nn.Linear(spec.width, spec.width, bias=spec.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: bool `[batch, time]`, true at tokens."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        # A bias and no boolean mask: a row of padding alone would be a softmax over nothing, NaN, and its gradient too.
        hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        mixed = attention(self, q, k, v, causal=False, mask=hidden[:, None, None, :], dropout=dropout)
        mixed = mixed.transpose(1, 2).reshape(batch, time, width) * mask.unsqueeze(-1).to(mixed.dtype)
        out: Tensor = self.proj(mixed)
        return out


class Encoder(nn.Module):
    """The module that `Encoder.build` returns: int64 `[batch, time]`, below 0 for padding, to `[batch, outputs]`.

    Module names are fixed: `embed`, `positions`, `blocks.<i>.{norm1, attention.qkv, attention.proj, norm2, mlp.up,
    mlp.down}`, `norm`, `classifier`.
    """

    def __init__(self, spec: EncoderSpec, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.context, self.pooling = spec.context, spec.pooling
        self.embed = nn.Embedding(vocabulary, spec.width)
        self.positions = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(GPTBlock(spec, EncoderAttention(spec)) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width, bias=spec.bias)
        self.classifier = nn.Linear(spec.width, outputs)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every weight afresh from the global torch generator; also what an encoder moved off `meta` needs."""
        draw_weights(self, len(self.blocks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of every label. `time` may be 1 to `context`; more is a ValueError."""
        time = inputs.shape[1]
        if time > self.context:
            raise ValueError(f"{time} tokens are longer than the model's context of {self.context}.")
        mask = inputs >= 0
        x = self.embed(inputs.clamp(min=0)) + self.positions(torch.arange(time, device=inputs.device))
        x = x * mask.unsqueeze(-1).to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.classifier(pooled(self.norm(x), mask, self.pooling))
        return logits
