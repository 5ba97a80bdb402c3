"""One of our formats as gfloat's record of it: the outside description of any format, for oracles and for timing."""

from gfloat import Domain, FormatInfo

from altgrad.formats import FloatFormat


def gfloat_format(fmt: FloatFormat) -> FormatInfo:
    """gfloat's record, built from the four facts and gfloat's own conventions."""
    top_nans = {"ieee": (1 << fmt.mantissa_bits) - 1, "fn": 1, "fnuz": 0, "p3109": 0, "f": 0}
    return FormatInfo(
        str(fmt),
        fmt.bits,
        fmt.mantissa_bits + 1,
        bias=fmt.bias if fmt.exponent_bits else 1,  # gfloat's E = 0 has e_min = 1 - bias like the others
        is_signed=True,
        domain=Domain.Extended if fmt.specials in ("ieee", "p3109") else Domain.Finite,
        has_nz=fmt.specials not in ("fnuz", "p3109"),
        num_high_nans=top_nans[fmt.specials],
        has_subnormals=True,
        is_twos_complement=False,
    )
