"""Other packages that cast to a number format, each behind the same two functions.

An adapter says which of our formats its package knows, by returning a cast for them and None for the rest, and how the
package is told of a format: by the way its documentation names for exactly that format, never by a near one. Casts take
a float32 tensor, unscaled, and return float32; one that works on arrays takes a tensor on the CPU. Nothing is imported
before a cast is asked for, so what is not installed costs a look-up. `pip install "altgrad[peers]"` brings them.

Left out: block casts whose element format cannot be had alone, and fixed-point modules, which are other functions with
other arguments. microxcaling is not on PyPI.
"""

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from altgrad.formats import CATALOG, FloatFormat

Cast = Callable[[Tensor], Tensor]
Adapter = Callable[[FloatFormat], Cast | None]
RANDOM_BITS = 24


class Peer(NamedTuple):
    """One way of one package."""

    name: str
    """What a table calls it."""
    package: str
    """The package's name on PyPI."""
    module: str
    emulates: str
    """Which formats it can be told of, beyond those with a name."""
    configured: str
    """How it was told, in a line."""
    nearest: Adapter
    stochastic: Adapter
    on_tensors: bool = True
    """Whether it works on torch tensors, on any device; else on arrays in the host's memory."""

    @property
    def version(self) -> str | None:
        """The installed version, `source` for a bare checkout; None where it is not installed."""
        try:
            there = importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # the parent of a dotted name
            return None
        try:
            return version(self.package) if there else None
        except PackageNotFoundError:
            return "source"


def unknown(fmt: FloatFormat) -> Cast | None:
    """The adapter of a package without such a rounding."""
    return None


def ieee_bias(fmt: FloatFormat) -> bool:
    """Whether the bias is IEEE's, 2^(E-1) - 1."""
    return fmt.exponent_bits > 0 and fmt.bias == (1 << (fmt.exponent_bits - 1)) - 1


def centred(fmt: FloatFormat) -> bool:
    """Whether the bias is that of P3109 and fnuz, 2^(E-1)."""
    return fmt.exponent_bits > 0 and fmt.bias == 1 << (fmt.exponent_bits - 1)


def from_array(values: ArrayLike) -> Tensor:
    """A float32 tensor of what a package of arrays gave."""
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def named_dtype(module: ModuleType, fmt: FloatFormat) -> Any:
    """The dtype that a module has under one of the catalog's other names for a format; None where it has none."""
    spellings = [alias for entry in CATALOG if entry.name == str(fmt) for alias in (entry.name, *entry.aliases)]
    return next((getattr(module, name) for name in spellings if hasattr(module, name)), None)


def torch_dtype(fmt: FloatFormat) -> Cast | None:
    dtype = named_dtype(torch, fmt)
    return None if dtype is None else lambda x: x.to(dtype).to(torch.float32)


def ml_dtypes_dtype(fmt: FloatFormat) -> Cast | None:
    import ml_dtypes

    dtype = named_dtype(ml_dtypes, fmt)
    return None if dtype is None else lambda x: from_array(x.numpy().astype(dtype))


def gfloat_nearest(fmt: FloatFormat) -> Cast | None:
    from gfloat import RoundMode, round_ndarray

    from bench.gfloat_format import gfloat_format

    info = gfloat_format(fmt)
    return lambda x: from_array(round_ndarray(info, x.numpy().astype(np.float64), RoundMode.TiesToEven, True))


def gfloat_stochastic(fmt: FloatFormat) -> Cast | None:
    from gfloat import RoundMode, round_ndarray

    from bench.gfloat_format import gfloat_format

    info, random = gfloat_format(fmt), np.random.default_rng(0)

    def cast(x: Tensor) -> Tensor:
        bits = random.integers(0, 1 << RANDOM_BITS, x.shape)
        wide = x.numpy().astype(np.float64)
        return from_array(round_ndarray(info, wide, RoundMode.Stochastic, True, bits, RANDOM_BITS))

    return cast


