"""Attention whose products run on cast operands: softmax(q k^T) v written out, with casts between its products.

The slots are those of `altgrad.nn.attention_slots`. Where a module's attention has casts it has a child,
`attention_products`, that computes it; where none has, torch's fused `scaled_dot_product_attention` runs as ever. A
fused kernel never shows its probabilities, so nothing can be cast within it.

Scores and softmax are float32 whatever the compute dtype, as they are inside fused kernels, and what is not cast enters
the next product in the compute dtype, as there, too. Softmax is formed from the rounded queries and keys, its gradient
from the probabilities before their cast. Grouped queries lie below one another in the products of the key they share,
so nothing is repeated, and the sum over a group is part of the product that gives the key's gradient.

In a compiled graph softmax and its gradient are operators, as eager computes them: a compiler's own sums and exponents
differ in last bits, from which casts make whole steps. Dropout is refused: what it draws would differ between the two.
"""

import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from altgrad.nn.attention_slots import AXES, ROLES, AttentionSpec, Slot
from altgrad.nn.products import as_matrix, matmul, rounded, shaped
from altgrad.quantize import Quantizer
from altgrad.quantize.gradient import multiplied
from altgrad.quantize.grid import require_castable
from altgrad.quantize.parts import Axis
from altgrad.quantize.passes import backward_counts, counts, refuse_transforms
from altgrad.quantize.traced import held

CHILD = "attention_products"
"""The child of a module that computes its attention."""


