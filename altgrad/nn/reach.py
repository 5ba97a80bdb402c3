"""That every quantised layer's forward runs, where the parents are torch's own.

Casts are made in a layer's forward. A parent that reads `child.weight` and multiplies by it itself computes the plain
product, and the run is silently another. Three answers, the surest first:

    a known parent with a second way    torch's fused kernel for nn.TransformerEncoderLayer in evaluation is switched
                                        off by a condition of its own, and nn.TransformerEncoder's nested tensors with
                                        it; both come back with `dequantize_model`. These are plain attributes, which
                                        copies and pickles keep
    a known parent without one          nn.MultiheadAttention multiplies by in_proj_weight and out_proj.weight in every
                                        mode, also in training, nn.LinearCrossEntropyLoss by linear.weight: refused
    any other                           the model's own first pass in each mode (training, evaluation) is the proof:
                                        `altgrad.nn.first_pass`
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from altgrad.nn.linear import QuantizedLayer

FUSED: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""What in these parents makes them call their children, and at which value."""
_KEPT = "_fused_before_casts"

READERS: tuple[type[nn.Module], ...] = (
    nn.MultiheadAttention,
    *(getattr(nn, name) for name in ("LinearCrossEntropyLoss",) if hasattr(nn, name)),  # torch 2.13
)
"""Parents that multiply by their children's weights, always."""


def refuse_parents(model: nn.Module, names: Iterable[str]) -> None:
    """ValueError if one of these layers or matrices lies in a parent that would compute without its forward."""
    names = list(names)
    for path, module in model.named_modules():
        kind = next((cls for cls in READERS if isinstance(module, cls) and type(module).forward is cls.forward), None)
        inside = [name for name in names if not path or name.startswith(f"{path}.")]
        if kind is None or not inside:
            continue
        leaf = path.rpartition(".")[2]
        remedy = f"put the rule {{match: '*{leaf}*'}}, which casts nothing, before the one that matches it."
        raise ValueError(
            f"{inside[0]} belongs to a {kind.__name__}, which multiplies by its matrices itself, so a cast would never "
            f"run; {remedy if leaf else 'nothing in it can be cast.'}"
        )


def fast_paths_off(model: nn.Module) -> None:
    """Have the known parents of quantised layers call them."""
    for module in model.modules():
        for cls, (switch, off) in FUSED.items():
            if isinstance(module, cls) and _KEPT not in vars(module) and quantised_within(module):
                setattr(module, _KEPT, getattr(module, switch, off))
                setattr(module, switch, off)


def fast_paths_back(model: nn.Module) -> None:
    """Undo `fast_paths_off`."""
    for module in model.modules():
        for cls, (switch, _) in FUSED.items():
            if isinstance(module, cls) and _KEPT in vars(module):
                setattr(module, switch, vars(module)[_KEPT])
                delattr(module, _KEPT)


def quantised_within(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantised layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