def _brevitas(fmt: FloatFormat, rounding: torch.nn.Module) -> Cast | None:
    from brevitas.core.bit_width import BitWidthConst
    from brevitas.core.bit_width.float import ComputeMaxMantissa, StaticExponentBias
    from brevitas.core.function_wrapper import FloatClamp, Identity, TensorClamp
    from brevitas.core.quant.float import FloatQuant

    if fmt.exponent_bits == 0:
        return None
    quantizer = FloatQuant(
        signed=True,
        exponent_bit_width_impl=BitWidthConst(fmt.exponent_bits),
        mantissa_bit_width_impl=BitWidthConst(fmt.mantissa_bits),
        exponent_bias_impl=StaticExponentBias(fmt.bias),
        float_clamp_impl=FloatClamp(TensorClamp(), signed=True, max_available_float=float(fmt.max), saturating=True),
        input_view_impl=Identity(),
        compute_max_mantissa=ComputeMaxMantissa(),
        float_to_int_impl=rounding,
    )
    return lambda x: quantizer(x)[0]


def brevitas_nearest(fmt: FloatFormat) -> Cast | None:
    from brevitas.core.function_wrapper import RoundSte

    return _brevitas(fmt, RoundSte())


def brevitas_stochastic(fmt: FloatFormat) -> Cast | None:
    from brevitas.core.function_wrapper.stochastic_round import StochasticRoundSte

    return _brevitas(fmt, StochasticRoundSte(deterministic_inference=False, seed=0))


def torchao_nearest(fmt: FloatFormat) -> Cast | None:
    dtype = named_dtype(torch, fmt)
    if dtype is not None and fmt.bits == 8:
        from torchao.float8.float8_utils import to_fp8_saturated

        return lambda x: to_fp8_saturated(x, dtype).to(torch.float32)
    if fmt.specials != "f" or not ieee_bias(fmt) or fmt.bits > 8:
        return None
    from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32

    e, m = fmt.exponent_bits, fmt.mantissa_bits
    return lambda x: _floatx_unpacked_to_f32(_f32_to_floatx_unpacked(x, e, m), e, m)


def _pychop(fmt: FloatFormat, ieee_mode: int, rounding: str) -> Cast | None:
    import pychop

    pychop.backend("torch")
    if fmt.specials == "ieee" and ieee_bias(fmt):
        chop = pychop.Chop(exp_bits=fmt.exponent_bits, sig_bits=fmt.mantissa_bits, rmode=ieee_mode)
        return lambda x: chop(x)
    if fmt.specials not in ("p3109", "fnuz") or not centred(fmt):
        return None
    draft = pychop.P3109Format(fmt.bits, fmt.mantissa_bits + 1, True, "extended" if fmt.has_inf else "finite")
    if rounding == "nearest_even":
        return lambda x: pychop.p3109_quantize(x, draft, rounding=rounding, saturate=True)

    def cast(x: Tensor) -> Tensor:
        bits = torch.randint(1 << RANDOM_BITS, x.shape, device=x.device)
        return pychop.p3109_quantize(x, draft, rounding=rounding, saturate=True, srbits=bits, srnumbits=RANDOM_BITS)

    return cast


def quanto_nearest(fmt: FloatFormat) -> Cast | None:
    from optimum.quanto import qtypes, quantize_activation

    qtype = qtypes.get(f"qfloat8_{fmt}")
    one = torch.tensor(1.0)
    return None if qtype is None else lambda x: quantize_activation(x, qtype, one.to(x.device)).dequantize()


def apytypes_nearest(fmt: FloatFormat) -> Cast | None:
    from apytypes import APyFloatArray

    if fmt.specials != "ieee":
        return None
    e, m = fmt.exponent_bits, fmt.mantissa_bits
    return lambda x: from_array(APyFloatArray.from_array(x.numpy(), e, m, fmt.bias).to_numpy())


def _apytypes_cast(fmt: FloatFormat, mode: str) -> Cast | None:
    from apytypes import APyFloatArray, QuantizationMode, set_float_quantization_seed

    if fmt.specials != "ieee":
        return None
    e, m, quantization = fmt.exponent_bits, fmt.mantissa_bits, getattr(QuantizationMode, mode)
    set_float_quantization_seed(0)

    def cast(x: Tensor) -> Tensor:
        wide = APyFloatArray.from_array(x.numpy(), 8, 23)
        return from_array(wide.cast(e, m, fmt.bias, quantization).to_numpy())

    return cast


