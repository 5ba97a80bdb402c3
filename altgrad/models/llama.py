"""Kind `llama`: a decoder language model as they are built today.

    x = embed(token)
    x = x + attention(norm1(x));  x = x + mlp(norm2(x))      for every block
    logits = head(norm(x))

    norm         RMSNorm (Zhang and Sennrich, arXiv 1910.07467)
    attention    rotary positions (Su et al., arXiv 2104.09864), grouped queries (arXiv 2305.13245), and with `qk_norm`
                 an RMSNorm over each head of queries and keys in front of the rotation, as Qwen3 has it
    mlp          down(act(gate(x)) * up(x)): SwiGLU, or with `gelu` GEGLU (Shazeer, arXiv 2002.05202)
    experts      with `experts: N` and `active: k`, k of N such MLPs for each token (`altgrad.models.mixture`)

Given the same weights it is transformers' Llama or Mixtral, with `qk_norm` Qwen3 or Qwen3Moe. It starts as `gpt` does
(`altgrad.models.weights`). There is no dropout and no bias: none of these models has them.

The rotation turns the first half of a head against its second, as transformers' checkpoints have it, not neighbours, as
the paper has it: the weights of one are a permutation of the other's. Its angles are made anew in each pass, once for
all blocks: they cost 1/width of an MLP, and a buffer would have to survive `meta` devices and sharding.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.attention import attention
from altgrad.models.huggingface import silent_library
from altgrad.models.llama_names import from_transformers, to_transformers
from altgrad.models.mixture import Experts, routed
from altgrad.models.model import ModelSpec
from altgrad.models.weights import draw_weights

__all__ = ["Llama", "LlamaSpec"]

_Count = Annotated[int, Field(ge=1)]
_MULTIPLE = 32


class LlamaSpec(ModelSpec):
    """Sizes of a decoder.

    `tied` makes head and embedding one parameter, which the policy then sees in two roles.
    """

    kind: ClassVar[str] = "llama"

    layers: _Count = 4
    """How many blocks the model has."""
    width: _Count = 128
    """Width of the residual stream, in elements."""
    heads: _Count = 4
    """Attention heads."""
    kv_heads: _Count | None = None
    """Heads of keys and values, a divisor of heads; null: as many as heads."""
    head_width: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    """Width of each head, in elements; null: width / heads."""
    hidden: _Count | None = None
    """Width inside the MLP and each expert, in elements; null: 8/3 of width, rounded up to a multiple of 32."""
    experts: Annotated[int, Field(ge=2)] | None = None
    """MLPs to choose from in each block; null: one, for all tokens."""
    active: Annotated[int, Field(ge=2)] | None = None
    """How many of the experts each token passes."""
    context: _Count = 128
    """The most tokens the model takes; the data cuts its blocks to it."""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    """Activation of the gate: silu makes the MLP SwiGLU, gelu GEGLU; gelu_tanh is GELU's approximation."""
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
        if (self.experts is None) != (self.active is None):
            raise ValueError("experts and active belong together: so many MLPs, and how many of them a token passes.")
        if self.experts is not None and self.active is not None and self.active > self.experts:
            raise ValueError(f"active {self.active} is more than experts {self.experts}; choose fewer.")
        return self

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Also knows the names of transformers' models; see `altgrad.models.llama_names`."""
        return from_transformers(tensors, tied=self.tied)

    def export(self, trained: nn.Module, folder: Path, labels: Sequence[str] | None) -> None:
        """Weights are the parameters as they are kept (float32), before any cast of the forward."""
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; name a folder that is new.")
        state = {name: p.detach().cpu() for name, p in trained.named_parameters()}
        model = self._of_library(len(state["embed.weight"]))
        lacking, unknown = model.load_state_dict(to_transformers(state), strict=False)
        assert not unknown and set(lacking) <= ({"lm_head.weight"} if self.tied else set()), (lacking, unknown)
        model.save_pretrained(folder)

    def _of_library(self, vocabulary: int) -> Any:
        """The model of transformers that this one is, with weights of its own."""
        transformers = silent_library()
        kind = ("Llama", "Mixtral") if not self.qk_norm else ("Qwen3", "Qwen3Moe")
        name = kind[self.experts is not None]
        sizes: dict[str, Any] = {
            "vocab_size": vocabulary, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.groups, "head_dim": self.per_head,
            "hidden_act": self.activation.replace("gelu_tanh", "gelu_pytorch_tanh"), "rms_norm_eps": self.eps,
            "rope_theta": self.theta, "max_position_embeddings": self.context, "tie_word_embeddings": self.tied,
            "moe_intermediate_size" if name == "Qwen3Moe" else "intermediate_size": self.inner,
        }  # fmt: skip
        if self.experts is not None:
            sizes["num_experts" if name == "Qwen3Moe" else "num_local_experts"] = self.experts
            sizes |= {"num_experts_per_tok": self.active, "sliding_window": None}
            sizes |= {"norm_topk_prob": True} if name == "Qwen3Moe" else {}
        config = getattr(transformers, f"{name}Config")(**sizes, use_cache=False)
        return getattr(transformers, f"{name}ForCausalLM")(config).to(torch.float32)


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


