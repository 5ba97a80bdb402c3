"""Modules on grids: the quantised Linear, the policy that places it, the surgery that installs it."""

from altgrad.nn.engines import casts_engine, use_engine
from altgrad.nn.linear import QuantizedLayer, QuantizedLinear
from altgrad.nn.policy import PrecisionPolicy
from altgrad.nn.processes import ALONE, Processes
from altgrad.nn.replay import casts_off, compared, fresh_gradients, observed, unrecorded
from altgrad.nn.slots import LayerPrecision
from altgrad.nn.steps import add_listener, closure_of, follow_steps, never_committed, remove_listener, with_closure
from altgrad.nn.surgery import (
    change_formats,
    check_passes,
    commit,
    counted_sites,
    dequantize_model,
    quantize_model,
    quantizers,
    seek,
    weight_names,
    weight_quantizers,
)

__all__ = [
    "ALONE",
    "LayerPrecision",
    "PrecisionPolicy",
    "Processes",
    "QuantizedLayer",
    "QuantizedLinear",
    "add_listener",
    "casts_engine",
    "casts_off",
    "change_formats",
    "check_passes",
    "closure_of",
    "commit",
    "compared",
    "counted_sites",
    "dequantize_model",
    "follow_steps",
    "fresh_gradients",
    "never_committed",
    "observed",
    "quantize_model",
    "quantizers",
    "remove_listener",
    "seek",
    "unrecorded",
    "use_engine",
    "weight_names",
    "weight_quantizers",
    "with_closure",
]  # fmt: skip
