"""Products whose terms an accumulator adds up: operands as a matrix unit gets them, in grid units, with their scales.

Such a product does not multiply values but what the casts rounded to, and its scales enter where the instruction has
them (`altgrad.quantize.accumulator`):

    one for a tensor, for a row, NVFP4's outer one     at the end
    of blocks along the sum that the instruction takes within its terms, chunk by chunk or group by group
    of other blocks                                    at each promotion, which must not fall within a block

So operands lie with the axis that the product sums over last, and scales must not change from term to term, as those of
rows and blocks do for a cast that serves two products: such a cast is refused. A product one of whose operands is no
cast of its own, as in replays that leave casts out or hold their errors, is an ordinary one of the values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.nn.native import native_product
from altgrad.nn.products import linear, matmul, rounded
from altgrad.quantize import Cast, Quantizer, QuantizerSpec, ScalingSpec
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor, spread
from altgrad.quantize.accumulator_engine import accumulate
from altgrad.quantize.block import BlockSpec
from altgrad.quantize.scale_format import to_nearest
from altgrad.quantize.traced import held

Value = Tensor | Factor
"""One operand of a product: its values as they lie, or what an accumulator takes."""
ShowSums = Callable[[str, Factor, Factor, Tensor], None]
"""Is shown a product by its name, its operands, and their sums in float32."""


class Adding(Protocol):
    """A layer, as its products see it."""

    precision: Any
    shown: ShowSums | None
    """Who is shown the products that have an accumulator."""


def check_product(
    name: str,
    how: AccumulatorSpec,
    slots: Mapping[Any, QuantizerSpec | None],
    casts: Iterable[tuple[QuantizerSpec, list[Any]]],
    reduced_axis: Callable[[list[Any]], str],
) -> None:
    """ValueError, naming the slot, for casts whose products this accumulator cannot add up.

    casts: each with the slots that it serves. reduced_axis: that of an operand which the products of slots sum over.
    """
    for (product, operand), spec in slots.items():
        if product == name and spec is None:
            raise ValueError(
                f"{name}.accumulator: {how.text} adds up terms of cast operands, and {name}.{operand} is not cast; "
                f"cast it, or leave out {name}.accumulator."
            )
    for spec, served in casts:
        for slot in served:
            if slot[0] == name:
                along = reduced_axis(served) == reduced_axis([slot])
                check_accumulator(how, spec, ".".join(slot), along)


def check_accumulator(how: AccumulatorSpec, spec: QuantizerSpec, slot: str, along: bool) -> None:
    """ValueError, naming the slot, for a cast that the product's accumulator cannot add up the products of.

    along: its cast sees the operand along the axis that this product sums over.
    """
    how.require(slot, spec.format)
    if spec.outliers is not None:
        raise ValueError(
            f"{slot} carries outliers apart, in another format, and accumulator: {how.text} adds terms of one; leave "
            "out outliers, or the accumulator."
        )
    scaling = spec.scaling
    channel = getattr(scaling, "granularity", "tensor") == "channel"
    if not along and (channel or (isinstance(scaling, BlockSpec) and scaling.shape == "row")):
        raise ValueError(
            f"{slot} shares its cast with another product, along whose sum the scales lie, so that here they change "
            "from term to term; use operands: per_product."
        )
    if not isinstance(scaling, BlockSpec):
        return
    ends = scaling.outer if _within(scaling, how) else scaling.size
    if isinstance(ends, int) and (how.promote is None or ends % how.promote):
        taken = "takes no scales of these blocks" if how.promote is None else f"is promoted every {how.promote}"
        raise ValueError(
            f"{slot} has a scale for every {ends} terms of the sum, and accumulator: {how.text} {taken}; use a promote "
            f"that divides {ends}, or an instruction that takes such scales."
        )


def _within(scaling: ScalingSpec, how: AccumulatorSpec | None) -> bool:
    """Whether the instruction takes these scales of blocks."""
    if how is None or how.scales == "after" or not isinstance(scaling, BlockSpec):
        return False
    in_format = isinstance(scaling.scale, FloatFormat)
    if how.group == 1:
        return scaling.power_of_two and not in_format and scaling.size % how.chunk == 0
    return (in_format or scaling.power_of_two) and scaling.size % how.group == 0


def part_levels(accumulators: Mapping[Any, AccumulatorSpec], casts: Mapping[Any, Quantizer]) -> None:
    """Have casts, by slot, tell the outer level of their scales where an instruction takes the inner one alone."""
    for (product, _), quantizer in casts.items():
        how, scaling = accumulators.get(product), quantizer.spec.scaling
        if how is not None and _within(scaling, how) and getattr(scaling, "outer", "none") != "none":
            quantizer.scaling.keeps_outer = True


def factor_of(made: Cast, scaling: ScalingSpec, how: AccumulatorSpec | None, turned: bool) -> Factor:
    """A cast matrix as the accumulator, or the chip, takes it. turned: the product sums over its first axis."""

    def lies(x: Tensor) -> Tensor:
        return x.mT if turned and x.ndim > 1 else x

    # Held: of two operands with blocks of 128, Inductor (torch 2.13) merges loops of unlike length, and fails.
    units, digits = lies(held(made.rounded)), Digits.of(made.format)
    if made.scale is None:
        return Factor(units, digits)
    scale = lies(made.scale)
    if not isinstance(scaling, BlockSpec) or scale.ndim == 0:
        return Factor(units, digits, after=scale)
    size = scaling.size
    small, block = (scale[:, ::size], size) if scale.shape[-1] > 1 else (scale, 0)
    if not _within(scaling, how):
        return Factor(units, digits, after=small, after_block=block)
    if scaling.outer == "none" or made.scales is None or made.scales.outer is None:
        return Factor(units, digits, small, size)
    outer = lies(made.scales.outer)
    every = scaling.outer if isinstance(scaling.outer, int) and outer.shape[-1] > 1 else 0
    ends = outer if outer.ndim == 0 else outer[:, ::every] if every else outer[:, :1]
    of_block = outer if outer.ndim == 0 or outer.shape[-1] == 1 else outer[:, ::size]
    assert isinstance(scaling.scale, FloatFormat)
    # Their product was rounded to float32: its quotient by the outer level lies next to the inner one.
    inner = to_nearest(torch.where(of_block == 0, 0, small / of_block), scaling.scale)
    return Factor(units, digits, inner, size, ends, every)


def multiply(layer: Adding, name: str, a: Value, b: Value, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """A layer's product of this name of its operands, input or grad_output first, in `dtype`, of our own making."""
    how = layer.precision.accumulators.get(name)
    if how is not None and isinstance(a, Factor) and isinstance(b, Factor):
        y = accumulate(a, b, how)
        if layer.shown is not None:
            layer.shown(name, a, b, y)
        return rounded(y if bias is None else y + bias.to(dtype).to(torch.float32), dtype)
    if how is None and isinstance(a, Factor) and isinstance(b, Factor):
        made = native_product(a, b, dtype, bias)
        if made is not None:
            return made
    x, w = (operand_values(each, turned) for each, turned in ((a, name == "grad_weight"), (b, name != "forward")))
    if name == "forward":
        return linear(x, w, bias, dtype)
    return matmul(x.T if name == "grad_weight" else x, w, dtype)


