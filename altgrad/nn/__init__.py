"""Modules on grids: the quantised Linear, the policy that places it, the surgery that installs it."""

from altgrad.nn.linear import QuantizedLayer, QuantizedLinear
from altgrad.nn.policy import LayerPrecision, PrecisionPolicy
from altgrad.nn.ranks import ALONE, Ranks
from altgrad.nn.replay import casts_off, observed, unrecorded
from altgrad.nn.surgery import (
    change_formats,
    check_passes,
    commit,
    dequantize_model,
    quantize_model,
    quantizers,
    seek,
    weight_names,
    weight_quantizers,
)

__all__ = [
    "ALONE", "LayerPrecision", "PrecisionPolicy", "QuantizedLayer", "QuantizedLinear", "Ranks", "casts_off",
    "change_formats", "check_passes", "commit", "dequantize_model", "observed", "quantize_model", "quantizers", "seek",
    "unrecorded", "weight_names", "weight_quantizers",
]  # fmt: skip
