"""Quantised layers: three products, six slots.

    y  = Q(x) @ Q(W).T + b        dx = Q(g) @ Q(W)        dW = Q(g).T @ Q(x)        db = sum of g

Each Q is the cast of its slot, or nothing. What backward multiplies by is the *rounded* operand that forward used (or
the slot's own cast), never the restored full-precision one; the bias gradient comes from the unrounded g. All casts of
x and W are made in forward, so that the order of events does not depend on autograd's schedule.

One mixin serves nn.Linear and transformers' Conv1D, which keeps W transposed: the weight is cast as it is stored,
with the axes of its casts exchanged, and turned for the products. (A transposed view would do for the products, but
whoever looks at the parameter itself, its storage or its monitors, needs the scale as the parameter lies.)

A product may have a transform that turns both its operands along the axis it sums over, before their casts. Forward's
is part of the function that is trained: y = Q(x R) Q(W R)^T, so the gradient leaves through R^T, and what forward's
cast multiplies it with (a mask, a slope) is one of the turned values (as QuEST has it, arXiv 2502.05003):

    dx = ((g Q(W R)) . mask) R^T      with `source: forward_rotated`; from the original W it is turned in and out again

Columns of dW can have a product of their own, of other casts that nothing turns (`altgrad.nn.outlier_columns`).

A product with an `accumulator` multiplies what its casts rounded to, in grid units, and adds up as matrix units do
(`altgrad.nn.accumulated`), a native one on them (`altgrad.nn.native`). Any other runs in the layer's dtype where that
holds every cast value of both operands, and else (real scales, NVFP4) in float32, and is rounded once.

The three products are one autograd Function because the slots of a product are its own: composing straight-through
casts around F.linear can only express one cast per operand. It keeps torch's contracts: what it returns is no view, so
it may be changed in place; inputs have any rank and any number of rows, none included; dtypes may differ only under
autocast, as for nn.Linear. Second derivatives are refused: those of a rounded product are 0 or infinite, and what the
straight-through rule would make of them is nothing that hardware computes.
"""

import typing
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from altgrad.nn.accumulated import ShowSums, Value, factor_of, multiply, operand_values, part_levels, parts, whole
from altgrad.nn.layer_casts import Slot, axis_of, make_casts, make_transforms
from altgrad.nn.layers import is_turned
from altgrad.nn.native import added_up
from altgrad.nn.outlier_columns import partner_values, splitting
from altgrad.nn.products import as_matrix, matmul, shaped
from altgrad.nn.slots import LayerPrecision, Operand, Product
from altgrad.quantize import Cast, Quantizer
from altgrad.quantize.counted import Counted, unnamed_site
from altgrad.quantize.gradient import joined, multiplied
from altgrad.quantize.grid import require_castable
from altgrad.quantize.passes import backward_counts, counts, refuse_transforms
from altgrad.quantize.traced import held
from altgrad.quantize.transform import Transform

Matrices = Mapping[Product, Tensor]
"""What this pass turns the operands of products by, for those that have a transform."""


