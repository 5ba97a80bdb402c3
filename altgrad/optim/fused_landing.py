"""Storage on a grid as one compiled graph, for any rule that requests: nearest, stochastic, kahan and eco.

Step by step they read and write the weight a dozen times. Here the request is taken apart, added, rounded, and what was
lost is kept in the same pass (kahan needs its largest magnitude first). Every operation is one that eager code makes,
with the same numbers and in the same order, and none is contracted: so the bits are those of the eager engine, and a
run does not change with the way its storage is written. The rule itself stays in torch's foreach kernels.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, Rounding
from altgrad.optim.compensated import Eco, Kahan
from altgrad.optim.request import Request
from altgrad.optim.storage import Nearest, State, Stochastic, Storage
from altgrad.quantize import round_to
from altgrad.quantize.engine import SMALL, Numbers, as_tensors, nearest, numbers, ready_compiler, serves, stochastic
from altgrad.quantize.noise import fold
from altgrad.quantize.scaling import finite_amax, scale_of
from altgrad.quantize.traced import held


class Landing(NamedTuple):
    """What is constant in a graph."""

    format: FloatFormat
    rounding: Rounding
    lost: Literal["dropped", "beside", "momentum"]
    """What becomes of what rounding lost."""
    compensation: NumberFormat | None = None
    """The format of what is kept beside."""


def landing_of(storage: Storage, w: Tensor, state: State, request: Request) -> Landing | None:
    """How a weight lands in one graph; None if it cannot."""
    if not isinstance(storage, Nearest | Stochastic | Kahan | Eco) or storage.tracks:
        return None
    tensors = [w, *request.numerators, *(request.denominators or ()), *(request.factors or ())]
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in tensors):
        return None
    drawn = isinstance(storage, Stochastic) or (
        isinstance(storage, Eco) and ("stochastic" in state or storage.rounding == "stochastic")
    )
    rounding = Rounding.stochastic if drawn else Rounding.nearest_even
    if w.numel() < (2 if drawn else SMALL):  # bits for a few elements take longer to count than a graph to call
        return None
    if not isinstance(storage.format, FloatFormat) or not serves(storage.format, rounding):
        return None
    if isinstance(storage, Eco) and request.values == [0]:  # nothing is put into the momentum then
        return None
    if isinstance(storage, Kahan):
        return Landing(storage.format, rounding, "beside", storage.compensation)
    return Landing(storage.format, rounding, "momentum" if isinstance(storage, Eco) else "dropped")


def land(chosen: Landing, w: Tensor, state: State, key: int, request: Request) -> None:
    """Do to one weight, in place, what the storage would."""
    (value,), (momentum,) = request.values, request.numerators
    back = (1 / (request.beta or 1) - 1) / value if chosen.lost == "momentum" else 0.0
    found = torch.tensor([value, request.keep, back]).to(w.device, non_blocking=True)
    scale = state["storage_scale"]
    form = numbers(chosen.format) if w.device.type == "cpu" else as_tensors(chosen.format, w.device)
    denominator = None if request.denominators is None else request.denominators[0]
    factor = None if request.factors is None else request.factors[0]
    tensors = [w.detach(), momentum, denominator, factor, state.get("compensation")]
    if scale.numel() == 1:
        scale = scale.reshape(())
        tensors = [None if t is None else t.view(-1) for t in tensors]
    seed = torch.tensor(key, device=w.device) if chosen.rounding is Rounding.stochastic else None
    _compiled(chosen)(*tensors, found, scale, seed, state["storage_step"], form)


@functools.cache
def _compiled(chosen: Landing) -> Callable[..., None]:
    fmt, compensation, to_momentum = chosen.format, chosen.compensation, chosen.lost == "momentum"

    def run(
        w: Tensor, momentum: Tensor, denominator: Tensor | None, factor: Tensor | None, owed: Tensor | None,
        found: Tensor, scale: Tensor, seed: Tensor | None, at: Tensor, form: Numbers,
    ) -> None:  # fmt: skip
        value, keep, back = found.unbind()
        step = (momentum if factor is None else momentum * factor) * value
        step = step if denominator is None else step / denominator
        wanted = w * keep + step
        wanted = wanted if owed is None else wanted + owed
        inverse = scale.reciprocal() if scale.ndim == 0 else None
        if seed is None:
            stored = nearest(wanted.clone(), scale, inverse, fmt.has_negative_zero, form)
        else:
            stored = stochastic(wanted.clone(), scale, inverse, fmt.has_negative_zero, form, fold(seed, at))
        lost = wanted - stored
        if owed is not None and compensation is not None:
            owed.copy_(round_to(lost, compensation, scale=held(scale_of(finite_amax(lost), compensation))))
        elif to_momentum:
            lost = lost * back
            lost = lost if denominator is None else lost * denominator
            momentum.add_(lost if factor is None else torch.where(factor > 0, lost / factor, 0))
        w.copy_(stored)
        at.add_(1)

    ready_compiler()
    made: Callable[..., Any] = torch.compile(run, dynamic=True, fullgraph=True)

    def constant(*given: Any) -> None:
        # A format's numbers, which would be inputs of the graph.
        with torch._dynamo.config.patch(specialize_int=True, specialize_float=True):
            made(*given)

    return constant
