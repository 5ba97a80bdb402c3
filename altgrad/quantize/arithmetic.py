"""Orders of operations: one definition of a scale, s = amax / max, and the last bits that vendors make of it.

The grid is the same for all of them; what differs is which of the exact numbers are rounded to float32, and so now and
then which neighbour an element goes to, or which code a block's scale has. Equality bit for bit with a vendor's own
reference needs its order. This is the one file of `quantize` that knows vendors; everything else asks for a name.

With A the outer amax (of the tensor, a row or k elements), a a block's, M the format's largest value (times `target`),
B the largest inner scale, fl one rounding to float32 and R the rounding to the scale's format:

    one level     the number        in grid units    values
    divide        s = fl(a/M)       x / s            q s          also fouroversix, quartet, tetrajet
    reciprocal    s = fl(a/M)       x fl(1/s)        q s          also deepgemm
    encode        f = fl(M/a)       x f              q fl(1/f)    also te
    torchao       f = fl(M/a)       x f              q / f
    jetfire       s = fl(a/M)       x / s            q R(s)       where scales have a format; else, and under an outer
                                                                  scale, divide

    two levels    outer             inner                     in grid units      values
    divide        t = fl(A/BM)      b = R(a / fl(t M))        x / fl(b t)        q fl(b t)
    reciprocal    t = fl(A/BM)      b = R(a / fl(t M))        x fl(1/fl(b t))    q fl(b t)    also deepgemm
    encode        f = fl(BM/A)      b = R(fl(a/M) f)          x fl(1/fl(b d))    q fl(b d)    d = fl(1/f)
    te            f = fl(BM/A)      b = R(a fl(f fl(1/M)))    x fl(1/fl(b d))    (q b) fl(A/BM)
    torchao       t = fl(A/BM)      b = R(fl(a/M) / t)        x fl(fl(1/t)/b)    q fl(t b)
    fouroversix   f = fl(BM/A)      b = R(fl(a/M) f)          x fl(1/fl(b d))    (q b) fl(A/BM)
    quartet       t = fl(fl(A/B)/M) b = R(fl(a/M) / t)        x / fl(b t)        q fl(b t)
    tetrajet      t = fl(fl(A/B)/M) b = R(fl(a/t) / M)        x / fl(b t)        q fl(b t)
    compressed_tensors
                  f = fl(BM/A)      b = R(fl(a/M) f)          x / fl(b/f)        q fl(b/f)    f = 1 where that is inf

compressed_tensors on one level is divide; `mode: even` rounds an amax to e2m1's one bit there, whatever the format.
Factors of encode, te, torchao and fouroversix end at float32's largest number; an element that overflows saturates.
Where b is 0 the factor of te is that number, so codes are the largest and values 0; encode and fouroversix make the
codes 0, too.
Where `choose` tries another maximum c, M stays in the outer scale; divide, quartet, tetrajet and torchao take c for M
in b, the others multiply what R gets by M/c (and te takes fl(a/M) f there).

Sources: TransformerEngine's reference_nvfp4.py, reference_current_scaling.py and blockwise_quantizer_reference.py;
DeepGEMM's utils/math.py; torchao's float8_scaling_utils.py and nvfp4_tensor.py; fouroversix's reference.py; Quartet
II's nvfp4_triton.py (arXiv 2601.22813); TetraJet-v2's nvfp4_quant_fused_kernel.py (arXiv 2510.27527); Jetfire's
Nonlinear/quantize.py (arXiv 2403.12422); compressed-tensors' quantization/utils and lifecycle/forward_helpers.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantize.block_scale import LARGEST, Scales
from altgrad.quantize.traced import held

Arithmetic = Literal[
    "divide", "reciprocal", "encode", "te", "torchao", "fouroversix", "deepgemm", "quartet", "tetrajet", "jetfire",
    "compressed_tensors",
]  # fmt: skip
LEAST_FACTOR = 2.0**-127
"""The inverse of the largest scale that is a power of two."""
ENCODES = ("encode", "te", "torchao")
"""Whose one-level scale is found as its reciprocal."""
TWO_STEPS = ("te", "fouroversix")
"""Whose values of two levels are (q * inner) * outer."""


@dataclass(frozen=True)
class Levels:
    """What two-level scales are found from.

    amax: of blocks. outer: of what shares an outer scale, broadcastable with `amax`; None for an outer scale of 1.
    top: the grid value that an amax goes to. bound: the inner scale that the outer amax goes to. rounded: to the format
    of inner scales. candidate: another grid value for `amax`, while several are tried.
    """

    amax: Tensor
    outer: Tensor | None
    top: float
    bound: float
    rounded: Callable[[Tensor], Tensor]
    candidate: float | None = None

    def quotient(self, number: Tensor, *divisors: float) -> Tensor:
        """number divided by one after the other, at most the largest float32: by tensors, since CUDA multiplies with a
        number's reciprocal."""
        for divisor in divisors:
            number = number / torch.full_like(number, divisor)
        return number.clamp(max=LARGEST)

    def clamped(self, largest: float, scale: Tensor) -> Tensor:
        """How many scales do not fit: inner ones beyond `largest` where they are all there is; else outer ones too
        small for float32, and scales of both levels that are held at its largest number."""
        if self.outer is None:
            return torch.count_nonzero(self.quotient(self.amax, self.maximum) > largest)
        return torch.count_nonzero((self.outer > 0) & (_outer_quotient(self) == 0)) + torch.count_nonzero(
            scale == LARGEST
        )

    @property
    def maximum(self) -> float:
        """Where this block's amax goes."""
        return self.top if self.candidate is None else self.candidate


