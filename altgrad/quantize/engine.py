"""The two engines of the cast: one pure function, run eagerly or fused by `torch.compile`.

Almost every cast of a run rounds to nearest or stochastically and saturates. For these the general definition in
`altgrad.quantize.grid` shortens, with the same bits (the tests compare them on every critical point):

    clamp first         what lies beyond the largest value ends there anyway, and then nothing can overflow on the way
    magnitude alone     the sign of x is put back at the end, by its bit, so that -0 stays
    exponent as int     bits & 0x7F800000, kept from falling below that of the smallest normal: 2^floor(log2|u|)
    nearest, M >= 1     (|u| + c) - c with c = 1.5 * 2^23 spacing: float32's own ties-to-even is the format's; c is the
                        binade's bits plus one integer
    stochastic          spacing and its reciprocal by subtracting exponent fields: no division
    infinities          put back at the end where they are to be kept, since the clamp has taken them for overflow

One power-of-two scale is divided by through its reciprocal, which is exact (2^-127, that of the largest scale, is a
float32 sub-normal). Formats at the ends of float32, M = 0 ties and other rounding modes take the general definition.

Compiled, a cast is one pass over memory. A format enters as tensors, not constants, so that all formats and all shapes
share a handful of graphs; `fullgraph` makes running out of recompilations an error instead of a silent return to eager.
"""

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, Rounding
from altgrad.quantize.grid import Nonfinite, in_float32, keep_infinite
from altgrad.quantize.noise import counted_bits
from altgrad.quantize.traced import cached, held

Engine = Literal["eager", "compiled"]

# On a GPU Inductor divides to within 2 ulp unless told to divide as eager does, and a cast at a scale that is no power
# of two then rounds some ties otherwise. Said to torch as a whole, since users compile models with casts inside. Read
# when Inductor is imported, here or in its compiling subprocesses.
os.environ.setdefault("TORCHINDUCTOR_EMULATE_DIVISION_ROUNDING", "1")
if "torch._inductor.config" in sys.modules:
    sys.modules["torch._inductor.config"].eager_numerics.division_rounding = True

# Inductor's cache on disk does not ask for which vectors its C++ was written: read by a processor with others, or under
# another ATEN_CPU_CAPABILITY, it leaves half of every tensor unwritten (torch 2.13; a shared TORCHINDUCTOR_CACHE_DIR).
_VECTORS = f"cpu={torch.backends.cpu.get_cpu_capability()}"
if _VECTORS not in torch.compiler.config.cache_key_tag:
    torch.compiler.config.cache_key_tag += _VECTORS

_EXPONENT, _SIGN = 0x7F800000, -(1 << 31)
SMALL = 4096
"""Tensors of fewer elements are cast eagerly under either engine: calling a compiled graph costs more than they do."""
KNOWS_VECTORS = 12
"""Since when g++ and clang know AVX-512 with its extensions, and AMX."""
WHOLE_VECTORS = " -mprefer-vector-width=512"
RECOMPILATIONS = 64
"""Graphs of one function: dtypes, ranks of scales, devices, with and without autocast. Torch's own limit is 8."""


class Numbers(NamedTuple):
    """What a cast needs to know of a format: Python numbers or, for a compiled graph, scalar tensors."""

    lowest: Any
    """Bits of 2^e_min, the smallest binade with a spacing of its own."""
    shift: Any
    """What turns the bits of a binade into those of 1.5 * 2^23 spacings: 23 - M in the exponent field, and the half."""
    fall: Any
    """What taken from the bits of a binade leaves those of its spacing: M in the exponent field."""
    turn: Any
    """Less the bits of a binade, those of 1 / spacing: 254 + M in the exponent field, wrapped."""
    top: Any
    """The largest value."""


def serves(fmt: NumberFormat, rounding: Rounding) -> bool:
    """Whether the short form is exact for this format and rounding: an ExMy, and no step of it leaves float32."""
    if not isinstance(fmt, FloatFormat):
        return False
    high = max(fmt.e_min, fmt.max_binade)
    if rounding is Rounding.nearest_even:
        return fmt.mantissa_bits > 0 and high - fmt.mantissa_bits + 24 < 128
    return rounding is Rounding.stochastic and high <= 126 and -126 <= fmt.e_min - fmt.mantissa_bits <= 0


@cached
def numbers(fmt: NumberFormat) -> Numbers:
    """The numbers of a format that `serves` allows."""
    assert isinstance(fmt, FloatFormat)
    m = fmt.mantissa_bits
    turn = ((254 + m) << 23) - (1 << 32 if m > 1 else 0)
    return Numbers((fmt.e_min + 127) << 23, ((23 - m) << 23) + (1 << 22), m << 23, turn, float(fmt.max))