class Operands(NamedTuple):
    """One operand as its products want it, and what its gradient is multiplied with (None: 1 throughout).

    factor: of the operand's own elements. turned_factor: of those that forward's transform makes of them. A weight
    comes as [out, in], however it is kept.
    """

    values: dict[Product, Value]
    factor: Tensor | None
    turned_factor: Tensor | None


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
    uncounted = native = False
    shown: ShowSums | None = None
    weight: Tensor
    casts: nn.ModuleDict
    precision: LayerPrecision
    slot_casts: dict[Slot, Quantizer]
    transforms: dict[Product, Transform]

    def attach(self, precision: LayerPrecision, site: str, seed: int) -> None:
        """Give a layer that has become this its casts. Raises ValueError naming the slot at fault."""
        self.slot_casts = {}
        made: dict[str, nn.Module] = {}
        for name, (quantizer, slots) in make_casts(self, precision, site, seed).items():
            made[name.replace(".", "_")] = quantizer.to(self.weight.device).train(self.training)
            self.slot_casts.update(dict.fromkeys(slots, quantizer))
        self.transforms = make_transforms(self, precision, site, seed)
        for product, transform in self.transforms.items():
            made[f"{product}_transform"] = transform.to(self.weight.device).train(self.training)
        self.casts = nn.ModuleDict(made)
        self.adopt(precision)

    def adopt(self, precision: LayerPrecision) -> None:
        """Add up products as this says from now on; the casts stay."""
        self.precision = precision
        part_levels(precision.accumulators, self.slot_casts)

    def forward(self, input: Tensor) -> Tensor:
        """y [..., out_features]."""
        return self.products(input, self.weight, typing.cast(Tensor | None, self.bias))

    def products(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same of any weight and bias of its own ones' shape."""
        _check_operands(input, weight, bias)
        live = counts(self), backward_counts(self)
        return typing.cast(Tensor, _Products.apply(input, weight, bias, self, live))

    def reset_parameters(self) -> None:
        """New weights, as the plain layer draws them, and casts that begin anew."""
        drawn = getattr(super(), "reset_parameters", None)
        if drawn is not None:
            drawn()
        if "casts" in self._modules:  # the plain layer draws before it has casts
            for each in self.casts.values():
                typing.cast(Counted, each).reset_parameters()

    @property
    def casts_weight_in_place(self) -> bool:
        """Whether forward casts the weight as it lies and whole, so that its grid is one of the weight's own values."""
        quantizer = self.slot_casts.get(("forward", "weight"))
        return quantizer is not None and quantizer.outliers is None and "forward" not in self.transforms

    def input_as_cast(self, x: Tensor) -> Tensor:
        """x [..., in_features] as forward's cast leaves it, in float32, turned back where it was turned. Not a pass."""
        rows = as_matrix(x)
        slot: Slot = ("forward", "input")
        matrices: dict[Product, Tensor] = {}
        if "forward" in self.transforms:
            matrices["forward"] = self.transforms["forward"].matrix(rows, False)
        turned, quantizer = self._turned(rows, slot, matrices), self.slot_casts.get(slot)
        values = turned if quantizer is None else quantizer.values(turned, False, torch.float32)
        return self._turned_back(values, matrices)

    def columns_apart(self, x: Tensor, forward: Value, live: bool, matrices: Matrices) -> tuple[Tensor, ...]:
        """What of x enters the product that columns of dW have of their own, and which those are; none, if none have.

        forward: x as forward's product has it.
        """
        slot: Slot = ("grad_weight", "input")
        columns = splitting(self.slot_casts.get(slot))
        if columns is None:
            return ()
        source = self._source(held(x), slot, {"forward": operand_values(forward)}, matrices)
        return columns.split_product(source, live)

    def matrices(self, x: Tensor, live: bool) -> dict[Product, Tensor]:
        """What this pass turns its operands by, for each product that has a transform."""
        return {product: transform.matrix(x, live) for product, transform in self.transforms.items()}

    def operands(self, x: Tensor, name: Operand, live: bool, dtype: torch.dtype, matrices: Matrices) -> Operands:
        """x as each product wants it: in `dtype`, or in float32 where that does not hold every value of its cast.

        Each distinct cast is made once.
        """
        # Casts look at x several times; a compiled graph would compute it each time anew, from as far back as a GELU.
        x = held(x)
        made: dict[Any, Tensor] = {}
        entered: dict[Any, Cast] = {}
        factors: list[Tensor] = []
        turned_factor: Tensor | None = None
        values: dict[Product, Tensor] = {}
        adding = added_up(self)
        sums: dict[Product, Value] = {}
        for slot in self.precision.slots:
            product, operand = slot
            if operand != name:
                continue
            quantizer = self.slot_casts.get(slot)
            key = quantizer if quantizer is not None else product if product in matrices else None
            if key not in made:
                source, factor = self._source(x, slot, values, matrices), None
                turned = self._turned(source, slot, matrices)
                if quantizer is None:
                    made[key] = turned.to(dtype)
                else:
                    held_in = dtype if quantizer.spec.fits(dtype) else torch.float32
                    if self._is_added_up(quantizer):
                        entered[key] = quantizer.cast(turned, live)
                        made[key] = entered[key].values(held_in)
                        factor = quantizer.spec.gradient.factor(entered[key].exact, quantizer.spec.format)
                    else:
                        made[key], factor = quantizer.values_and_factor(turned, live, held_in)
                    if product in matrices:  # as the turned operand lies: else a graph writes it across
                        made[key] = held(made[key])
                if factor is not None and product == "forward" and product in matrices:
                    turned_factor = factor
                elif factor is not None and (product == "forward" or factor.dtype == torch.bool):
                    factors.append(factor)  # a slope is forward's alone, the function that is trained
            values[product] = made[key]
            if product in adding and quantizer is not None and key in entered:
                axis = axis_of(self, [slot])
                sums[product] = factor_of(entered[key], quantizer.spec.scaling, adding[product], axis == "first")
        every = joined(factors)
        if name == "weight" and is_turned(self):
            values = {product: value.mT for product, value in values.items()}
            every, turned_factor = (None if part is None else part.mT for part in (every, turned_factor))
        return Operands({**values, **sums}, every, turned_factor)

    def _is_added_up(self, cast: Any) -> bool:
        """Whether it is a cast for a product that is made from what casts round to."""
        adding = added_up(self)
        return isinstance(cast, Quantizer) and any(s[0] in adding for s, q in self.slot_casts.items() if q is cast)

    def _source_of(self, slot: Slot) -> str:
        """What the slot casts; without its cast (in a replay) it passes on the same."""
        spec = self.slot_casts[slot].spec if slot in self.slot_casts else self.precision.slots.get(slot)
        return "original" if spec is None else spec.source

    def _source(self, x: Tensor, slot: Slot, made: Mapping[Product, Tensor], matrices: Matrices) -> Tensor:
        source = self._source_of(slot)
        if source == "original":
            return x
        forward = made["forward"]
        if source == "forward_rotated" or "forward" not in matrices:
            return forward
        turned = slot[1] == "weight" and is_turned(self)
        return self._turned_back(forward.mT, matrices).mT if turned else self._turned_back(forward, matrices)

    def _turned(self, x: Tensor, slot: Slot, matrices: Matrices) -> Tensor:
        """An operand, as it lies, as the transform of its product turns it."""
        if slot[0] not in matrices:
            return x
        transform, matrix = self.transforms[slot[0]], matrices[slot[0]]
        return transform.turn(x, matrix) if axis_of(self, [slot]) == "last" else transform.turn(x.mT, matrix).mT

    def _turned_back(self, x: Tensor, matrices: Matrices) -> Tensor:
        """What forward's transform turned, [..., in_features], as it was."""
        return self.transforms["forward"].turn_back(x, matrices["forward"]) if "forward" in matrices else x

    def turned_back(self, x: Tensor, slot: Slot, number: int) -> Tensor:
        """What the transform of a slot's product turned in micro-batch `number` of this step, as it lay before."""
        transform = self.transforms.get(slot[0])
        if transform is None:
            return x
        matrix = transform.matrix_of(x, number)
        return (
            transform.turn_back(x, matrix) if axis_of(self, [slot]) == "last" else transform.turn_back(x.mT, matrix).mT
        )

    def gradient(self, product: Tensor, slot: Slot, operand: Operands, matrices: Matrices) -> Tensor:
        """A gradient [..., in_features] as it leaves the layer. product: g times the operand of `slot`. operand: that
        which it is the gradient of."""
        turned = "forward" in matrices and self._source_of(slot) == "forward_rotated"
        if operand.turned_factor is not None and not turned:  # by the transpose of the transpose, so nothing is rounded
            product, turned = self.transforms["forward"].turn_back(product, matrices["forward"].T), True
        product = multiplied(product, operand.turned_factor)
        return multiplied(self._turned_back(product, matrices) if turned else product, operand.factor)

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
        for each in self.casts.values():
            typing.cast(Counted, each).named = site is not None


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
        matrices = layer.matrices(x, live[0])
        inputs = layer.operands(as_matrix(x), "input", live[0], dtype, matrices)
        weights = layer.operands(weight, "weight", live[0], dtype, matrices)
        columns = layer.columns_apart(as_matrix(x), inputs.values["forward"], live[0], matrices)
        ctx.layer, ctx.live, ctx.dtype, ctx.turned = layer, live[1], dtype, tuple(matrices)
        ctx.types = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.input_factors, ctx.weight_factors = inputs[1:], weights[1:]
        kept, ctx.forms = parts((inputs.values["grad_weight"], weights.values["grad_input"]))
        ctx.save_for_backward(*kept, *matrices.values(), *columns)
        y = multiply(layer, "forward", inputs.values["forward"], weights.values["forward"], dtype, bias)
        return shaped(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        x, weight = whole(saved, ctx.forms)
        layer, matrices = ctx.layer, dict(zip(ctx.turned, saved, strict=False))
        columns = tuple(saved)
        grad = as_matrix(grads[0])
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        found = layer.operands(grad, "grad_output", ctx.live, ctx.dtype, matrices).values
        if columns:
            partner = partner_values(layer.slot_casts[("grad_weight", "input")], grad, ctx.live)
        dx = dw = db = None
        if wants_input:
            dx = multiply(layer, "grad_input", found["grad_input"], weight, ctx.dtype)
            dx = layer.gradient(dx, ("grad_input", "weight"), Operands({}, *ctx.input_factors), matrices)
            dx = dx.to(ctx.types[0])
            dx = shaped(dx, (*grads[0].shape[:-1], dx.shape[-1]))
        if wants_weight:
            dw = multiply(layer, "grad_weight", found["grad_weight"], x, ctx.dtype)
            if columns:
                dw = torch.where(columns[1], matmul(partner.T, columns[0], ctx.dtype), dw)
            dw = layer.gradient(dw, ("grad_weight", "input"), Operands({}, *ctx.weight_factors), matrices)
            dw = dw.to(ctx.types[1])
            dw = dw.mT if is_turned(layer) else dw
        if wants_bias and ctx.types[2] is not None:
            db = grad.sum(0).to(ctx.types[2])
        return dx, dw, db, None, None


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
