"""Changing the format in which a parameter is stored, in the middle of a run.

Storage belongs to parameter groups, so a parameter that leaves the format of its group gets a group of its own, alike
in everything else. All rules treat the parameters of a group one by one, so that changes no bit. The weight goes to its
new grid from what is stored; what `kahan` owes it is taken into account. Momenta stay: they are in units of the
gradient, and the weight's format is not in them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.optim.optimizer import Optimizer
from altgrad.optim.storage import GridStorage


def gridded(optimizer: Optimizer) -> Iterator[tuple[str, Tensor, GridStorage]]:
    """Name, weight and storage of every parameter that is stored on a grid."""
    for group, storage in zip(optimizer.param_groups, optimizer.storages, strict=True):
        if isinstance(storage, GridStorage):
            for p in group["params"]:
                yield optimizer.names[p], p, storage


@torch.no_grad()
def change_storage_format(optimizer: Optimizer, name: str, fmt: NumberFormat, *, convert: bool = True) -> None:
    """Keep the parameter called `name` in another format from now on.

    convert: put its weight on the new grid; without, weight and state are to be loaded. ValueError for a parameter that
    is not stored on a grid, SpecError for a format that its storage does not take.
    """
    found = next(((p, storage) for other, p, storage in gridded(optimizer) if other == name), None)
    if found is None:
        raise ValueError(f"{name} is not stored on a grid, so it has no storage format to change.")
    p, storage = found
    new = type(storage).made_from(storage.tree() | {"format": str(fmt)}, name)
    number = next(i for i, group in enumerate(optimizer.param_groups) if any(q is p for q in group["params"]))
    group = optimizer.param_groups[number]
    if len(group["params"]) > 1:
        place = next(i for i, q in enumerate(group["params"]) if q is p)
        own = {**group, "params": [group["params"].pop(place)]}
        if "param_names" in group:
            own["param_names"] = [group["param_names"].pop(place)]
        optimizer.param_groups.append(own)
        optimizer.storages.append(storage)
        optimizer.states.append(optimizer.states[number])
        group, number = own, len(optimizer.param_groups) - 1
    group["storage"] = new.tree()
    optimizer.storages[number] = new
    if convert:
        new.convert(p, optimizer.state[p])
