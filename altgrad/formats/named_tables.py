"""The values of the tables that have a name (`catalog.TABLES`).

Codes are those of the format's own specification, so that other programs read what we store. Sources:

    int4, int8      two's complement; torch.int8, ml_dtypes.int4
    nf4, bnb_fp4    bitsandbytes 0.50.2 (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E), whose fp4 is no e2m1;
                    midpoints as its CPU library has them, rounded to float32, and itself down
    dynamic8, dynamic8_unsigned, dynamic4
                    the dynamic tree of 8-bit optimizers (Dettmers et al., arXiv 2110.02861), as bitsandbytes 0.50.2 and
                    torchao 0.18.0 make it: decades, each cut into twice as many parts as the one below, codes in the
                    order of values. torch.linspace made the parts in float32 with a fused multiply-add
    linear4_unsigned   k / 16 for k = 1 to 16: of torchao 0.18.0, after Li et al., arXiv 2309.01507
    ternary         BitNet b1.58 (arXiv 2402.17764)
    lns8            sign and a 7-bit logarithm to the base 2^(1/8), rounded in the logarithm and never to zero, as
                    LNS-Madam has it (arXiv 2106.13914); its lowest value, 2^0, is given up for a zero
    posit8          es = 2, Standard for Posit Arithmetic (2022): rounds the bit string, never to zero nor to NaR, which
                    is our NaN. posit8_es0 is the 8-bit posit of before the standard (es = 0), softposit's `posit8`
    hif8            HiFloat8 (arXiv 2409.16626): 3, 2 or 1 mantissa bits, fewer the larger its exponent, and 2^-22 to
                    2^-16. It rounds half away (`rounding: nearest_away`), from 1.25 * 2^15 on to inf (`overflow: inf`)
"""

import functools
import math
from collections.abc import Callable
from itertools import pairwise

from altgrad.formats.table import TableFormat, float32, float32_after

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_BNB_FP4 = (0.0, 0.0052083334885537624, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25)


def _bitsandbytes(values: tuple[float, ...], name: str) -> TableFormat:
    """A codebook of bitsandbytes, which compares `x > t` with the float32 number t nearest to each midpoint.

    Said as a midpoint that no float32 number is, just above t: so there are no ties.
    """
    ranked = TableFormat(values).ranked
    middles = [float32((low + high) / 2) for low, high in pairwise(ranked)]
    return TableFormat(values, tuple((middle + float32_after(middle)) / 2 for middle in middles), label=name)


def _dynamic(bits: int, decades: int, name: str, *, signed: bool) -> TableFormat:
    """The dynamic tree: 0, 1 and the middles of the parts of each decade."""
    spare = bits - 1 - decades
    parts = [2 ** (decade + spare + (0 if signed else 1)) for decade in range(decades)]
    upper = [value for decade, count in enumerate(parts) for value in _middles(count, 10.0 ** (decade + 1 - decades))]
    if spare:
        upper += _middles(2**spare - 1, 1.0)
    return TableFormat(tuple(sorted((0.0, 1.0, *upper, *(-value for value in upper if signed)))), label=name)


