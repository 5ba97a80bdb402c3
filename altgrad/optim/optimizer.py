"""Optimizers request; storage writes.

Every optimizer here is one pure rule that turns gradients, its state and the weights' grids into a `Request` for each
parameter, and never touches a weight itself. How a weight is kept between steps is a separate question, answered in one
place for all optimizers (`altgrad.optim.storage`), so every optimizer goes with every storage. Two pairs have no
meaning and are refused when the optimizer is made: `eco` without a momentum buffer, and rungs (GridOptim's
`landing: index`) anywhere but in `index` storage.

The grid of a weight is that of its storage; under `master`, that of the cast its forward pass makes (`casts`), else the
one that the storage's `format` names. A parameter without any of these has no geometry, and every rule is then the
plain one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, ClassVar, cast, overload

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from altgrad.optim.fused import Recipe, adam_step
from altgrad.optim.request import Request, Update
from altgrad.optim.storage import StorageSpec
from altgrad.quantize import Grid, Quantizer, round_to, rung, spacing
from altgrad.quantize.engine import Engine
from altgrad.quantize.noise import site_key
from altgrad.spec import Kind, Spec

MOST = 1e30
"""Whatever multiplies a float32 tensor stays well below 2^128, where torch raises instead of overflowing."""


def _fits(value: float) -> float:
    if value > MOST:
        raise ValueError(f"{value:g} is beyond {MOST:g}, where products of float32 have no meaning.")
    return value


NonNegative = Annotated[float, Field(ge=0), AfterValidator(_fits)]
LearningRate = NonNegative
Positive = Annotated[float, Field(gt=0), AfterValidator(_fits)]
WeightDecay = Annotated[float, Field(ge=0, lt=1)]


class GroupSpec(Spec):
    """Parameters whose name matches, and what is different for them. `match` as in precision rules."""

    match: Annotated[str, Field(min_length=1)]
    lr: LearningRate | None = None
    weight_decay: WeightDecay | None = None

    @classmethod
    def noun(cls) -> str:
        """See Spec."""
        return "a parameter group"


class OptimizerSpec(Kind, family="optimizer", package="altgrad.optim"):
    """What every optimizer has: a peak learning rate, decoupled or plain decay, and exceptions by parameter name.

    Unless a group says otherwise, weight_decay holds for parameters of two or more dimensions only.
    """

    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0
    groups: tuple[GroupSpec, ...] = ()

    @abstractmethod
    def build(self, groups: Iterable[dict[str, Any]], *, seed: int = 0) -> "Optimizer":
        """The optimizer over what `parameter_groups` returned; `seed` keys the random bits of storage."""


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer whose rule is `request`. p.grad is never changed; parameters without a gradient are skipped.

    params: as torch.optim takes them. A group's (or the default) `storage` is a StorageSpec or plain data for one;
    None is master. `track` keeps each gridded weight's `rung`, its gross `travel` in rungs, and `flips` and `updates`
    as counts, in the state. `engine` compiled fuses Adam's step (see `altgrad.optim.fused`) and stochastic rounding.
    When `watching`, each step shows every observer what it did to each parameter; otherwise that costs nothing.
    ValueError, naming group and parameter, for settings that do not go together.
    """

    has_momentum: ClassVar[str] = ""
    """What of a group must not be 0 for there to be a momentum buffer; empty if there is none anyway."""

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0) -> None:
        self.observers: list[Callable[[Update], None]] = []
        self.watching = False
        self.seed = seed
        self.engine: Engine = "eager"
        self.storages: list[StorageSpec] = []
        self.casts: dict[Tensor, Quantizer] = {}
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
        try:
            storage = _storage(group["storage"])
            self._check(group, storage)
        except ValueError as error:
            self.param_groups.pop()
            names = group.get("param_names")
            which = f"group {number}" + (f" ({names[0]}{', ...' * (len(names) > 1)})" if names else "")
            raise ValueError(f"{type(self).__name__}, {which}: {error}") from None
        group["storage"] = storage.tree()
        names = group.get("param_names", [f"{number}.{i}" for i in range(len(group["params"]))])
        self.names.update(zip(group["params"], names, strict=True))
        self.storages.append(storage)
        with torch.no_grad():
            for p in group["params"]:
                storage.adopt(p, self.state[p])

    def _check(self, group: dict[str, Any], storage: StorageSpec) -> None:
        limits: dict[str, Callable[[float], bool]] = dict.fromkeys(("lr", "weight_decay"), lambda v: 0 <= v <= MOST)
        for name, good in limits.items():
            if name in group and not good(group[name]):
                raise ValueError(f"{name} is {group[name]}; it must be from 0 to {MOST:g}.")
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with integer and scale state kept in its own dtype."""
        kept = {(key, entry): t.dtype for key, values in state_dict["state"].items() for entry, t in _tensors(values)}
        super().load_state_dict(state_dict)
        self.storages = [_storage(group["storage"]) for group in self.param_groups]
        flat = [p for group in self.param_groups for p in group["params"]]
        for (key, entry), dtype in kept.items():
            self.state[flat[key]][entry] = self.state[flat[key]][entry].to(dtype)

    def grid(self, p: Tensor, storage: StorageSpec) -> Grid | None:
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
        for group, storage in zip(self.param_groups, self.storages, strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            if self.engine == "compiled":
                params = [p for p in params if not self._fused(group, storage, p)]
            # Looked at, they step one by one: copies are then of one weight and not of the model.
            for some in [[p] for p in params] if self.watching or group["track"] else [params] if params else []:
                self._together(group, storage, some)
        return loss

    def fuse(self, group: dict[str, Any], storage: StorageSpec, p: Tensor, grid: Grid | None) -> Recipe | None:
        """How the step of p is done by one compiled graph, if the rule is Adam's; None if it cannot be."""
        return None

    def _fused(self, group: dict[str, Any], storage: StorageSpec, p: Tensor) -> bool:
        """Take the step of one parameter in one graph, if that can be."""
        grid = self.grid(p, storage)
        chosen = self.fuse(group, storage, p, grid)
        if chosen is None:
            return False
        show = bool(self.watching or group["track"])
        seen = _Seen([p], [grid]) if show else None
        key = site_key(self.seed, f"{self.names[p]}/storage")
        step = adam_step(p, self.state[p], group, chosen, grid, key, show=show)
        if seen is not None and step is not None:
            decay = -group["lr"] * group["weight_decay"]
            self._show(group, [p], seen.updates([self.names[p]], [step], decay, [p], [grid], storage.kind))
        return True

    def _together(self, group: dict[str, Any], storage: StorageSpec, params: list[Tensor]) -> None:
        """Take the step of these parameters: ask the rule, let storage write, show what happened."""
        grids = [self.grid(p, storage) for p in params]
        request = self.request(group, params, [cast(Tensor, p.grad) for p in params], grids)
        seen = _Seen(params, grids) if self.watching or group["track"] else None
        steps = [] if seen is None else seen.in_value(request)
        keys = [site_key(self.seed, f"{self.names[p]}/storage") for p in params]
        storage.write(params, [self.state[p] for p in params], keys, request, self.engine)
        if seen is not None:
            names, after = [self.names[p] for p in params], [self.grid(p, storage) for p in params]
            self._show(group, params, seen.updates(names, steps, request.keep - 1, params, after, storage.kind))

    def _show(self, group: dict[str, Any], params: list[Tensor], updates: Iterable[Update]) -> None:
        for p, update in zip(params, updates, strict=True):
            if group["track"] and update.grid is not None:
                _track(self.state[p], update)
            if self.watching:
                for observe in self.observers:
                    observe(update)


