"""Watched casts apart from the graph that makes them: one operator, behind which like casts share a graph.

A cast that is watched is several times the code of one that is not: what rounding would give without an end, a scale
for every element, a dozen counts. Traced into the graph of a model it is compiled anew for each cast, of which a block
has up to 24. But these are of few sorts (a format, a rounding, a scaling, an axis). So the graph calls an operator, and
that one a compiled function of the cast and its observers: a graph for each sort, whatever the shape. What is cast and
what comes of it are written as a whole either way, since products follow.

To the graph a cast is a tensor on the host, `Quantizer.number`, by which the operator finds it: so like blocks are one
graph still. The rows that observers add to are said to be written to, so that
compilers keep each pass once and in order. Largest magnitudes, which delayed scaling keeps, are not: nobody reads them
before the step is over, and taken twice they are the same.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx.experimental import _config

from altgrad.quantize.engine import quickly, ready_compiler


class Apart(Protocol):
    """What can be cast apart: a Quantizer."""

    def cast_into(self, x: Tensor, key: Tensor | None, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The values, in dtype, of a live pass of x that is watched, and that adds to these rows."""


_shapes: Any = _config
_numbers = itertools.count()
_known: "weakref.WeakValueDictionary[int, Apart]" = weakref.WeakValueDictionary()


def numbered(cast: Apart) -> Tensor:
    """A number that nothing else in this process has, by which the operator finds the cast for as long as it lives."""
    number = next(_numbers)
    _known[number] = cast
    return torch.tensor(number, dtype=torch.int64, device="cpu")


@torch.library.custom_op("altgrad::watched_cast", mutates_args=("rows",), device_types="cpu")
def watched_cast(x: Tensor, number: Tensor, key: Tensor | None, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`cast_into` of the cast of this number, contiguous. x: detached. key: of the random bits, if it draws any."""
    # Else formats' numbers are inputs of the graph, and square tensors and Parameters have graphs of their own.
    # Within the first call of a graph, views and changes in place are not tracked; later they are: guards would differ.
    untracked = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView))
    numbers = torch._dynamo.config.patch(specialize_int=True, specialize_float=True)
    with untracked, numbers, _shapes.patch(use_duck_shape=False):
        return _compiled()(_known[int(number)], x.detach().contiguous(), key, list(rows), dtype)


@watched_cast.register_fake
def _(x: Tensor, number: Tensor, key: Tensor | None, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@cache
def _compiled() -> Callable[[Apart, Tensor, Tensor | None, Sequence[Tensor], torch.dtype], Tensor]:
    ready_compiler()
    return torch.compile(_cast_into, dynamic=True, fullgraph=True, options=quickly())


def _cast_into(cast: Apart, x: Tensor, key: Tensor | None, rows: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return cast.cast_into(x, key, rows, dtype)
