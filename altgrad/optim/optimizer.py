"""Optimizers request; storage writes.

Every optimizer here is one pure rule that turns gradients, its state and the weights' grids into a `Request` for each
parameter, and never touches a weight itself. How a weight is kept between steps is a separate question, answered in one
place for all optimizers (`altgrad.optim.storage`), so every optimizer goes with every storage. Two pairs have no
meaning and are refused when the optimizer is made: `eco` without a momentum buffer, and rungs (GridOptim's
`landing: index`) anywhere but in `index` storage.

The grid of a weight is that of its storage; under `master`, that of the cast its forward pass makes (`casts`), else the
one that the storage's `format` names. A parameter without any of these has no geometry, and every rule is then the
plain one.

Changing the format in which a parameter is stored, in the middle of a run.

Storage belongs to parameter groups, so a parameter that leaves the format of its group gets a group of its own, alike
in everything else. All rules treat the parameters of a group one by one, so that changes no bit. The weight goes to its
new grid from what is stored; what `kahan` owes it is taken into account. Momenta stay: they are in units of the
gradient, and no format is in them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, ClassVar, NamedTuple, overload

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.optim.fused import FusedStep, adam_step
from altgrad.optim.numbers import LearningRate, WeightDecay, check_rates, plain_numbers
from altgrad.optim.request import BeforeStep, Request, Update, track
from altgrad.optim.storage import GridStorage, Storage
from altgrad.optim.whole_tensor import is_sharded, whole_tensor
from altgrad.quantize import Grid, Quantizer, StackedCasts
from altgrad.quantize.engine import Engine
from altgrad.quantize.noise import site_key
from altgrad.spec import Kind, Spec


class ParameterGroup(Spec):
    """Parameters whose name matches, and what is different for them. `match` as in precision rules."""

    match: Annotated[str, Field(min_length=1)]
    """A pattern of parameter names."""
    lr: LearningRate | None = None
    """Peak learning rate of these."""
    weight_decay: WeightDecay | None = None
    """Decay of these."""

    noun: ClassVar[str] = "a parameter group"


class OptimizerSpec(Kind, family="optimizer", package="altgrad.optim"):
    """What every optimizer has: a peak learning rate, decoupled or plain decay, and exceptions by parameter name.

    Unless a group says otherwise, weight_decay holds for parameters of two or more dimensions only.
    """

    lr: LearningRate = 1e-3
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.0
    """Of parameters of two or more dimensions, unless a group says otherwise."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters by name with a rate or a decay of their own."""

    def build(self, groups: Iterable[dict[str, Any]], *, seed: int = 0) -> "Optimizer":
        """The optimizer over what `parameter_groups` returned; `seed` keys the random bits of storage."""
        settings = {name: getattr(self, name) for name in type(self).model_fields if name != "groups"}
        made: Optimizer = self.product()(groups, **settings, seed=seed)
        return made


def settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer's `__init__` was given (its `locals()`), but for parameters and seed: a group's defaults.

    So settings are named in the signature, for Python's users, and in the spec, for YAML's, and nowhere else.
    """
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "seed", "__class__")}


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer whose rule is `request`. p.grad is never changed; parameters without a gradient are skipped.

    A step is checked as a whole before anything of it is done: where it raises, no moment and no weight has moved. A
    group's numbers may be tensors of one element, as lr may in torch.optim. Copies (`copy.deepcopy`, pickle) keep all
    but observers; a copy made together with its model is of the copied parameters.

    params: as torch.optim takes them. A group's (or the default) `storage` is a StorageSpec or plain data for one;
    None is master. `track` keeps each gridded weight's `rung`, its gross `travel` in rungs, and `flips` and `updates`
    as counts, in the state. `engine` compiled fuses Adam's step (see `altgrad.optim.fused`) and stochastic rounding.
    When `watching`, each step shows every observer what it did to each parameter; otherwise that costs nothing.
    ValueError, naming group and parameter, for settings that do not go together.
    """

    has_momentum: ClassVar[str] = ""
    """What of a group must not be 0 for there to be a momentum buffer; empty if there is none anyway."""
    takes_sparse: ClassVar[bool] = False
    """Whether a sparse gradient is taken for the dense one it stands for; else it is refused, as torch's Adam does."""
    takes_shards: ClassVar[bool] = False
    """Whether the rule works element by element, and so on the shards of a DTensor."""

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0) -> None:
        self.observers: list[Callable[[Update], None]] = []
        self.watching = False
        self.seed = seed
        self.engine: Engine = "eager"
        self.storages: list[Storage] = []
        self.casts: dict[Tensor, Quantizer | StackedCasts] = {}
        self.names: dict[Tensor, str] = {}
        super().__init__(params, {"storage": None, "track": False, **defaults})

    @abstractmethod
    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        """The rule: advance the state of these parameters and say what should become of them."""

    def check(self, group: dict[str, Any]) -> None:
        """ValueError if the group's settings are out of range."""
        return

    def in_rungs(self, group: dict[str, Any]) -> bool:
        """Whether requests for this group count grid positions."""
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the weights are put on the grid of the group's storage. All is checked before any is changed."""
        number = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        named = group.get("param_names", [f"{number}.{i}" for i in range(len(group["params"]))])
        try:
            storage = _storage(group["storage"])
            self._check(plain_numbers(group), storage)
            for name, p in zip(named, group["params"], strict=True):
                storage.admit(p, name)
        except ValueError as error:
            self.param_groups.pop()
            names = group.get("param_names")
            which = f"group {number}" + (f" ({names[0]}{', ...' * (len(names) > 1)})" if names else "")
            raise ValueError(f"{type(self).__name__}, {which}: {error}") from None
        group["storage"] = storage.tree()
        self.names.update(zip(group["params"], named, strict=True))
        self.storages.append(storage)
        with torch.no_grad():
            for p in group["params"]:
                storage.adopt(p, self.state[p])

    def _check(self, group: dict[str, Any], storage: Storage) -> None:
        check_rates(group)
        self.check(group)
        if storage.wants_momentum and not (self.has_momentum and _momentum(group, self.has_momentum)):
            how = f"set {self.has_momentum} above 0" if self.has_momentum else "use stochastic or kahan"
            raise ValueError(
                f"storage {storage.kind} puts its errors into the momentum buffer, and there is none; {how}."
            )
        if self.in_rungs(group) != (storage.kind == "index"):
            raise ValueError(
                f"landing: index walks on grid positions and needs storage index; the storage is {storage.kind}."
                if self.in_rungs(group)
                else "storage index takes whole rungs, which only grid_optim with landing: index asks for."
            )

    def __getstate__(self) -> dict[str, Any]:
        """As torch's, with what is ours; observers stay behind, as torch's hooks do."""
        own = {name: getattr(self, name) for name in ("seed", "engine", "casts", "names")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, which calls it for `load_state_dict`, too."""
        super().__setstate__(state)
        self.storages = [_storage(group["storage"]) for group in self.param_groups]
        for name, value in (("observers", []), ("watching", False)):
            self.__dict__.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with integer and scale state kept in its own dtype; what a group does not say stays as it is."""
        kept = {(key, entry): t.dtype for key, values in state_dict["state"].items() for entry, t in _tensors(values)}
        groups = [{**own, **given} for own, given in zip(self.param_groups, state_dict["param_groups"], strict=False)]
        groups += state_dict["param_groups"][len(groups) :]
        super().load_state_dict({**state_dict, "param_groups": groups})
        flat = [p for group in self.param_groups for p in group["params"]]
        for (key, entry), dtype in kept.items():
            self.state[flat[key]][entry] = self.state[flat[key]][entry].to(dtype)

    def grid(self, p: Tensor, storage: Storage) -> Grid | None:
        """The grid of one parameter now, or None."""
        if not storage.on_grid and p in self.casts:
            return self.casts[p].grid(p)
        return storage.grid(p, self.state[p])

    def grids(self) -> Iterator[tuple[str, Tensor, Grid]]:
        """Name, weight and grid of every parameter that has one."""
        for group, storage in zip(self.param_groups, self.storages, strict=True):
            for p in group["params"]:
                if (grid := self.grid(p, storage)) is not None:
                    yield self.names[p], p, grid

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; the closure, if any, is evaluated first with gradients on and its value returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, storage, params, grads in [
            self._ready(*each) for each in zip(self.param_groups, self.storages, strict=True)
        ]:
            left = list(range(len(params)))
            if self.engine == "compiled":
                left = [i for i in left if not self._fused(group, storage, params[i], grads[i])]
            # Looked at, they step one by one: copies are then of one weight and not of the model.
            for some in [[i] for i in left] if self.watching or group["track"] else [left] if left else []:
                self._together(group, storage, [params[i] for i in some], [grads[i] for i in some])
        return loss

    def _ready(self, group: dict[str, Any], storage: Storage) -> "_Ready":
        """What a group's step needs, checked; in float32 where the storage is on a grid."""
        numbers = plain_numbers(group)
        check_rates(numbers)
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if p.grad.layout is not torch.strided and not self.takes_sparse:
                raise ValueError(
                    f"{type(self).__name__} does not take sparse gradients, and that of {self.names[p]} is sparse; use "
                    "SGD for it, or make its layer with sparse=False."
                )
            if is_sharded(p) and not self.takes_shards:
                raise ValueError(
                    f"{type(self).__name__} needs whole tensors, and {self.names[p]} is a DTensor; use AdamW or SGD."
                )
        grads = [p.grad if is_sharded(p.grad) else whole_tensor(p.grad) for p in params]
        return _Ready(numbers, storage, params, [g.to(torch.float32) for g in grads] if storage.on_grid else grads)

    def fuse(self, group: dict[str, Any], storage: Storage, p: Tensor, grid: Grid | None) -> FusedStep | None:
        """How the step of p is done by one compiled graph, if the rule is Adam's; None if it cannot be."""
        return None

    def _fused(self, group: dict[str, Any], storage: Storage, p: Tensor, gradient: Tensor) -> bool:
        """Take the step of one parameter in one graph, if that can be."""
        grid = self.grid(p, storage)
        chosen = self.fuse(group, storage, p, grid)
        if chosen is None:
            return False
        show = bool(self.watching or group["track"])
        seen = BeforeStep([p], [grid]) if show else None
        key = site_key(self.seed, f"{self.names[p]}/storage")
        step = adam_step(p, gradient, self.state[p], group, chosen, grid, key, show=show)
        if seen is not None and step is not None:
            decay = -group["lr"] * group["weight_decay"]
            self._show(group, [p], seen.updates([self.names[p]], [step], decay, [p], [grid], storage.kind))
        return True

    def _together(self, group: dict[str, Any], storage: Storage, params: list[Tensor], grads: list[Tensor]) -> None:
        """Take the step of these parameters: ask the rule, let storage write, show what happened."""
        grids = [self.grid(p, storage) for p in params]
        request = self.request(group, params, grads, grids)
        seen = BeforeStep(params, grids) if self.watching or group["track"] else None
        steps = [] if seen is None else seen.in_value(request)
        keys = [site_key(self.seed, f"{self.names[p]}/storage") for p in params]
        storage.write(params, [self.state[p] for p in params], keys, request, self.engine)
        if seen is not None:
            names, after = [self.names[p] for p in params], [self.grid(p, storage) for p in params]
            self._show(group, params, seen.updates(names, steps, request.keep - 1, params, after, storage.kind))

    def _show(self, group: dict[str, Any], params: list[Tensor], updates: Iterable[Update]) -> None:
        for p, update in zip(params, updates, strict=True):
            if group["track"] and update.grid is not None:
                track(self.state[p], update)
            if self.watching:
                for observe in self.observers:
                    observe(update)


class _Ready(NamedTuple):
    """A group about to step: its numbers, its storage, the parameters that have gradients, and those, dense."""

    group: dict[str, Any]
    storage: Storage
    params: list[Tensor]
    grads: list[Tensor]


def _momentum(group: dict[str, Any], key: str) -> float:
    value = group[key]
    return float(value[0] if isinstance(value, tuple | list) else value)


def _storage(value: Any) -> Storage:
    return Storage.made_from("master" if value is None else value)


def _tensors(values: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(entry, value) for entry, value in values.items() if isinstance(value, Tensor)]


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
        group, number = own, len(optimizer.param_groups) - 1
    group["storage"] = new.tree()
    optimizer.storages[number] = new
    if convert:
        new.convert(p, optimizer.state[p])