class _Seen:
    """What must be known of weights before a step, to say afterwards what it did."""

    def __init__(self, params: list[Tensor], grids: list[Grid | None]) -> None:
        self.before = [p.clone() for p in params]
        self.scales = [None if g is None or g.scale is None else g.scale.clone() for g in grids]
        self.grids = grids

    def in_value(self, request: Request) -> list[Tensor]:
        """The changes asked for but decay; rungs as so many spacings of the weight."""
        if not request.in_rungs:
            return request.steps()
        return [
            step if grid is None else step * spacing(w, grid.format, scale=grid.scale)
            for step, w, grid in zip(request.steps(), self.before, self.grids, strict=True)
        ]

    def updates(
        self,
        names: list[str],
        steps: list[Tensor],
        decay: float,
        params: list[Tensor],
        grids: list[Grid | None],
        storage: str,
    ) -> Iterator[Update]:
        """One for each parameter. The grid is that after the step where storage has one, else that before it."""
        for name, old, step, scale, now, grid in zip(
            names, self.before, steps, self.scales, params, grids, strict=True
        ):
            requested = torch.add(step, old, alpha=decay) if decay else step
            moved = None
            if grid is not None and storage == "master":
                grid = Grid(grid.format, scale)
            elif grid is not None and grid.scale is not None:
                grid = Grid(grid.format, grid.scale.clone())
                moved = round_to(old, grid.format, scale=grid.scale)
            yield Update(name, old, requested, now.detach(), step if decay else None, grid, moved, storage, now.grad)


def _track(state: dict[str, Any], update: Update) -> None:
    """Advance rung, travel, flips and updates of one parameter; made at its first step."""
    assert update.grid is not None
    fmt, scale = update.grid.format, update.grid.scale
    start = rung(update.before if update.moved is None else update.moved, fmt, scale=scale)
    end = rung(update.after, fmt, scale=scale)
    if "rung" not in state:
        state["travel"] = torch.zeros_like(end)
        state["flips"] = torch.zeros((), dtype=torch.int64, device=end.device)
        state["updates"] = torch.zeros((), dtype=torch.int64, device=end.device)
    attempted = update.requested != 0
    state["rung"] = end
    state["travel"].add_((end - start).abs())
    state["flips"].add_(torch.count_nonzero((end != start) & attempted))
    state["updates"].add_(torch.count_nonzero(attempted))


def _momentum(group: dict[str, Any], key: str) -> float:
    value = group[key]
    return float(value[0] if isinstance(value, tuple | list) else value)


def _storage(value: Any) -> StorageSpec:
    return StorageSpec.made_from("master" if value is None else value)


def _tensors(values: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(entry, value) for entry, value in values.items() if isinstance(value, Tensor)]
