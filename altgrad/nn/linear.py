"""Quantised layers: three products, six slots.

    y  = Q(x) @ Q(W).T + b        dx = Q(g) @ Q(W)        dW = Q(g).T @ Q(x)        db = sum of g

Each Q is the cast of its slot, or nothing. What backward multiplies by is the *rounded* operand that forward used (or
the slot's own cast), never the restored full-precision one; the bias gradient comes from the unrounded g. All casts of
x and W are made in forward, so that the order of events does not depend on autograd's schedule.

One mixin serves nn.Linear and transformers' Conv1D, which keeps W transposed: the weight is cast as it is stored,
with the axes of its casts exchanged, and turned for the products. (A transposed view would do for the products, but
whoever looks at the parameter itself, its storage or its monitors, needs the scale as the parameter lies.)

The three products are one autograd Function because the slots of a product are its own: composing straight-through
casts around F.linear can only express one cast per operand. It keeps torch's contracts: what it returns is no view, so
it may be changed in place; inputs have any rank and any number of rows, none included; dtypes may differ only under
autocast, as for nn.Linear. Second derivatives are refused: those of a rounded product are 0 or infinite, and what the
straight-through rule would make of them is nothing that hardware computes.
"""

import math
import typing
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from altgrad.nn.layers import is_turned
from altgrad.nn.policy import LayerPrecision, Operand, Product, reduced_axis
from altgrad.quantize import Quantizer
from altgrad.quantize.grid import require_castable
from altgrad.quantize.passes import backward_counts, counts, refuse_transforms
from altgrad.quantize.quantizer import Axis, Role, unnamed_site
from altgrad.quantize.traced import held

Slots = list[tuple[Product, Operand]]


