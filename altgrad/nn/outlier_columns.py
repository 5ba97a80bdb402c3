"""Which slots can have columns of outliers: those whose features no transform mixes before the cast.

Features lie along the axis that forward's product and grad_input's gradient are summed over, so a transform of these
mixes them; tokens, along which grad_weight is summed, and the outputs that grad_input.weight is summed over, are rows
to them.
"""

from collections.abc import Mapping
from typing import Any

from altgrad.quantize import QuantizerSpec


def check_columns(
    slots: Mapping[Any, QuantizerSpec | None], transforms: Mapping[Any, Any], slot: tuple[str, str]
) -> None:
    """ValueError, naming both fields, for a slot whose columns of outliers have no meaning there."""
    product, operand = slot
    spec, name = slots[slot], f"{product}.{operand}"
    if spec is None or spec.outliers is None or not spec.outliers.of_columns:
        return
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
