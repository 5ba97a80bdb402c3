"""The engines of a run, and a model's share in them.

eager      casts run as torch runs them
compiled   casts are fused by torch's compiler, with the same bits
native     the same, and products run on the chip's 8-bit units where it takes their operands (`altgrad.nn.native`)
"""

from torch import nn

from altgrad.nn.linear import QuantizedLayer
from altgrad.nn.surgery import quantizers
from altgrad.quantize.engine import Engine


def casts_engine(engine: str) -> Engine:
    """How casts and optimizers run under a run's engine."""
    return "compiled" if engine in ("compiled", "native") else "eager"


def use_engine(model: nn.Module, engine: str) -> None:
    """Have a model's casts and products run so from now on."""
    for quantizer in quantizers(model):
        quantizer.engine = casts_engine(engine)
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.native = engine == "native"
