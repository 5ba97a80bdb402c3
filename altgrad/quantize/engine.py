"""The two engines of the cast: one pure function, run eagerly or fused by `torch.compile`.

Almost every cast of a run rounds to nearest or stochastically and saturates. For these the general definition in
`altgrad.quantize.grid` shortens, with the same bits (the tests compare them on every critical point):

    clamp first         what lies beyond the largest value ends there anyway, and then nothing can overflow on the way
    exponent as int     bits & 0x7F800000, kept from falling below that of the smallest normal: 2^floor(log2|u|)
    nearest, M >= 1     (u + c) - c with c = 1.5 * 2^23 spacing: float32's own ties-to-even is the format's
    stochastic          the reciprocal of a power of two by subtracting its exponent field: no division

A power-of-two scale is divided by through its reciprocal, which is exact (2^-127, that of the largest scale, is a
float32 sub-normal). Formats at the ends of float32, M = 0 ties and other rounding modes take the general definition.

Compiled, a cast is one pass over memory. A format enters as tensors, not constants, so that all formats and all shapes
share a handful of graphs; `fullgraph` makes running out of recompilations an error instead of a silent return to eager.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize.grid import in_float32
from altgrad.quantize.noise import counted_bits

Engine = Literal["eager", "compiled"]

_EXPONENT, _SIGN, _LAST = 0x7F800000, -(1 << 31), 254 << 23
SMALL = 4096
"""Tensors of fewer elements are cast eagerly under either engine: calling a compiled graph costs more than they do."""
RECOMPILATIONS = 64
"""Graphs of one function: dtypes, ranks of scales, devices, with and without autocast. Torch's own limit is 8."""


class Numbers(NamedTuple):
    """What a cast needs to know of a format: Python numbers or, for a compiled graph, scalar tensors."""

    lowest: Any
    """Bits of 2^e_min, the smallest binade with a spacing of its own."""
    gap: Any
    """2^-M: spacing as a share of the binade."""
    steps: Any
    """2^M: gaps in a binade."""
    top: Any
    """The largest value."""


def serves(fmt: FloatFormat, rounding: Rounding) -> bool:
    """Whether the short form is exact for this format and rounding: no step of it leaves float32."""
    high = max(fmt.e_min, fmt.max_binade)
    if rounding is Rounding.nearest_even:
        return fmt.mantissa_bits > 0 and high - fmt.mantissa_bits + 24 < 128
    return rounding is Rounding.stochastic and high <= 126 and -126 <= fmt.e_min - fmt.mantissa_bits <= 0


@functools.cache
def numbers(fmt: FloatFormat) -> Numbers:
    """The format's numbers."""
    return Numbers((fmt.e_min + 127) << 23, 2.0**-fmt.mantissa_bits, 2.0**fmt.mantissa_bits, float(fmt.max))


def nearest(x: Tensor, scale: Tensor | None, exact_reciprocal: bool, signed_zero: bool, form: Numbers) -> Tensor:
    """x on the grid `scale * format`, nearest even, saturated; float32, same shape. NaN stays.

    exact_reciprocal: every scale is a power of two. signed_zero: the format has -0.
    """
    u, binade = _enter(x, scale, exact_reciprocal, form)
    shift: Tensor = binade.view(torch.float32).mul_(form.gap * (1.5 * 2.0**23))
    q = (u + shift).sub_(shift)
    if signed_zero:
        q = _signed(q, u)
    return q if scale is None else q.mul_(scale)


def stochastic(
    x: Tensor, scale: Tensor | None, exact_reciprocal: bool, signed_zero: bool, form: Numbers, key: Tensor
) -> Tensor:
    """The same with P(up) = the share of the gap passed, 24 bits counted from `key` for each element."""
    u, binade = _enter(x, scale, exact_reciprocal, form)
    steps = u.abs().mul_((_LAST - binade).view(torch.float32)).mul_(form.steps)
    low = steps.floor()
    up = counted_bits(x.shape, key, device=x.device).to(torch.float32).mul_(2.0**-24) < steps.sub_(low)
    q = _signed(low.add_(up).mul_(binade.view(torch.float32)).mul_(form.gap), u)
    if not signed_zero:
        q = torch.where(q == 0, 0.0, q)
    return q if scale is None else q.mul_(scale)


def _enter(x: Tensor, scale: Tensor | None, exact_reciprocal: bool, form: Numbers) -> tuple[Tensor, Tensor]:
    """x in grid units and within the range, and the bits of its binade; both fresh."""
    u = in_float32(x)
    if scale is None:
        u = u.clamp(-form.top, form.top)
    else:
        u = (u * scale.reciprocal() if exact_reciprocal else u / scale).clamp_(-form.top, form.top)
    return u, (u.view(torch.int32) & _EXPONENT).clamp_(min=form.lowest)


def _signed(q: Tensor, u: Tensor) -> Tensor:
    """q with the sign bit of u set too, in place of both: q is 0 or has the sign of u, or has none yet."""
    sign = u.view(torch.int32).bitwise_and_(_SIGN)
    return q.view(torch.int32).bitwise_or_(sign).view(torch.float32)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, RECOMPILATIONS)
    return torch.compile(function, dynamic=True, fullgraph=True)


@functools.cache
def _as_tensors(fmt: FloatFormat, device: torch.device) -> Numbers:
    lowest, *others = numbers(fmt)
    floats = (torch.tensor(value, dtype=torch.float32, device=device) for value in others)
    return Numbers(torch.tensor(lowest, dtype=torch.int32, device=device), *floats)


def cast_values(
    x: Tensor,
    scale: Tensor | None,
    fmt: FloatFormat,
    rounding: Rounding,
    *,
    exact_reciprocal: bool,
    key: Tensor | None = None,
    engine: Engine = "eager",
) -> Tensor:
    """x on the grid `scale * fmt`, saturated, as float32 of the same shape; for what `serves` allows.

    x: float32, bf16 or fp16. scale: None, or float32 that broadcasts with x; exact_reciprocal says that it holds powers
    of two only. key: int64 scalar, for stochastic rounding. Both engines give the same bits.
    """
    function: Callable[..., Tensor] = nearest if rounding is Rounding.nearest_even else stochastic
    extra = () if function is nearest else (key,)
    options = exact_reciprocal, fmt.has_negative_zero
    if engine == "eager" or x.numel() < SMALL or torch.compiler.is_compiling():
        return function(x, scale, *options, numbers(fmt), *extra)
    whole = scale is None or scale.numel() == 1
    taken = x.detach().contiguous().view(-1) if whole else x.detach()
    beside = scale.reshape(()) if whole and scale is not None else scale
    return _compiled(function)(taken, beside, *options, _as_tensors(fmt, x.device), *extra).view(x.shape)


def missing_compiler(device: torch.device) -> str | None:
    """Why `compiled` cannot work for tensors on this device, in words; None if it can."""
    if device.type != "cpu":
        return None
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name) or shutil.which("clang++")
    return None if found else f"there is no C++ compiler here ({name} is not on the PATH)"