def operand_values(operand: Value, turned: bool = False) -> Tensor:
    """The values as they lie; turned: a Factor's lie the other way."""
    if isinstance(operand, Tensor):
        return operand
    x = operand.units
    for scale, block in ((operand.within, operand.within_block), (operand.after, operand.after_block)):
        if scale is not None:
            x = x * spread(scale, block, 1, *x.shape)
    return x.mT if turned else x


def parts(operands: Sequence[Value]) -> tuple[list[Tensor | None], list[tuple[Any, ...] | None]]:
    """The tensors of operands, for autograd to keep, and what `whole` needs besides."""
    tensors: list[Tensor | None] = []
    forms: list[tuple[Any, ...] | None] = []
    for each in operands:
        tensors += [each.units, each.within, each.after] if isinstance(each, Factor) else [each]
        forms.append((each.digits, each.within_block, each.after_block) if isinstance(each, Factor) else None)
    return tensors, forms


def whole(tensors: Iterator[Any], forms: Sequence[tuple[Any, ...] | None]) -> list[Value]:
    """The operands again; takes their tensors off the iterator."""
    made: list[Value] = []
    for form in forms:
        x = next(tensors)
        if form is not None:
            digits, within_block, after_block = form
            x = Factor(x, digits, next(tensors), within_block, next(tensors), after_block)
        made.append(x)
    return made
