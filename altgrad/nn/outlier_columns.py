"""Columns of outliers in a layer: which slots can have them, and the product that some have of their own.

They go where no transform mixes features before the cast.

Features lie along the axis that forward's product and grad_input's gradient are summed over, so a transform of these
mixes them; tokens, along which grad_weight is summed, and the outputs that grad_input.weight is summed over, are rows
to them.

The columns of dW are the input's, so a cast of grad_weight.input can have its columns multiplied apart (`splits`, see
`altgrad.quantize.outliers`). Both products are as wide as dW and each gives its columns, since which these are is known
to the tensors of a graph alone; kernels, which gather the columns, multiply each once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.nn.layers import features_of
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.grid import in_float32
from altgrad.quantize.outliers import Columns
from altgrad.quantize.traced import held


def splitting(cast: Any) -> Columns | None:
    """The columns that this cast of grad_weight.input has multiplied apart, if it has some."""
    outliers = cast.outliers if isinstance(cast, Quantizer) else None
    return outliers if isinstance(outliers, Columns) and outliers.spec.splits else None


def give_partner(cast: Quantizer, layer: nn.Module, site: str, seed: int) -> None:
    """Give a cast whose columns are multiplied apart what casts grad_output for them, in the layer of this name."""
    columns = splitting(cast)
    if columns is not None and isinstance(spec := columns.spec.grad_output, QuantizerSpec):
        name, rows = "grad_output.grad_weight.columns", features_of(layer, "grad_output")[0]
        columns.partner = Quantizer(
            spec, f"{site}/{name}" if site else name, "grad_output", seed=seed, rows=rows, reduced="first"
        )


def partner_values(cast: Any, g: Tensor, live: bool) -> Tensor:
    """grad_output [tokens, out_features] as it meets the columns that this cast has multiplied apart, float32."""
    columns = splitting(cast)
    assert columns is not None
    return in_float32(g) if columns.partner is None else columns.partner.values(held(g), live, torch.float32)


def check_columns(
    slots: Mapping[Any, QuantizerSpec | None], transforms: Mapping[Any, Any], slot: tuple[str, str]
) -> None:
    """ValueError, naming both fields, for a slot whose columns of outliers have no meaning there."""
    product, operand = slot
    spec, name = slots[slot], f"{product}.{operand}"
    if spec is None or spec.outliers is None or not spec.outliers.of_columns:
        return
    if spec.outliers.splits and slot != ("grad_weight", "input"):
        raise ValueError(
            f"{name} has outliers.grad_output, which splits the product of grad_weight.input; leave it out, or say it "
            "there."
        )
    mixing = product if product == "forward" or (operand == "grad_output" and product == "grad_input") else None
    if mixing in transforms or spec.source == "forward_rotated":
        by = f"{mixing}.transform" if mixing in transforms else "source: forward_rotated"
        raise ValueError(
            f"{name} has outliers: columns, which {by} has mixed before the cast; use outliers: elements, or leave out "
            f"{by.partition(':')[0]}."
        )
    if not spec.outliers.follows:
        return
    lead = slots["forward", "input"]
    if operand == "grad_output" or slot == ("forward", "input"):
        raise ValueError(
            f"outliers.follow: input is for weights and grad_weight.input, and {name} is none; use follow: none."
        )
    if lead is None or lead.outliers is None or not lead.outliers.leads:
        raise ValueError(
            f"{name} has outliers.follow: input, and forward.input keeps no columns; give it outliers: columns with "
            "record."
        )
