"""Modules on grids: the quantised Linear, the policy that places it, the surgery that installs it."""

from altgrad.nn.linear import QuantizedLayer, QuantizedLinear
from altgrad.nn.policy import LayerPrecision, PrecisionPolicy
from altgrad.nn.replay import casts_off, observed, unrecorded
from altgrad.nn.surgery import (
    change_formats,
    commit,
    dequantize_model,
    quantize_model,
    quantizers,
    weight_quantizers,
)

__all__ = [
    "LayerPrecision", "PrecisionPolicy", "QuantizedLayer", "QuantizedLinear",
    "casts_off", "change_formats", "commit", "dequantize_model", "observed", "quantize_model", "quantizers",
    "unrecorded", "weight_quantizers",
]  # fmt: skip
