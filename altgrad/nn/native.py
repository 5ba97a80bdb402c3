"""Products on the chip's own 8-bit units: `torch._scaled_mm` of the very codes that the casts rounded to.

    y = (codes of a) (codes of b)^T  scale of a  scale of b

The cast operands are those of every other engine, bit for bit: what a cast rounds to, in grid units, is a float8
number, so the conversion loses nothing. What differs is how the terms are added up, which is the chip's business and
not published (`altgrad.quantize.accumulator` has what is known), and that float32 scales enter after the sum. So
`engine: native` is a part of the run, and `accumulator_of` names what it adds up in. Emulation answers what a format
does to a model; this takes less time.

What a product needs to be taken, else it is emulated as ever:

    formats   e4m3fn and e5m2, not both e5m2; neither outliers nor an accumulator of its own
    scales    one for each tensor; or one for each row of both; or those of 128 along the sum (squares included)
    axes      scales of rows and blocks lie along the product's own sum: `operands: per_product`, or one use alone
    a GPU     sums and columns in multiples of 16; rows and blocks give bfloat16; blocks of 128 need sm_90
    a CPU     torch's product there takes any shape, and scales of tensors and rows
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from altgrad.nn.layer_casts import Slot, axis_of
from altgrad.nn.slots import PRODUCTS, Product
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor
from altgrad.quantize.block import BlockSpec

DTYPES = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
E4M3 = Digits(3, -6, 8)
CPU_TAKES_ROWS = torch.__version__ >= (2, 13)  # type: ignore[operator]
"""Whether torch's product for CPUs takes a scale a row: 2.13's does, 2.11's one a tensor alone."""
BLOCK = 128
MULTIPLE = 16


class Casting(Protocol):
    """A layer, as its products see it."""

    native: bool
    precision: Any
    slot_casts: dict[Slot, Quantizer]


def added_up(layer: Casting) -> Mapping[Product, AccumulatorSpec | None]:
    """The products of a layer that are made from what its casts round to, with their accumulators; None: the chip's."""
    given: Mapping[Product, AccumulatorSpec] = layer.precision.accumulators
    return {**dict.fromkeys(native_products(layer)), **given} if layer.native else given


def native_products(layer: Any, device: torch.device | None = None) -> list[Product]:
    """The products of a quantised layer that a chip may take, or this device; shapes decide when they are made."""
    found: list[Product] = []
    on_cpu = device is not None and device.type == "cpu"
    kept = {"tensor"} if on_cpu and not CPU_TAKES_ROWS else {"tensor", "row"} if on_cpu else {"tensor", "row", "block"}
    for product in PRODUCTS:
        slots = [slot for slot in layer.precision.slots if slot[0] == product]
        if product in layer.precision.accumulators or any(slot not in layer.slot_casts for slot in slots):
            continue
        specs = [layer.slot_casts[slot].spec for slot in slots]
        kinds = {_scales(spec, _along(layer, slot)) for spec, slot in zip(specs, slots, strict=True)}
        formats = {str(spec.format) for spec in specs}
        if formats <= DTYPES.keys() and formats != {"e5m2"} and len(kinds) == 1 and kinds <= kept:
            found.append(product)
    return found


def _scales(spec: QuantizerSpec, along: bool) -> str:
    """What the scales of a cast are of: tensor, row or block; empty for what no chip takes."""
    scaling = spec.scaling
    if spec.outliers is not None:
        return ""
    if isinstance(scaling, BlockSpec):
        taken = scaling.size == BLOCK and scaling.outer == "none" and (along or scaling.shape == "square")
        return "block" if taken else ""
    if getattr(scaling, "granularity", "tensor") == "channel":
        return "row" if along else ""
    return "tensor"


def _along(layer: Any, slot: Slot) -> bool:
    """Whether a slot's cast sees its operand along the axis that its product sums over."""
    served = [other for other, quantizer in layer.slot_casts.items() if quantizer is layer.slot_casts[slot]]
    return bool(axis_of(layer, served) == axis_of(layer, [slot]))


def native_product(a: Factor, b: Factor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor | None:
    """a b^T in `dtype`, [m, k] and [n, k], of what casts rounded to, plus a bias; None if this chip has none such.

    Summed and scaled as the chip does it; rounded to `dtype` once, after the bias.
    """
    (m, k), n = a.units.shape, b.units.shape[0]
    scales = _scale(a), _scale(b)
    blocks = a.after_block == b.after_block == BLOCK
    plain = all(scale.numel() == 1 for scale in scales)
    if 0 in (m, n, k) or (not blocks and (a.after_block or b.after_block)):
        return None
    if a.units.device.type == "cuda":
        if k % MULTIPLE or n % MULTIPLE or not (plain or dtype == torch.bfloat16):
            return None
        if blocks and (k % BLOCK or torch.cuda.get_device_capability(a.units.device) != (9, 0)):
            return None
    elif blocks or not (plain or CPU_TAKES_ROWS):
        return None
    left, right = (each.units.to(_dtype(each.digits)).contiguous() for each in (a, b))
    if plain:
        scales = scales[0].reshape(()), scales[1].reshape(())
    elif blocks:  # columns first, as cuBLAS reads them
        scales = scales[0].T.contiguous().T, scales[1].T.contiguous()
    else:
        scales = scales[0].expand(m, 1).contiguous(), scales[1].expand(n, 1).reshape(1, n).contiguous()
    inside = None if bias is None or dtype == torch.float32 else bias.to(dtype)
    y = torch._scaled_mm(
        left, right.t(), scale_a=scales[0], scale_b=scales[1], bias=inside, out_dtype=dtype, use_fast_accum=False
    )
    return y if bias is None or inside is not None else y + bias.to(dtype)


def _scale(factor: Factor) -> Tensor:
    return factor.units.new_ones(()) if factor.after is None else factor.after


def _dtype(digits: Digits) -> torch.dtype:
    return DTYPES["e4m3fn" if digits == E4M3 else "e5m2"]


def missing_units(device: torch.device) -> str | None:
    """Why `engine: native` cannot work on this device, in words; None if it can."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"torch has no 8-bit products on {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if (major, minor) >= (8, 9) else f"this GPU (sm_{major}{minor}) has no 8-bit products"


def accumulator_of(device: torch.device) -> str:
    """What the chip's products add up in, as far as it is known."""
    if device.type == "cpu":
        return "float32, torch's 8-bit product on a CPU"
    major, minor = torch.cuda.get_device_capability(device)
    known = {(9, 0): ", 13 bits, promoted"}.get((major, minor), "")
    return f"cuBLAS on sm_{major}{minor} without fast accumulation{known}"