class RMSNorm(nn.RMSNorm):
    """torch's, in float32 whatever comes in, which leaves as it came: under autocast queries and keys are bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        return functional.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


class LlamaAttention(nn.Module):
    """Causal self-attention with rotary positions and grouped queries, `[batch, time, width]` to the same."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.per_head = spec.per_head
        self.q = nn.Linear(spec.width, spec.heads * spec.per_head, bias=False)
        self.k = nn.Linear(spec.width, spec.groups * spec.per_head, bias=False)
        self.v = nn.Linear(spec.width, spec.groups * spec.per_head, bias=False)
        self.proj = nn.Linear(spec.heads * spec.per_head, spec.width, bias=False)
        norms = [RMSNorm(spec.per_head, spec.eps) if spec.qk_norm else nn.Identity() for _ in range(2)]
        self.q_norm, self.k_norm = norms

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Position t attends to positions 0..t."""
        batch, time, _ = x.shape
        q, k, v = (layer(x).view(batch, time, -1, self.per_head) for layer in (self.q, self.k, self.v))
        q = rotated(self.q_norm(q).transpose(1, 2), cosine, sine)
        k = rotated(self.k_norm(k).transpose(1, 2), cosine, sine)
        mixed = attention(self, q, k, v.transpose(1, 2), causal=True)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu, "gelu": functional.gelu, "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}  # fmt: skip


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.width, spec.inner, bias=False)
        self.up = nn.Linear(spec.width, spec.inner, bias=False)
        self.down = nn.Linear(spec.inner, spec.width, bias=False)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


class LlamaBlock(nn.Module):
    """One pre-norm block: attention, then MLP or experts, each added to the residual stream."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.active = spec.active
        self.norm1 = RMSNorm(spec.width, spec.eps)
        self.attention = LlamaAttention(spec)
        self.norm2 = RMSNorm(spec.width, spec.eps)
        if spec.experts is None:
            self.mlp = GatedMLP(spec)
        else:
            self.router = nn.Linear(spec.width, spec.experts, bias=False)
            self.experts = Experts(spec.experts, spec.width, spec.inner, ACTIVATIONS[spec.activation])

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """`[batch, time, width]` to the same."""
        x = x + self.attention(self.norm1(x), cosine, sine)
        out: Tensor = x + (self.mlp(self.norm2(x)) if self.active is None else self._mixed(self.norm2(x), self.active))
        return out

    def _mixed(self, x: Tensor, active: int) -> Tensor:
        tokens = x.flatten(0, 1)
        out: Tensor = self.experts(tokens, *routed(tokens, self.router, active))
        return out.view_as(x)


class Llama(nn.Module):
    """The module that `Llama.build` returns: int64 tokens `[batch, time]` to logits `[batch, time, outputs]`.

    Module names are fixed, policies and pictures rely on them: `embed`, `blocks.<i>.norm1`,
    `blocks.<i>.attention.{q, k, v, proj}` (and `q_norm`, `k_norm`), `blocks.<i>.norm2`, `blocks.<i>.mlp.{gate, up,
    down}`, or `blocks.<i>.router` and `blocks.<i>.experts.{gate, up, down}.<expert>`, `norm`, `head`.
    """

    def __init__(self, spec: LlamaSpec, vocabulary: int, outputs: int) -> None:
        super().__init__()
        if spec.tied and outputs != vocabulary:
            raise ValueError(f"a tied head gives {vocabulary} outputs, the data wants {outputs}; set tied: false.")
        self.context, self.theta, self.per_head = spec.context, spec.theta, spec.per_head
        self.embed = nn.Embedding(vocabulary, spec.width)
        self.blocks = nn.ModuleList(LlamaBlock(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.width, spec.eps)
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