def encoder(amax: Tensor, top: float, floor: float, arithmetic: Arithmetic, *, power_of_two: bool = False) -> Tensor:
    """What `ENCODES` find: the factor that takes each amax (float32, any shape) to `top`; 1 for an amax of 0.

    power_of_two: rounded down to one.
    """
    if arithmetic == "torchao" and floor:  # which compares and divides in float64
        lowest = torch.full_like(amax, top / floor)
        factor = torch.where(amax < _least_float32(floor), lowest, torch.full_like(amax, top) / amax)
    else:
        factor = torch.full_like(amax, top) / raised(amax, floor)
    factor = factor.clamp(LEAST_FACTOR, LARGEST)
    if power_of_two:
        powers = (factor.view(torch.int32) & 0x7F800000).view(torch.float32)
        factor = torch.where(factor < 2 * LEAST_FACTOR, LEAST_FACTOR, powers)  # a sub-normal, which has no exponent
    return factor if floor else torch.where(amax > 0, factor, 1.0)


def one_level(number: Tensor, arithmetic: Arithmetic, prescale: float = 1.0) -> Scales:
    """How a scale (of `ENCODES` a factor) is used; x is multiplied by `prescale`, and values are divided by it."""
    if arithmetic in ENCODES:
        return Scales(number.reciprocal() / prescale, number * prescale, divides=arithmetic == "torchao")
    scale = number if prescale == 1 else number / torch.full_like(number, prescale)
    if arithmetic in ("reciprocal", "deepgemm"):
        return Scales(scale, number.reciprocal() * prescale)
    return Scales(scale)


def two_levels(levels: Levels, arithmetic: Arithmetic) -> Scales:
    """Inner scales on the grid of their format, under an outer one."""
    return _TWO_LEVELS[arithmetic](levels)


def _product(inner: Tensor, outer: Tensor) -> Tensor:
    """A scale of two levels. Under a format or margin that ends below 1 it can leave float32; it stays the largest
    number, else what is finite would become NaN."""
    return (inner * outer).clamp(max=LARGEST)


def _divide(levels: Levels) -> Scales:
    if levels.outer is None:
        return Scales(levels.rounded(levels.quotient(levels.amax, levels.maximum)))
    outer = outer_scale(levels)
    return Scales(_product(levels.rounded(levels.amax / (outer * levels.maximum)), outer))


def _jetfire(levels: Levels) -> Scales:
    found = _divide(levels)
    return found if levels.outer is not None else found._replace(divisor=levels.quotient(levels.amax, levels.maximum))