def _unit_scaling(fmt: FloatFormat, rounding: str) -> Cast | None:
    from unit_scaling.formats import FPFormat

    if fmt.exponent_bits < 2 or not centred(fmt) or fmt.specials not in ("f", "fnuz"):
        return None
    return FPFormat(fmt.exponent_bits, fmt.mantissa_bits, rounding).quantise


def _qtorch(fmt: FloatFormat, rounding: str) -> Cast | None:
    if fmt.specials != "f" or not ieee_bias(fmt) or fmt.mantissa_bits == 0:
        return None
    from qtorch.quant import float_quantize

    return lambda x: float_quantize(x, fmt.exponent_bits, fmt.mantissa_bits, rounding)


_IEEE = "IEEE ones by E, M and bias"
PEERS = (
    Peer("torch dtype", "torch", "torch", "no", "`x.to(dtype).to(float32)`", torch_dtype, unknown),
    Peer(
        "ml_dtypes", "ml_dtypes", "ml_dtypes", "no", "`x.astype(dtype).astype(float32)`", ml_dtypes_dtype, unknown,
        on_tensors=False,
    ),
    Peer(
        "gfloat", "gfloat", "gfloat", "any E, M, bias and specials",
        "`round_ndarray` in float64, `TiesToEven` or `Stochastic` with 24 bits, `sat=True`",
        gfloat_nearest, gfloat_stochastic, on_tensors=False,
    ),
    Peer(
        "brevitas", "brevitas", "brevitas", "any with E >= 1, by bias and largest value",
        "`FloatQuant` at scale 1 with `StaticExponentBias`, `FloatClamp(max_available_float=...)`, `RoundSte` or"
        " `StochasticRoundSte`",
        brevitas_nearest, brevitas_stochastic,
    ),
    Peer(
        "torchao", "torchao", "torchao", "E >= 1, up to 8 bits, IEEE's bias, no specials (a private function)",
        "`to_fp8_saturated` for torch's dtypes; `_f32_to_floatx_unpacked` and back, as under its MX formats",
        torchao_nearest, unknown,
    ),
    Peer(
        "pychop", "pychop", "pychop", "IEEE ones by E and M; signed P3109",
        "`Chop(exp_bits, sig_bits)`, rmode 1 or 5, for IEEE's; `p3109_quantize(saturate=True)`, `nearest_even` or"
        " `stochastic_c` with 24 bits, for P3109's and fnuz",
        lambda fmt: _pychop(fmt, 1, "nearest_even"), lambda fmt: _pychop(fmt, 5, "stochastic_c"),
    ),
    Peer(
        "optimum-quanto", "optimum-quanto", "optimum.quanto", "no", "`quantize_activation` at scale 1, `dequantize`",
        quanto_nearest, unknown,
    ),
    Peer(
        "apytypes", "apytypes", "apytypes", _IEEE, "`APyFloatArray.from_array(x, E, M, bias)`",
        apytypes_nearest, unknown, on_tensors=False,
    ),
    Peer(
        "apytypes cast", "apytypes", "apytypes", _IEEE,
        "`APyFloatArray.from_array(x, 8, 23).cast(E, M, bias)`, `TIES_EVEN` or `STOCH_WEIGHTED`",
        lambda fmt: _apytypes_cast(fmt, "TIES_EVEN"), lambda fmt: _apytypes_cast(fmt, "STOCH_WEIGHTED"),
        on_tensors=False,
    ),
    Peer(
        "unit-scaling", "unit-scaling", "unit_scaling", "E >= 2, bias 2^(E-1), no specials",
        "`FPFormat(E, M, rounding).quantise`; but for -0 its values are those of fnuz",
        lambda fmt: _unit_scaling(fmt, "nearest"), lambda fmt: _unit_scaling(fmt, "stochastic"),
    ),
    Peer(
        "qtorch", "qtorch", "qtorch", "M >= 1, IEEE's bias, no specials", "`float_quantize(x, E, M, rounding)`",
        lambda fmt: _qtorch(fmt, "nearest"), lambda fmt: _qtorch(fmt, "stochastic"),
    ),
)  # fmt: skip
"""torch and ml_dtypes come first: they have dtypes. qtorch builds its C++ at the first call, half a minute of it."""