def _middles(count: int, factor: float) -> list[float]:
    """The middles of `count` equal parts of [0.1, 1], times a factor, each operation in float32."""
    first, step = float32(0.1), float32((1.0 - float32(0.1)) / count)
    number = count + 1
    ends = [float32(first + step * i) if i < number // 2 else float32(1.0 - step * (count - i)) for i in range(number)]
    return [float32(float32(factor) * float32(float32(low + high) / 2)) for low, high in pairwise(ends)]


def _twos_complement(bits: int) -> tuple[float, ...]:
    """The integers of so many bits, by code."""
    half = 1 << (bits - 1)
    return tuple(float(code - 2 * half * (code >= half)) for code in range(2 * half))


def posit_value(code: int, bits: int, es: int) -> float:
    """The value of a posit's code; NaN for NaR."""
    half = 1 << (bits - 1)
    if code in (0, half):
        return 0.0 if code == 0 else math.nan
    if code > half:
        return -posit_value(2 * half - code, bits, es)
    word = f"{code:0{bits}b}"[1:]
    run = len(word) - len(word.lstrip(word[0]))
    regime = run - 1 if word[0] == "1" else -run
    rest = word[run + 1 :]
    exponent = int(rest[:es].ljust(es, "0") or "0", 2)
    fraction = rest[es:]
    significand = (1 << len(fraction)) + int(fraction or "0", 2)
    return math.ldexp(significand, (regime << es) + exponent - len(fraction))


def posit(bits: int, es: int, label: str = "") -> TableFormat:
    """A posit. Its midpoints are the posits of a bit more, but beside zero, to which nothing rounds."""
    half = 1 << (bits - 1)
    values = tuple(posit_value(code, bits, es) for code in range(2 * half))
    upper = [posit_value(2 * code + 1, bits + 1, es) for code in range(1, half - 1)]
    return TableFormat(values, (*(-middle for middle in reversed(upper)), 0.0, 0.0, *upper), label=label)


def _lns8(name: str) -> TableFormat:
    upper = [2.0 ** (k / 8) for k in range(1, 128)]
    middles = [2.0 ** ((2 * k + 1) / 16) for k in range(1, 127)]
    values = (0.0, *upper, -0.0, *(-value for value in upper))
    ends = (-(2.0 ** (257 / 16)), 2.0 ** (257 / 16))
    return TableFormat(values, (*(-m for m in reversed(middles)), 0.0, 0.0, *middles), ends, name)


def _hif8_magnitude(code: int) -> float:
    """The value of a code below 0x80: after the sign a prefix that says how many bits the exponent has."""
    word = f"{code:07b}"
    for prefix, width in (("11", 4), ("10", 3), ("01", 2), ("001", 1), ("0001", 0)):
        if word.startswith(prefix):
            rest = word[len(prefix) :]
            size = int("1" + rest[1:width], 2) if width else 0
            exponent = -size if width and rest[0] == "1" else size
            fraction = rest[width:]
            return math.ldexp(1 + int(fraction, 2) / (1 << len(fraction)), exponent)
    return math.ldexp(1.0, code - 23) if code else 0.0


def _hif8(name: str) -> TableFormat:
    upper = [_hif8_magnitude(code) for code in range(128)]
    top = max(upper)  # 1.5 * 2^15, whose code is infinity
    upper[upper.index(top)] = math.inf
    values = (*upper, math.nan, *(-value for value in upper[1:]))
    return TableFormat(values, next=(-top, top), label=name)


_MAKERS: dict[str, Callable[[str], TableFormat]] = {
    "int8": lambda name: TableFormat(_twos_complement(8), label=name),
    "int4": lambda name: TableFormat(_twos_complement(4), label=name),
    "ternary": lambda name: TableFormat((-1.0, 0.0, 1.0), label=name),
    "nf4": lambda name: _bitsandbytes(_NF4, name),
    "bnb_fp4": lambda name: _bitsandbytes((*_BNB_FP4, 0.0, *(-value for value in _BNB_FP4[1:])), name),
    "dynamic8": lambda name: _dynamic(8, 7, name, signed=True),
    "dynamic8_unsigned": lambda name: _dynamic(8, 7, name, signed=False),
    "dynamic4": lambda name: _dynamic(4, 3, name, signed=True),
    "linear4_unsigned": lambda name: TableFormat(tuple(k / 16 for k in range(1, 17)), label=name),
    "lns8": _lns8,
    "posit8": lambda name: posit(8, 2, name),
    "posit8_es0": lambda name: posit(8, 0, name),
    "hif8": _hif8,
}


@functools.cache
def named_table(name: str) -> TableFormat:
    """The table of that canonical name (one of TABLES)."""
    return _MAKERS[name](name)