def make_casts(layer: nn.Module, precision: LayerPrecision, site: str, seed: int) -> dict[str, tuple[Quantizer, Slots]]:
    """The casts that a layer of `altgrad.nn.layers` gets under this precision, by name, with the slots each serves.

    Raises ValueError naming the slot at fault.
    """
    made = {}
    for name, (spec, slots) in precision.casts().items():
        operand, axis = slots[0][1], reduced_axis(slots)
        if operand == "weight" and is_turned(layer):
            axis = "first" if axis == "last" else "last"
        try:
            quantizer = Quantizer(
                spec, f"{site}/{name}" if site else name, cast(Role, operand), seed=seed,
                rows=_rows(layer, operand, axis), reduced=axis,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{site}, {name}: {error}") from None
        made[name] = quantizer, slots
    return made


def _rows(layer: nn.Module, operand: Operand, axis: Axis) -> int | None:
    """How many slices an operand has along its reduced axis; None for tokens, whose number varies."""
    shape = cast(Tensor, layer.weight).shape
    features = {"input": shape[not is_turned(layer)], "grad_output": shape[is_turned(layer)]}
    return shape[axis == "first"] if operand == "weight" else features[operand] if axis == "first" else None


class QuantizedLayer(nn.Module):
    """A layer y = x W^T + b whose products run on cast operands, mixed into the class that it was.

    Input [..., in_features] in float32, bf16 or fp16, of the weight's dtype as for nn.Linear; under autocast the
    products run in its dtype. RuntimeError for mixed dtypes and under transforms of torch.func, TypeError for dtypes
    that no cast takes, ValueError for nested tensors. Gradients are once differentiable.
    """

    plain: ClassVar[type[nn.Module]]
    """The class that it was."""
    recording = True
    """Whether training passes count; see `altgrad.nn.replay.unrecorded`."""
    uncounted = False
    weight: Tensor
    casts: nn.ModuleDict
    precision: LayerPrecision
    slot_casts: dict[tuple[Product, Operand], Quantizer]

    def attach(self, precision: LayerPrecision, site: str, seed: int) -> None:
        """Give a layer that has become this its casts. Raises ValueError naming the slot at fault."""
        self.precision, self.slot_casts = precision, {}
        made: dict[str, Quantizer] = {}
        for name, (quantizer, slots) in make_casts(self, precision, site, seed).items():
            made[name.replace(".", "_")] = quantizer.to(self.weight.device).train(self.training)
            self.slot_casts.update(dict.fromkeys(slots, quantizer))
        self.casts = nn.ModuleDict(made)

    def forward(self, input: Tensor) -> Tensor:
        """y [..., out_features]."""
        weight = self.weight
        bias = typing.cast(Tensor | None, self.bias)
        _check_operands(input, weight, bias)
        live = counts(self), backward_counts(self)
        return typing.cast(Tensor, _Products.apply(input, weight, bias, self, live))

    def reset_parameters(self) -> None:
        """New weights, as the plain layer draws them, and casts that begin anew."""
        drawn = getattr(super(), "reset_parameters", None)
        if drawn is not None:
            drawn()
        if "casts" in self._modules:  # the plain layer draws before it has casts
            for quantizer in self.casts.values():
                typing.cast(Quantizer, quantizer).reset_parameters()

    def operands(
        self, x: Tensor, name: Operand, live: bool, dtype: torch.dtype
    ) -> tuple[dict[Product, Tensor], Tensor | None]:
        """x as each product wants it, in `dtype`, and the mask of a clipped straight-through gradient (None: all pass).

        A weight comes as [out, in], however it is kept. Each distinct cast is made once.
        """
        # Casts look at x several times; a compiled graph would compute it each time anew, from as far back as a GELU.
        x = held(x)
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
        mask = torch.stack(masks).all(0) if masks else None
        if name == "weight" and is_turned(self):
            return {product: made.mT for product, made in found.items()}, None if mask is None else mask.mT
        return found, mask

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{super().extra_repr()}, casts={', '.join(self.precision.casts()) or 'none'}"


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A Linear whose products run on cast operands.

    precision: what each slot is cast to. site: the module's name, which names its casts (`<site>/<operand>`) and keys
    their random bits; without one it gets a name that no other layer has. For input and dtypes see QuantizedLayer.
    """

    plain = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        precision: LayerPrecision,
        site: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.attach(precision, unnamed_site("linear") if site is None else site, seed)
        for quantizer in self.slot_casts.values():
            quantizer.named = site is not None


_MADE: dict[type[nn.Module], type["QuantizedLayer"]] = {}


def quantized_class(plain: type[nn.Module]) -> type[QuantizedLayer]:
    """The class that a plain layer of this class becomes: derived from it, so that `isinstance` still finds it."""
    if plain is nn.Linear:
        return QuantizedLinear
    if plain not in _MADE:
        again = {"plain": plain, "__reduce__": lambda layer: (_blank, (plain,), layer.__dict__)}
        _MADE[plain] = type(f"Quantized{plain.__name__}", (QuantizedLayer, plain), again)
    return _MADE[plain]


def _blank(plain: type[nn.Module]) -> nn.Module:
    """What a pickle (or deepcopy) of a class made above begins with, since no module has that class by name."""
    made = quantized_class(plain)
    return made.__new__(made)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: QuantizedLayer, live: tuple[bool, bool]
    ) -> Tensor:
        device = x.device.type
        auto = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if auto else x.dtype
        inputs, ctx.input_mask = layer.operands(_rows_of(x), "input", live[0], dtype)
        weights, ctx.weight_mask = layer.operands(weight, "weight", live[0], dtype)
        ctx.layer, ctx.live, ctx.dtype = layer, live[1], dtype
        ctx.types = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(inputs["grad_weight"], weights["grad_input"])
        with torch.autocast(device, enabled=False):
            y = F.linear(inputs["forward"], weights["forward"], None if bias is None else bias.to(dtype))
        return _shaped(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = _rows_of(grads[0])
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        found, _ = ctx.layer.operands(grad, "grad_output", ctx.live, ctx.dtype)
        dx = dw = db = None
        if wants_input:
            dx = _masked(found["grad_input"] @ weight, ctx.input_mask).to(ctx.types[0])
            dx = _shaped(dx, (*grads[0].shape[:-1], dx.shape[-1]))
        if wants_weight:
            dw = _masked(found["grad_weight"].T @ x, ctx.weight_mask).to(ctx.types[1])
            dw = dw.mT if is_turned(ctx.layer) else dw
        if wants_bias and ctx.types[2] is not None:
            db = grad.sum(0).to(ctx.types[2])
        return dx, dw, db, None, None


def _rows_of(x: Tensor) -> Tensor:
    """x [..., n] as a matrix [rows, n]; the number of rows is said, since that of none cannot be found out."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix of our own making in another shape, and no view of it, so that the caller may change it in place."""
    return x if x.shape == shape else torch.ops.aten._unsafe_view(x, shape)


def _check_operands(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse what nn.Linear refuses, and what casts cannot take."""
    refuse_transforms("a quantised layer")
    if x.is_nested:
        raise ValueError("a nested tensor cannot be cast; give the layer its values(), or a padded tensor.")
    require_castable(x)
    require_castable(weight)
    other = weight.dtype if bias is None or weight.dtype != x.dtype else bias.dtype
    if other != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise RuntimeError(
            f"a quantised layer's input is {x.dtype} and its parameters are {other}; as for nn.Linear they must be of "
            "one dtype, unless autocast is on."
        )


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