def outer_scale(levels: Levels) -> Tensor:
    """fl(A/BM); where that is 0 it is 1, under which every block is."""
    return held(_or_one(_outer_quotient(levels)))


def _outer_quotient(levels: Levels) -> Tensor:
    """A/BM in one division, or two where BM is beyond float32."""
    assert levels.outer is not None
    if levels.bound * levels.top < 2.0**128:
        return levels.quotient(levels.outer, levels.bound * levels.top)
    return levels.quotient(levels.outer, levels.top, levels.bound)


def _reciprocal(levels: Levels) -> Scales:
    found = _divide(levels)
    return found._replace(factor=(1 / found.scale).clamp(max=LARGEST))


def _quartet(levels: Levels) -> Scales:
    if levels.outer is None:
        return _divide(levels)
    outer = _or_one(levels.quotient(levels.outer, levels.bound, levels.top))
    return Scales(_product(levels.rounded(levels.quotient(levels.amax, levels.maximum) / outer), outer))


def _tetrajet(levels: Levels) -> Scales:
    if levels.outer is None:
        return _divide(levels)
    outer = _or_one(levels.quotient(levels.outer, levels.bound, levels.top))
    return Scales(_product(levels.rounded(levels.quotient(levels.amax / outer, levels.maximum)), outer))


def _compressed_tensors(levels: Levels) -> Scales:
    if levels.outer is None:
        return _divide(levels)
    factor = global_scale(levels.outer, levels.bound * levels.top)
    wanted = levels.quotient(levels.amax, levels.top) * factor
    return Scales((levels.rounded(_toward(wanted, levels)) / factor).clamp(max=LARGEST))


def global_scale(outer: Tensor, top: float) -> Tensor:
    """fl(BM/A), the factor that compressed-tensors stores for a tensor; 1 where A is so small that it would be inf."""
    factor = torch.full_like(outer, top) / outer
    return torch.where((factor < math.inf) & (factor > 0), factor, 1.0)


def _torchao(levels: Levels) -> Scales:
    wanted = levels.quotient(levels.amax, levels.maximum)
    if levels.outer is None:
        inner = levels.rounded(wanted)
        return Scales(inner, (1 / inner).clamp(max=LARGEST))
    outer = outer_scale(levels)
    inner = levels.rounded(wanted / outer)
    return Scales(_product(inner, outer), ((1 / outer) / inner).clamp(max=LARGEST))


def _encode(levels: Levels) -> Scales:
    found = _fouroversix(levels)
    if levels.outer is None or found.inner is None:
        return found
    return Scales(_product(found.inner, _decoder(levels)), found.factor)


def _fouroversix(levels: Levels) -> Scales:
    found = _expanded(levels)
    assert found.factor is not None
    return found._replace(factor=torch.where(found.scale == 0, 0.0, found.factor))


def _expanded(levels: Levels) -> Scales:
    wanted = levels.quotient(levels.amax, levels.top)
    if levels.outer is not None:
        wanted = wanted * _encoder(levels)
    return _encoded(levels.rounded(_toward(wanted, levels)), levels)


def _te(levels: Levels) -> Scales:
    if levels.candidate is not None or levels.outer is None:
        return _expanded(levels)
    sixth = torch.full_like(levels.outer, levels.top).reciprocal()
    wanted = (levels.amax * (_encoder(levels) * sixth)).clamp(max=LARGEST)
    return _encoded(levels.rounded(wanted), levels)


def _encoder(levels: Levels) -> Tensor:
    """fl(BM/A), which takes the outer amax to the largest inner scale."""
    assert levels.outer is not None
    factor = torch.full_like(levels.outer, levels.bound * levels.top) / levels.outer
    factor = factor.clamp(max=LARGEST)
    return torch.where(factor == 0, 1.0, factor)


def _decoder(levels: Levels) -> Tensor:
    return (1 / _encoder(levels)).clamp(max=LARGEST)


def _toward(wanted: Tensor, levels: Levels) -> Tensor:
    return wanted if levels.candidate is None else wanted * (levels.top / levels.candidate)


