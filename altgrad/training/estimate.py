"""What a run will take, from shapes alone: bytes and FLOPs of a model that is never allocated.

On torch's meta device a tensor is its shape. So the optimizer takes a real step there, one parameter for each kind of
parameter, and what it has made is counted; the model runs forward under torch's FLOP counter, and backward counts twice
forward, since each product has two in backward. No formula of our own says what an optimizer or a storage keeps.

    weights     the parameters as they are emulated, float32          gradients   one float32 each
    codes       the stored weights as codes of their format: what hardware that stores them so would hold
    states      the states that are cast, likewise, with their scales
    storage     what storage keeps beside weights: scales, steps, compensations
    optimizer   its state, after the first step                       casts       histories of scales, counters
    monitors    their tables and what they keep of weights and gradients while they are due

Activations and passing temporaries are not counted, since they depend on the kernels, nor what interventions keep.
Shapes decide everything, so nothing is drawn: weights that are not there need no initialisation, which takes most of
the time otherwise.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from altgrad.data.dataset import Dataset
from altgrad.monitors import Context
from altgrad.nn import casts_off
from altgrad.optim import Optimizer
from altgrad.optim.storage import GridStorage
from altgrad.training.run import RunSpec
from altgrad.training.twin import Twin
from altgrad.watching import MonitorSet


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose, as at the head of this file, and FLOPs of one optimizer step over all micro-batches."""

    parameters: int
    weights: int
    gradients: int
    codes: int
    storage: int
    optimizer: int
    casts: int
    monitors: int
    flops_per_step: int
    tokens_per_step: int
    states: int = 0

    @property
    def total(self) -> int:
        """Bytes held between steps or through one; without activations, and without `codes` and `states`, which are
        emulated."""
        return self.weights + self.gradients + self.storage + self.optimizer + self.casts + self.monitors

    def facts(self) -> dict[str, int]:
        """All of it as plain data."""
        found = {**asdict(self), "total": self.total}
        return found if self.states else {name: number for name, number in found.items() if name != "states"}


class _DrawNothing(TorchFunctionMode):
    """Drawing on the meta device would draw nothing either, but loads torch's compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
        if getattr(func, "__name__", "") in ("normal_", "uniform_") and isinstance(drawn, Tensor):
            return drawn
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """In the block tensors are made on the meta device, and nothing is drawn for them."""
    with torch.device("meta"), _DrawNothing():
        yield


def estimate(
    spec: RunSpec, dataset: Dataset, model: nn.Module, optimizer: Optimizer, twin: Twin | None = None
) -> Estimate:
    """What the run takes on one rank.

    model, optimizer: as `build_model` and `build_optimizer` of altgrad.training.state make them under `shapes_only`;
    used up. ValueError for monitors that lack what they ask for of the run or its twin.
    """
    batch = dataset.batch(0)
    optimizer.engine = "eager"
    parameters = list(model.parameters())
    storage = _bytes(list(optimizer.state.values()))
    context = Context(-(-dataset.epoch_batches // spec.accumulate), None if twin is None else twin.rows, spec.seed)
    watch = MonitorSet(spec.monitors, model, optimizer, context)
    kept, watched = _step(optimizer, watch)
    return Estimate(
        parameters=sum(p.numel() for p in parameters),
        weights=sum(p.nbytes for p in parameters),
        gradients=sum(p.nbytes for p in parameters if p.requires_grad),
        codes=_codes(optimizer),
        storage=storage,
        optimizer=kept - storage,
        casts=sum(buffer.nbytes for name, buffer in model.named_buffers() if ".casts." in f".{name}"),
        monitors=watched,
        flops_per_step=3 * spec.accumulate * forward_flops(model, batch.inputs.shape),
        tokens_per_step=spec.accumulate * batch.tokens,
        states=_states(optimizer),
    )


@torch.no_grad()
def forward_flops(model: nn.Module, shape: torch.Size) -> int:
    """FLOPs (two for a multiplication and its addition) of one forward pass over token ids of this shape."""
    with casts_off(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape, dtype=torch.int64, device="meta"))
    return int(counter.get_total_flops())


def _step(optimizer: Optimizer, watch: MonitorSet) -> tuple[int, int]:
    """Bytes of the state of optimizer and storage after a step, and of what monitors keep of it.

    One parameter of each kind takes the step and stands for the others.
    """
    alike: dict[Any, list[Tensor]] = {}
    for number, (group, storage) in enumerate(zip(optimizer.param_groups, optimizer.storages, strict=True)):
        for p in group["params"]:
            alike.setdefault((number, p.shape, optimizer.grid(p, storage) is None), []).append(p)
    watch.begin(1)
    kept, watched = 0, _bytes([row for rows in watch.tables.written for row in rows])
    for one, *others in alike.values():
        before = _by_monitors(watch)
        one.grad = torch.empty_like(one)
        watch.add_micro_batch({watch.names[one]: one.grad})
        optimizer.step()
        one.grad = None
        kept += _bytes(optimizer.state[one]) * (1 + len(others))
        watched += (_by_monitors(watch) - before) * (1 + len(others))
    return kept, watched


def _by_monitors(watch: MonitorSet) -> int:
    return sum(_bytes(vars(monitor)) for monitor in watch.monitors.values()) + _bytes(watch.looks.kept)


def _codes(optimizer: Optimizer) -> int:
    """Bytes of the weights on a grid as codes, packed to whole bits."""
    bits = sum(
        storage.format.bits * p.numel()
        for group, storage in zip(optimizer.param_groups, optimizer.storages, strict=True)
        if isinstance(storage, GridStorage)
        for p in group["params"]
    )
    return int(-(-bits // 8))


def _states(optimizer: Optimizer) -> int:
    """Bytes of the states that are cast, as codes and scales."""
    return sum(
        cast.bytes_of(p)
        for group, casts in zip(optimizer.param_groups, optimizer.states, strict=True)
        for p in group["params"]
        for cast in casts.values()
        if cast.takes(p)
    )


def _bytes(value: Any) -> int:
    """Of all tensors in a value: a tensor, a mapping or a sequence, however deep."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
