"""Steps of sharded parameters: plain tensors take the step in their place.

An optimizer's rule, storage and casts of states know nothing of DTensors. A parameter that is one is stood in for by a
plain tensor, with its name, its cast and its state, for the length of a step:

    own_part        the part that this process holds, on the same memory: for rules that work element by element,
                    where nothing looks at the tensor as a whole. Nothing is gathered.
    whole_tensor    all of it, gathered: for everything else, one parameter at a time. Every process takes the whole
                    step and keeps its part of the result.

So a scale is that of the whole weight, random bits are counted in the whole weight, and what monitors see is whole, as
on one process, to the bit: by construction, and not by an all-reduce in each of the places that would need one. What it
takes is the gathering of a weight, its gradient and its state, and the step itself W times over.

Between steps a state of the parameter's shape is a DTensor like it; scales and counts are the same on every process.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from altgrad.optim.whole_tensor import is_sharded, own_part, part_as, sharded_as, whole_tensor

Look = Callable[[Tensor], Tensor]


@contextmanager
def standing_in(optimizer: Any, params: Sequence[Tensor], look: Look) -> Iterator[list[Tensor]]:
    """Plain tensors in place of these sharded parameters; what the block makes of them is kept, unless it raises.

    look: `own_part` or `whole_tensor`.
    """
    made = [look(p) for p in params]
    for p, plain in zip(params, made, strict=True):
        optimizer.names[plain] = optimizer.names[p]
        if p in optimizer.casts and look is whole_tensor:
            optimizer.casts[plain] = optimizer.casts[p]
        state = optimizer.state[p].items()
        optimizer.state[plain] = {entry: look(x) if isinstance(x, Tensor) else x for entry, x in state}
    try:
        yield made
        with torch.no_grad():
            for p, plain in zip(params, made, strict=True):
                _keep(optimizer, p, plain, whole=look is whole_tensor)
    finally:
        for plain in made:
            for known in (optimizer.names, optimizer.casts, optimizer.state, optimizer.losses):
                known.pop(plain, None)


def as_plain(
    optimizer: Any, params: Sequence[Tensor], grads: Sequence[Tensor], look: Look
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """These parameters, with their gradients, as plain tensors that a step can be taken of; each in one of the lists.

    look: at those that are sharded. Parts come together and whole tensors one by one, for the length of a round.
    """
    plain = [i for i, p in enumerate(params) if not is_sharded(p)]
    if plain:
        yield [params[i] for i in plain], [grads[i] for i in plain]
    sharded = [i for i, p in enumerate(params) if is_sharded(p)]
    for some in [[i] for i in sharded] if look is whole_tensor else filter(None, [sharded]):
        with standing_in(optimizer, [params[i] for i in some], look) as made:
            theirs = [look(_laid_alike(grads[i], params[i])) for i in some]
            for each, gradient in zip(made, theirs, strict=True):
                each.grad = gradient
            yield made, theirs


def _laid_alike(gradient: Any, p: Any) -> Tensor:
    """A gradient cut as its parameter is, as it comes of FSDP2, and of tensor parallelism not always."""
    alike = gradient.placements == p.placements
    return cast(Tensor, gradient if alike else gradient.redistribute(p.device_mesh, p.placements))


def adopt(optimizer: Any, storage: Any, p: Tensor) -> None:
    """Let a storage make its state of p, and put it on its grid."""
    if not (storage.on_grid and is_sharded(p)):
        storage.adopt(p, optimizer.state[p])
        return
    with standing_in(optimizer, [p], whole_tensor) as (whole,):
        storage.adopt(whole, optimizer.state[whole])


def _keep(optimizer: Any, p: Tensor, plain: Tensor, *, whole: bool) -> None:
    """Let p and its state be what became of the plain tensor and of its."""
    if whole:
        own_part(p).copy_(own_part(sharded_as(plain, p)))
    own = optimizer.state[p]
    for entry, x in optimizer.state[plain].items():
        if not isinstance(x, Tensor) or not x.ndim or x.shape != plain.shape:
            own[entry] = x
        elif whole:
            own[entry] = sharded_as(x, p)
        elif entry not in own:  # else it has been changed where it lies
            own[entry] = part_as(x, p)
    if plain in optimizer.losses:
        optimizer.losses[p] = optimizer.losses[plain]


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state with whole tensors; all processes must ask together."""
    return {entry: whole_tensor(x) if isinstance(x, Tensor) else x for entry, x in state.items()}


def laid_as(x: Tensor, p: Tensor) -> Tensor:
    """A whole entry of the state of p as it is between steps."""
    return sharded_as(x, p) if is_sharded(p) and x.ndim and x.shape == p.shape else x
