"""How weights of a pre-norm transformer start: GPT-2's rule, shared by the models that are built here.

Weights are drawn from N(0, 0.02); the two projections of a block that write into the residual stream from
N(0, 0.02 / sqrt(2 * blocks)), so that the variance of the stream does not grow with depth (Radford et al. 2019,
section 2.3). Scales of norms start at one and biases at zero.
"""

import math

from torch import nn

STD = 0.02
INTO_RESIDUAL = ("attention.proj.weight", "mlp.down.weight")


def draw_weights(model: nn.Module, blocks: int) -> None:
    """Draw every parameter afresh, in place and in the order of `named_parameters`, from the global torch generator.

    blocks: how many there are in the residual stream, at least 1. Layers are told apart by name, as INTO_RESIDUAL says.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=STD / math.sqrt(2 * blocks) if name.endswith(INTO_RESIDUAL) else STD)
