"""QuantizedLinear: three products, six slots.

    y  = Q(x) @ Q(W).T + b        dx = Q(g) @ Q(W)        dW = Q(g).T @ Q(x)        db = sum of g

Each Q is the cast of its slot, or nothing. What backward multiplies by is the *rounded* operand that forward used (or
the slot's own cast), never the restored full-precision one; the bias gradient comes from the unrounded g. All casts of
x and W are made in forward, so that the order of events does not depend on autograd's schedule.

The three products are one autograd Function because the slots of a product are its own: composing straight-through
casts around F.linear can only express one cast per operand.
"""

import typing
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad.nn.policy import LayerPrecision, Operand, Product, reduced_axis
from altgrad.quantize import Quantizer
from altgrad.quantize.quantizer import Axis, Role


class QuantizedLinear(nn.Linear):
    """A Linear whose products run on cast operands.

    precision: what each slot is cast to. site: the module's name, which names its casts (`<site>/<operand>`) and keys
    their random bits. Input [..., in_features] in float32, bf16 or fp16; under autocast the products run in its dtype.
    """

    casts: nn.ModuleDict
    precision: LayerPrecision
    slot_casts: dict[tuple[Product, Operand], Quantizer]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        precision: LayerPrecision,
        site: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.attach(precision, site, seed)

    def attach(self, precision: LayerPrecision, site: str, seed: int) -> None:
        """Give a Linear that has become a QuantizedLinear its casts. Raises ValueError naming the slot at fault."""
        made: dict[str, Quantizer] = {}
        self.precision, self.slot_casts = precision, {}
        for name, (spec, slots) in precision.casts().items():
            operand, axis = slots[0][1], reduced_axis(slots)
            try:
                quantizer = Quantizer(
                    spec, f"{site}/{name}" if site else name, cast(Role, operand), seed=seed,
                    rows=self._rows(operand, axis), reduced=axis,
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"{site}, {name}: {error}") from None
            made[name.replace(".", "_")] = quantizer.to(self.weight.device).train(self.training)
            self.slot_casts.update(dict.fromkeys(slots, quantizer))
        self.casts = nn.ModuleDict(made)

    def _rows(self, operand: Operand, axis: Axis) -> int | None:
        """How many slices an operand has along its reduced axis; None for tokens, whose number varies."""
        across = {"weight": (self.out_features, self.in_features), "input": (None, self.in_features)}
        return across.get(operand, (None, self.out_features))[axis == "first"]

    def forward(self, input: Tensor) -> Tensor:
        """y [..., out_features]."""
        live = self.training and torch.is_grad_enabled()
        return typing.cast(Tensor, _Products.apply(input, self.weight, self.bias, self, live))

    def operands(
        self, x: Tensor, name: Operand, live: bool, dtype: torch.dtype
    ) -> tuple[dict[Product, Tensor], Tensor | None]:
        """x as each product wants it, in `dtype`, and the mask of a clipped straight-through gradient (None: all pass).

        Each distinct cast is made once.
        """
        made: dict[Quantizer | None, Tensor] = {}
        masks: list[Tensor] = []
        found: dict[Product, Tensor] = {}
        for product, operand in self.precision.slots:
            if operand != name:
                continue
            quantizer = self.slot_casts.get((product, operand))
            if quantizer not in made:
                if quantizer is None:
                    made[None] = x.to(dtype)
                else:
                    _fits(quantizer, dtype)
                    made[quantizer], mask = quantizer.values_and_mask(x, live, dtype)
                    masks += [] if mask is None else [mask]
            found[product] = made[quantizer]
        return found, torch.stack(masks).all(0) if masks else None

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{super().extra_repr()}, casts={', '.join(self.precision.casts()) or 'none'}"


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: QuantizedLinear, live: bool) -> Tensor:
        device = x.device.type
        auto = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if auto else x.dtype
        inputs, ctx.input_mask = layer.operands(x.reshape(-1, x.shape[-1]), "input", live, dtype)
        weights, ctx.weight_mask = layer.operands(weight, "weight", live, dtype)
        ctx.layer, ctx.live, ctx.dtype = layer, live, dtype
        ctx.types = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(inputs["grad_weight"], weights["grad_input"])
        with torch.autocast(device, enabled=False):
            y = F.linear(inputs["forward"], weights["forward"], None if bias is None else bias.to(dtype))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        found, _ = ctx.layer.operands(grad, "grad_output", ctx.live, ctx.dtype)
        dx = dw = db = None
        if wants_input:
            dx = _masked(found["grad_input"] @ weight, ctx.input_mask).to(ctx.types[0])
            dx = dx.view(*grads[0].shape[:-1], -1)
        if wants_weight:
            dw = _masked(found["grad_weight"].T @ x, ctx.weight_mask).to(ctx.types[1])
        if wants_bias and ctx.types[2] is not None:
            db = grad.sum(0).to(ctx.types[2])
        return dx, dw, db, None, None


def _masked(gradient: Tensor, mask: Tensor | None) -> Tensor:
    return gradient if mask is None else torch.where(mask, gradient, 0)


def _fits(quantizer: Quantizer, dtype: torch.dtype) -> None:
    """Refuse products in a type that would round the cast values again."""
    spec = quantizer.spec
    if dtype == torch.float32:
        return
    bits = {torch.bfloat16: 7, torch.float16: 10}.get(dtype, 0)
    if spec.format.mantissa_bits > bits or not spec.scaling.power_of_two:
        what = f"{spec.format}" if spec.format.mantissa_bits > bits else f"{spec.format} with real scales"
        raise ValueError(
            f"{quantizer.site}: {what} does not fit {dtype}; use scale: power_of_two, or compute in float32."
        )