class QuantizedAttention(nn.Module):
    """The products of one module's attention. site: the module's name, `<site>/<operand>` is that of a cast.

    query [batch, heads, time, n], key and value [batch, groups, keys, .], heads a multiple of groups; float32, bf16 or
    fp16. ValueError for dropout and for a mask that is learnt.
    """

    recording = True
    """Whether training passes count; see `altgrad.nn.replay.unrecorded`."""
    uncounted = False
    off = False
    """Whether attention is computed as if there were no casts; see `altgrad.nn.replay.casts_off`."""

    def __init__(self, spec: AttentionSpec, site: str, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.slot_casts: dict[Slot, Quantizer] = {}
        made: dict[str, nn.Module] = {}
        for name, (cast, slots) in spec.casts().items():
            try:
                quantizer = Quantizer(cast, f"{site}/{name}", ROLES[slots[0][1]], seed=seed)
            except ValueError as error:
                raise ValueError(f"{site}, attention.{name}: {error}") from None
            made[name.replace(".", "_")] = quantizer
            self.slot_casts.update(dict.fromkeys(slots, quantizer))
        self.casts = nn.ModuleDict(made)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False,
        scale: float | None = None, dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """softmax(scale q k^T + mask) v, [batch, heads, time, .]. mask: bool, True where a key is looked at, or what is
        added; it broadcasts. scale: None for 1 / sqrt(n). A query that looks at nothing gives 0."""
        refuse_transforms("attention with casts")
        if dropout:
            raise ValueError(f"attention has dropout {dropout:g} and casts, which do not go together; set it to 0.")
        if mask is not None and mask.requires_grad:
            raise ValueError("attention has a mask (or position bias) that is learnt, to which its casts give nothing.")
        for x in (query, key, value):
            require_castable(x)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        live = counts(self), backward_counts(self)
        products = typing.cast(Any, _Products)
        return typing.cast(Tensor, products.apply(query, key, value, mask, self, live, causal, scale))

    def operand(self, name: str, x: Tensor, live: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
        """x [batch, heads, tokens, n] as each product wants it, in `dtype` or, where that does not hold every value of
        its cast, in float32; and what its gradient is multiplied with (None: 1 throughout)."""
        made: dict[Quantizer | None, Tensor] = {}
        factor: Tensor | None = None
        values: dict[str, Tensor] = {}
        for (product, operand), axis in AXES.items():
            if operand != name:
                continue
            quantizer = self.slot_casts.get((product, operand))
            if quantizer not in made:
                if quantizer is None:
                    made[None] = x.to(dtype)
                else:
                    inner = dtype if quantizer.spec.fits(dtype) else torch.float32
                    turned = held(x if axis == "last" else x.mT)
                    cast, found = quantizer.values_and_factor(as_matrix(turned), live, inner)
                    made[quantizer] = _as_it_lay(cast, turned, axis)
                    if found is not None and product in ("scores", "output"):  # a slope is forward's alone
                        factor = _as_it_lay(found, turned, axis)
            values[product] = made[quantizer]
        return values, factor

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"casts={', '.join(self.spec.casts())}"


def _as_it_lay(x: Tensor, turned: Tensor, axis: Axis) -> Tensor:
    """Rows of what was cast, in the shape that they were taken from."""
    x = x.reshape(turned.shape)
    return x if axis == "last" else x.mT


def products_of(module: nn.Module) -> QuantizedAttention | None:
    """What computes this module's attention, if that has casts."""
    found = module._modules.get(CHILD)
    return found if isinstance(found, QuantizedAttention) and not found.off else None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, casts: QuantizedAttention,
        live: tuple[bool, bool], causal: bool, scale: float,
    ) -> Tensor:  # fmt: skip
        device = query.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
        batch, heads, time, _ = query.shape
        fold = _folding(batch, key.shape[1])
        q, q_factor = casts.operand("query", query, live[0], dtype)
        k, k_factor = casts.operand("key", key, live[0], dtype)
        v, v_factor = casts.operand("value", value, live[0], dtype)
        scores = matmul(fold(q["scores"]), fold(k["scores"]).mT, torch.float32)
        scores = scores.reshape(batch, heads, time, key.shape[2])
        soft = torch.ops.altgrad.softmax if torch.compiler.is_compiling() else _softmax
        whole = soft(scores, mask, causal, scale)
        p, p_factor = casts.operand("probabilities", whole, live[0], dtype)
        ctx.casts, ctx.live, ctx.dtype, ctx.scale = casts, live[1], dtype, scale
        ctx.types = query.dtype, key.dtype, value.dtype
        ctx.factors = q_factor, k_factor, v_factor, p_factor
        ctx.save_for_backward(whole, p["grad_value"], q["grad_key"], k["grad_query"], v["grad_probabilities"])
        made = matmul(fold(p["output"]), fold(v["output"]), dtype)
        return shaped(made, (batch, heads, time, value.shape[3]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        whole, p, q, k, v = ctx.saved_tensors
        q_factor, k_factor, v_factor, p_factor = ctx.factors
        batch, groups, dtype = len(q), k.shape[1], ctx.dtype
        fold = _folding(batch, groups)
        g, _ = ctx.casts.operand("grad_output", grads[0], ctx.live, dtype)
        dv = matmul(fold(p).mT, fold(g["grad_value"]), dtype)
        dp = matmul(fold(g["grad_probabilities"]), fold(v).mT, torch.float32).reshape(whole.shape)
        soft = torch.ops.altgrad.softmax_gradient if torch.compiler.is_compiling() else _softmax_gradient
        ds, _ = ctx.casts.operand("grad_scores", soft(multiplied(dp, p_factor), whole), ctx.live, dtype)
        dq = matmul(fold(ds["grad_query"]), fold(k), torch.float32) * ctx.scale
        dk = matmul(fold(ds["grad_key"]).mT, fold(q), torch.float32) * ctx.scale
        made = []
        for x, like, factor, its in zip(
            (dq, dk, dv), (q, k, v), (q_factor, k_factor, v_factor), ctx.types, strict=True
        ):
            x = x.reshape(like.shape)
            made.append(rounded(multiplied(x, factor), its))
        return *made, None, None, None, None, None


def _folding(batch: int, groups: int) -> Callable[[Tensor], Tensor]:
    """[batch, heads, tokens, n] to [batch * groups, heads / groups * tokens, n]: a group's queries as one matrix."""

    def fold(x: Tensor) -> Tensor:
        return x.reshape(batch * groups, x.shape[1] // groups * x.shape[2], x.shape[3])

    return fold


def _softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """The probabilities, float32; 0 in a row without a key to look at."""
    scores = scores * scale
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores.masked_fill_(ahead, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    none = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(scores, -1).masked_fill_(none, 0.0)


def _softmax_gradient(gradient: Tensor, probabilities: Tensor) -> Tensor:
    return torch._softmax_backward_data(gradient, probabilities, -1, torch.float32)


@torch.library.custom_op("altgrad::softmax", mutates_args=())
def _softmax_operator(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """`_softmax` in a compiled graph."""
    return _softmax(scores, mask, causal, scale)


@torch.library.custom_op("altgrad::softmax_gradient", mutates_args=())
def _softmax_gradient_operator(gradient: Tensor, probabilities: Tensor) -> Tensor:
    """`_softmax_gradient` in a compiled graph."""
    return _softmax_gradient(gradient.contiguous(), probabilities.contiguous())


@_softmax_operator.register_fake
def _(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    return torch.empty_like(scores)


@_softmax_gradient_operator.register_fake
def _(gradient: Tensor, probabilities: Tensor) -> Tensor:
    return torch.empty(gradient.shape, dtype=gradient.dtype, device=gradient.device)
