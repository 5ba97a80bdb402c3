"""The next format of the same width: a bit moved between exponent and mantissa.

    e4m3fn -> e5m2fn (towards range)        e4m3fn -> e3m4fn (towards resolution)

Specials stay. The bias keeps its distance from the default of its exponent width, so an unscaled tensor stays in the
middle of the range; under a scale the bias makes no difference. A format without normals (E = 0) has no bias and gets
the default one.
"""

from altgrad.formats.format import FloatFormat
from altgrad.formats.number_format import NumberFormat


def neighbour(fmt: NumberFormat, exponent_bits: int) -> FloatFormat | None:
    """The format with so many more exponent bits (fewer if negative) and as many fewer mantissa bits.

    None where there is none: no bit left to move, specials that the new split has no room for, or a table of values.
    """
    if not isinstance(fmt, FloatFormat):
        return None
    e, m = fmt.exponent_bits + exponent_bits, fmt.mantissa_bits - exponent_bits
    if e < 0 or m < 0:
        return None
    try:
        offset = fmt.bias - _default(fmt) if fmt.exponent_bits and e else 0
        return FloatFormat(e, m, _default_bias(e, m, fmt) + offset, fmt.specials)
    except ValueError:
        return None


def _default(fmt: FloatFormat) -> int:
    return _default_bias(fmt.exponent_bits, fmt.mantissa_bits, fmt)


def _default_bias(e: int, m: int, fmt: FloatFormat) -> int:
    return FloatFormat.parse(f"e{e}m{m}{fmt.specials}").bias