def _encoded(inner: Tensor, levels: Levels) -> Scales:
    """x fl(1/fl(b d)) and (q b) fl(A/BM)."""
    if levels.outer is None:
        return Scales(inner, (1 / inner).clamp(max=LARGEST))
    decoder = _decoder(levels)
    outer = levels.quotient(levels.outer, levels.bound * levels.top)
    return Scales(_product(inner, outer), (1 / _product(inner, decoder)).clamp(max=LARGEST), inner, outer)


def outer_number(levels: Levels, arithmetic: Arithmetic) -> Tensor:
    """What the inner scales of an arithmetic are multiplied with."""
    if levels.outer is None:
        return torch.ones_like(levels.amax)
    if arithmetic in ("quartet", "tetrajet"):
        return _or_one(levels.quotient(levels.outer, levels.bound, levels.top))
    if arithmetic == "encode":
        return _decoder(levels)
    if arithmetic == "compressed_tensors":
        return global_scale(levels.outer, levels.bound * levels.top).reciprocal()
    if arithmetic in ("te", "fouroversix"):
        return levels.quotient(levels.outer, levels.bound * levels.top)
    return outer_scale(levels)


_TWO_LEVELS: dict[str, Callable[[Levels], Scales]] = {
    "divide": _divide,
    "reciprocal": _reciprocal,
    "deepgemm": _reciprocal,
    "encode": _encode,
    "te": _te,
    "torchao": _torchao,
    "fouroversix": _fouroversix,
    "quartet": _quartet,
    "tetrajet": _tetrajet,
    "jetfire": _jetfire,
    "compressed_tensors": _compressed_tensors,
}


def even_bits(fmt: NumberFormat, arithmetic: Arithmetic) -> int:
    """The mantissa bits to which `mode: even` rounds an amax."""
    return 1 if arithmetic == "compressed_tensors" else fmt.mantissa_bits


def powers(scale: Tensor, mode: str, arithmetic: Arithmetic, prescale: float) -> Scales:
    """How a power of two of a `mode` is used. torchao has no inverse of e8m0's least, 2^-127: floor, ceil and even
    divide by 2^-126 instead, so what comes back is halved, and rceil divides by 1."""
    if arithmetic == "torchao":
        instead = 1.0 if mode == "rceil" else 2.0**126
        factor = torch.where(scale == 2.0**-127, instead, scale.reciprocal())
        return Scales(scale / prescale, factor * prescale)
    return one_level(scale.reciprocal() if arithmetic in ENCODES else scale, arithmetic, prescale)


def candidate_values(q: Tensor, scales: Scales, outer: Tensor | None, top: float, arithmetic: Arithmetic) -> Tensor:
    """The values by which `choose` judges; te and fouroversix multiply with A before they divide by BM (`top`)."""
    if arithmetic in TWO_STEPS and scales.inner is not None and outer is not None:
        values = q * scales.inner * outer
        return values / torch.full_like(values, top)
    return scales.values(q)


def added(errors: Tensor, arithmetic: Arithmetic) -> Tensor:
    """The sum over the last axis in a fixed order, so that it is the same compiled: one after the other for te and
    fouroversix, else the halves onto one another until one is left."""
    if arithmetic in ("te", "fouroversix"):
        total = errors[..., 0]
        for index in range(1, errors.shape[-1]):
            total = total + errors[..., index]
        return total
    return halved(errors)


def halved(errors: Tensor) -> Tensor:
    """The sum over the last axis, by adding its second half to its first, again and again."""
    size = 1 << (errors.shape[-1] - 1).bit_length()
    if size != errors.shape[-1]:
        errors = torch.nn.functional.pad(errors, (0, size - errors.shape[-1]))
    while size > 1:
        size //= 2
        errors = errors[..., :size] + errors[..., size : 2 * size]
    return errors[..., 0]


def raised(amax: Tensor, floor: float) -> Tensor:
    """amax, where it is less, at the floor as float32 has it."""
    return amax.clamp(min=floor) if floor else amax


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


def _least_float32(floor: float) -> float:
    """The least float32 that is not below a (normal) number."""
    mantissa, exponent = math.frexp(floor)
    return math.ldexp(math.ceil(mantissa * 2.0**24), exponent - 24)
