"""The last good state: a copy of weights and optimizer state from which loss and gradients were seen to be finite.

It is taken between backward and the update, when both are known to be finite and the weights are still those that made
them so. Buffers of the model that are not a cast's (the running statistics of a BatchNorm) belong to it; what casts
keep does not, since their histories begin anew whenever a run goes back.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from altgrad.nn import quantizers
from altgrad.optim import Optimizer

Copy = dict[str, Tensor]
"""`weight/<name>`, `buffer/<name>` and `state/<parameter>/<entry>`."""


@torch.no_grad()
def take(model: nn.Module, optimizer: Optimizer) -> Copy:
    """A copy of what is there now."""
    found = {f"{sort}/{name}": tensor.detach().clone() for sort, name, tensor in _kept(model)}
    for p, parameter in optimizer.names.items():
        states = optimizer.state[p].items()
        found |= {f"state/{parameter}/{entry}": t.clone() for entry, t in states if isinstance(t, Tensor)}
    return found


@torch.no_grad()
def go_back(model: nn.Module, optimizer: Optimizer, copy: Copy) -> None:
    """Write a copy back, in place. State that did not exist when it was taken is removed."""
    for sort, name, tensor in _kept(model):
        tensor.copy_(copy[f"{sort}/{name}"])
    for p, parameter in optimizer.names.items():
        state = optimizer.state[p]
        for entry in [entry for entry, value in state.items() if isinstance(value, Tensor)]:
            kept = copy.get(f"state/{parameter}/{entry}")
            if kept is None:
                del state[entry]
            else:
                state[entry].copy_(kept)


def _kept(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, p in model.named_parameters():
        yield "weight", name, p
    casts = {id(buffer) for quantizer in quantizers(model) for buffer in quantizer.buffers()}
    for name, buffer in model.named_buffers():
        if id(buffer) not in casts:
            yield "buffer", name, buffer