def nearest(
    x: Tensor,
    scale: Tensor | None,
    inverse: Tensor | None,
    signed_zero: bool,
    form: Numbers,
    *,
    keep: bool = False,
    zeros: bool = False,
) -> Tensor:
    """x on the grid `scale * format`, nearest even, saturated; float32, same shape. NaN stays.

    inverse: 1 / scale where that is exact, else None. signed_zero: the format has -0. keep: inf stays, too.
    zeros: scales can be 0, under which all that is finite becomes 0.
    """
    x, magnitude, binade = _enter(x, scale, inverse, form, zeros)
    shift = binade.add_(form.shift).view(torch.float32)
    return _leave(magnitude.add_(shift).sub_(shift), x, scale, signed_zero, keep, zeros)


def stochastic(
    x: Tensor,
    scale: Tensor | None,
    inverse: Tensor | None,
    signed_zero: bool,
    form: Numbers,
    key: Tensor,
    *,
    keep: bool = False,
    zeros: bool = False,
) -> Tensor:
    """The same with P(up) = the share of the gap passed, 24 bits counted from `key` for each element."""
    x, magnitude, binade = _enter(x, scale, inverse, form, zeros)
    steps = magnitude.mul_((form.turn - binade).view(torch.float32))
    low = steps.floor()
    up = counted_bits(x.shape, key, device=x.device).to(torch.float32).mul_(2.0**-24) < steps.sub_(low)
    return _leave(low.add_(up).mul_(binade.sub_(form.fall).view(torch.float32)), x, scale, signed_zero, keep, zeros)


