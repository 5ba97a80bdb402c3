"""Tensors on grids: spacing and rounding, scales, counted random bits, and the Quantizer that joins them."""

from altgrad.formats import Rounding
from altgrad.quantize.cast import Cast
from altgrad.quantize.current import CurrentSpec
from altgrad.quantize.delayed import DelayedSpec
from altgrad.quantize.grid import Grid, at_rung, gap, round_to, rung, spacing
from altgrad.quantize.quantizer import Quantizer, QuantizerSpec
from altgrad.quantize.scaling import ScalingSpec, UnscaledSpec
from altgrad.quantize.stacked import StackedCasts

__all__ = [
    "Cast", "CurrentSpec", "DelayedSpec", "Grid", "Quantizer", "QuantizerSpec", "Rounding", "ScalingSpec",
    "StackedCasts", "UnscaledSpec", "at_rung", "gap", "round_to", "rung", "spacing",
]  # fmt: skip