def _enter(
    x: Tensor, scale: Tensor | None, inverse: Tensor | None, form: Numbers, zeros: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x in float32; its magnitude in grid units and within the range, and the bits of that one's binade, both fresh."""
    x = in_float32(x)
    if scale is not None and zeros:  # anything finite times 0, divided by 1 meanwhile
        scale = torch.where(scale == 0, 1.0, scale)
    # With the magnitude alone one comparison bounds it; a scale has no sign, so that of x will do at the end.
    units = x * inverse if inverse is not None else None if scale is None else x / scale
    magnitude = x.abs() if units is None else units.abs_()
    magnitude = magnitude.clamp_(max=form.top)
    return x, magnitude, (magnitude.view(torch.int32) & _EXPONENT).clamp_(min=form.lowest)


def _leave(magnitude: Tensor, x: Tensor, scale: Tensor | None, signed_zero: bool, keep: bool, zeros: bool) -> Tensor:
    """The rounded magnitude with the sign of x, times the scale; in place of the magnitude."""
    sign = x.view(torch.int32) & _SIGN
    q = magnitude.view(torch.int32).bitwise_or_(sign).view(torch.float32)
    if not signed_zero:
        q = torch.where(magnitude == 0, 0.0, q)
    if scale is not None and zeros:  # an infinity stays one where the scale is 0
        q, scale = q.mul_(scale), None
    if keep:
        q = keep_infinite(x, q)
    return q if scale is None else q.mul_(scale)


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    ready_compiler()
    return torch.compile(function, dynamic=True, fullgraph=True)


@functools.cache
def as_tensors(fmt: NumberFormat, device: torch.device) -> Numbers:
    """The format's numbers as scalar tensors on the device, int32 but for `top`, which is float32."""
    form = numbers(fmt)
    words = [torch.tensor(value, dtype=torch.int32, device=device) for value in form[:-1]]
    return Numbers._make([*words, torch.tensor(form.top, dtype=torch.float32, device=device)])


def cast_values(
    x: Tensor,
    scale: Tensor | None,
    fmt: NumberFormat,
    rounding: Rounding,
    *,
    exact_reciprocal: bool,
    zeros: bool = False,
    nonfinite: Nonfinite = "saturate",
    key: Tensor | None = None,
    engine: Engine = "eager",
    factor: Tensor | None = None,
) -> Tensor:
    """x on the grid `scale * fmt`, finite overflow saturated, as float32 of the same shape; for what `serves` allows.

    x: float32, bf16 or fp16. scale: None, or float32 that broadcasts with x; exact_reciprocal says that it holds powers
    of two only. factor: float32 of the scale's shape, which x is multiplied with instead of being divided; without a
    scale what comes back is in grid units. nonfinite: as for `round_to`. key: int64 scalar, for stochastic rounding.
    Both engines give the same bits.
    """
    function: Callable[..., Tensor] = nearest if rounding is Rounding.nearest_even else stochastic
    extra = () if function is nearest else (key,)
    keep = nonfinite == "keep"
    spread = scale if factor is None else factor
    whole = spread is None or spread.numel() == 1
    if scale is not None and whole:
        scale = held(scale)
    inverse = held(scale.reciprocal()) if scale is not None and whole and exact_reciprocal else None
    inverse = inverse if factor is None else held(factor) if whole else factor
    if traced := torch.compiler.is_compiling():
        whole_vectors_here()
    if engine == "eager" or x.numel() < SMALL or traced:
        return function(x, scale, inverse, fmt.has_negative_zero, numbers(fmt), *extra, keep=keep, zeros=zeros)
    taken = x.detach().contiguous().view(-1) if whole else x.detach()
    if whole:
        scale = None if scale is None else scale.reshape(())
        inverse = None if inverse is None else inverse.reshape(())
    form = as_tensors(fmt, x.device)
    made = _compiled(function)(taken, scale, inverse, fmt.has_negative_zero, form, *extra, keep=keep, zeros=zeros)
    return made.view(x.shape)


@functools.cache
def ready_compiler() -> None:
    """Tell torch's compiler how it is used here: with more graphs of one function than it expects, with autograd
    Functions that may be kept on disk, and by compilers that know every vector there is.

    A graph with an autograd Function of one's own is not taken from torch's cache unless allowed: ours are traced into
    it whole, and the next process of a sweep then waits 8 s for NVFP4 instead of 20.

    The one object that knows the dtypes of operations is told its rules anew for every operation of every kernel (torch
    2.9 to 2.13): 2 s for a block of NVFP4.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler as Dtypes
    from torch._inductor.utils import op_dtype_propagation_rules as rules

    begin, known = Dtypes.__init__, [-1]

    def begin_once(dtypes: Dtypes) -> None:
        if len(rules) != known[0]:
            begin(dtypes)
            known[0] = len(rules)

    Dtypes.__init__ = begin_once  # type: ignore[assignment,method-assign]
    whole_vectors()


@functools.cache
def whole_vectors() -> bool:
    """Tell Inductor's C++ to fill every vector that the processor has; whether it was told.

    Inductor's C++ looks at a float's bits by way of a buffer that is as long as a vector. For most of Intel's
    processors compilers prefer vectors of half that length: then the buffer is written in halves and read as a whole,
    which waits for both to be in memory. A cast took 4.0 ns an element instead of 0.8.

    Before its first C++ Inductor builds and loads a trial library for each width of vectors, also from a full cache:
    8 s. Which of them the processor has it finds out without.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    found = (
        subprocess.run([os.environ.get("CXX", "g++"), "-dumpversion"], capture_output=True, text=True, check=False)
        if shutil.which(os.environ.get("CXX", "g++"))
        else None
    )
    if found is None or not found.stdout.partition(".")[0].strip().isdigit():
        return False
    if int(found.stdout.partition(".")[0]) < KNOWS_VECTORS:
        return False
    import torch._inductor.config as inductor

    if inductor.cpp.vec_isa_ok is None:
        inductor.cpp.vec_isa_ok = True
    from torch._inductor.cpu_vec_isa import VecAVX512

    kinds: list[type[VecAVX512]] = [VecAVX512]
    for vectors in kinds:
        kinds += vectors.__subclasses__()
        if WHOLE_VECTORS not in vectors._arch_flags:
            vectors._arch_flags += WHOLE_VECTORS
    return True


def whole_vectors_here() -> bool:
    """The same from code that is traced into someone else's `torch.compile`: done then, and no part of the graph."""
    return whole_vectors()


# As torch.compiler.assume_constant_result would, which loads the compiler to say so.
whole_vectors_here._dynamo_marked_constant = True  # type: ignore[attr-defined]


def quickly() -> dict[str, Any]:
    """Options of torch.compile for graphs of many kernels: the ends of rows that fill no vector, which most models have
    none of, are done one number at a time, for which code is there anyway. A third form of every kernel took an eighth
    of compiling (46 to 40 s)."""
    return known_options({"cpp.enable_loop_tail_vec": False})


def known_options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these options of torch.compile that this torch has."""
    known = torch._inductor.list_options()
    return {name: value for name, value in wanted.items() if name in known}


def missing_compiler(device: torch.device) -> str | None:
    """Why `compiled` cannot work for tensors on this device, in words; None if it can."""
    if device.type != "cpu":
        return None
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name) or shutil.which("clang++")
    return None if found else f"there is no C++ compiler here ({name} is not on the PATH)"
