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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self, overload

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.optim.fused import FusedStep, adam_step
from altgrad.optim.fused_landing import land, landing_of
from altgrad.optim.numbers import LearningRate, WeightDecay, check_rates, plain_numbers
from altgrad.optim.parameter_group import ParameterGroup
from altgrad.optim.request import BeforeStep, Request, Update, track
from altgrad.optim.stand_ins import adopt, as_plain
from altgrad.optim.states import StateLosses, States, StateSpec, check_state, keep, state_casts
from altgrad.optim.storage import Storage
from altgrad.optim.whole_tensor import is_sharded, own_part, whole_tensor
from altgrad.quantize import Grid, Quantizer, StackedCasts
from altgrad.quantize.engine import Engine
from altgrad.quantize.noise import site_key
from altgrad.spec import Kind, LocatedError, Since


class OptimizerSpec(Kind, family="optimizer", package="altgrad.optim"):
    """What every optimizer has: a peak learning rate, decoupled or plain decay, and exceptions by parameter name.

    Unless a group says otherwise, weight_decay holds for parameters of two or more dimensions only.
    """

    lr: LearningRate = 1e-3
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.0
    """Weight decay of parameters of two or more dimensions, unless a group says otherwise."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters by name with a rate or a decay of their own."""
    states: Annotated[dict[str, StateSpec], Since(2)] = Field(default_factory=dict)
    """The formats in which states are kept between steps, by the state's name; what is not named is float32."""

    @model_validator(mode="after")
    def _keeps_states(self) -> Self:
        self._check(self.states)
        return self

    def _check(self, states: Mapping[str, StateSpec]) -> None:
        known = self.product().keeps(dict(self)) if states else ()
        for name, spec in states.items():
            try:
                check_state(name, spec, known, self.kind)
            except ValueError as error:
                raise LocatedError(("states", name), str(error)) from None

    def with_states(self, states: Mapping[str, StateSpec]) -> Self:
        """The same with its states kept so. LocatedError for a state that it lacks."""
        try:
            self._check(states)
        except LocatedError as error:
            raise error.within("optimizer") from None
        return self.model_copy(update={"states": dict(states)})

    def build(self, groups: Iterable[dict[str, Any]], *, seed: int = 0) -> "Optimizer":
        """The optimizer over what `parameter_groups` returned; `seed` keys the random bits of storage."""
        without = {"groups"} if self.states else {"groups", "states"}  # which an optimizer need not know of
        settings = {name: getattr(self, name) for name in type(self).model_fields if name not in without}
        made: Optimizer = self.product()(groups, **settings, seed=seed)
        return made


def settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer's `__init__` was given (its `locals()`), but for parameters and seed: a group's defaults.

    So settings are named in the signature, for Python's users, and in the spec, for YAML's, and nowhere else.
    """
    left_out = {"self", "params", "seed", "__class__", *(["states"] if arguments.get("states") is None else [])}
    return {name: value for name, value in arguments.items() if name not in left_out}


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer whose rule is `request`. p.grad is never changed; parameters without a gradient are skipped.

    A step is checked as a whole before anything of it is done: where it raises, no moment and no weight has moved. A
    group's numbers may be tensors of one element, as lr may in torch.optim. Copies (`copy.deepcopy`, pickle) keep all
    but observers; a copy made together with its model is of the copied parameters.

    params: as torch.optim takes them. A group's (or the default) `storage` is a StorageSpec or plain data for one;
    None is master; `states` are StateSpecs or plain data by the state's name. `track` keeps each gridded weight's
    `rung`, its gross `travel` in rungs, and `flips` and `updates` as counts, in the state. `engine` compiled fuses
    Adam's step (see `altgrad.optim.fused`) and stochastic rounding.
    When `watching`, each step shows every observer what it did to each parameter, and when `measuring` it leaves in
    `losses` what rounding made of states that are cast; otherwise that costs nothing.
    ValueError, naming group and parameter, for settings that do not go together.
    """

    has_momentum: ClassVar[str] = ""
    """What of a group must not be 0 for there to be a momentum buffer; empty if there is none anyway."""
    takes_sparse: ClassVar[bool] = False
    """Whether a sparse gradient is taken for the dense one it stands for; else it is refused, as torch's Adam does."""
    takes_shards: ClassVar[bool] = False
    """Whether the rule works element by element, and so on the part of a DTensor that a process holds."""

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0) -> None:
        self.observers: list[Callable[[Update], None]] = []
        self.watching = self.measuring = False
        self.seed = seed
        self.engine: Engine = "eager"
        self.storages: list[Storage] = []
        self.states: list[States] = []
        self.losses: StateLosses = {}
        self.applies: Tensor | None = None
        """Where it is false a step changes nothing: a bool on the weights' device. Graphs take it as a mask; for all
        else the host reads it first. `left_out` is to be called once a false one is known."""
        self._counted: list[Tensor] = []
        self._masks: bool | None = None
        self.casts: dict[Tensor, Quantizer | StackedCasts] = {}
        self.names: dict[Tensor, str] = {}
        super().__init__(params, {"storage": None, "track": False, **defaults})

    @abstractmethod
    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        """The rule: advance the state of these parameters and say what should become of them.

        group["states"] are the casts of its states. Between the two, the rule calls `advanced`.
        """

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states that a group with these settings keeps and that may be cast."""
        return ()

    def check(self, group: dict[str, Any]) -> None:
        """ValueError if the group's settings are out of range."""
        return

    def alike(self, group: dict[str, Any], params: list[Tensor]) -> list[list[int]]:
        """Which of these parameters one request can be for: their places, in lists that may be empty."""
        return [list(range(len(params)))]

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
            states = self._casts(group)
            self._check(plain_numbers(group), storage)
            for name, p in zip(named, group["params"], strict=True):
                storage.admit(p, name)
        except ValueError as error:
            self.param_groups.pop()
            names = group.get("param_names")
            which = f"group {number}" + (f" ({names[0]}{', ...' * (len(names) > 1)})" if names else "")
            raise ValueError(f"{type(self).__name__}, {which}: {error}") from None
        group["storage"] = storage.tree()
        if states:
            group["states"] = {name: cast.spec.tree() for name, cast in states.items()}
        self.names.update(zip(group["params"], named, strict=True))
        self.storages.append(storage)
        self.states.append(states)
        with torch.no_grad():
            for p in group["params"]:
                adopt(self, storage, p)

    def _casts(self, group: dict[str, Any]) -> States:
        return state_casts(group.get("states"), self.keeps(group), type(self).__name__)

    def held(self, p: Tensor) -> dict[str, Any]:
        """Where the states of p are."""
        found: dict[str, Any] = self.state[p]
        return found

    def _check(self, group: dict[str, Any], storage: Storage) -> None:
        check_rates(group)
        self.check(group)
        momentum = group.get(self.has_momentum, 0.0)
        if storage.wants_momentum and not (momentum[0] if isinstance(momentum, tuple | list) else momentum):
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
        self.states = [self._casts(group) for group in self.param_groups]
        found = {"observers": [], "watching": False, "measuring": False, "losses": {}}
        for name, value in {**found, "applies": None, "_counted": [], "_masks": None}.items():
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
        """The grid of one parameter now, or None. Of a sharded one all processes must ask together."""
        if not storage.on_grid and p in self.casts:
            return self.casts[p].grid(whole_tensor(p))
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
        self.losses.clear()
        self._counted, self._masks = [], self.engine == "compiled"
        ready = [self._ready(*each) for each in zip(self.param_groups, self.storages, self.states, strict=True)]
        if self.applies is not None and not all(map(self._can_wait, ready)) and not self.applies:
            return loss
        for group, storage, params, grads in ready:
            looked_at = self.watching or self.measuring or group["track"] or group["states"]
            by_element = self.takes_shards and storage.takes_shards and not looked_at
            for some, theirs in as_plain(self, params, grads, own_part if by_element else whole_tensor):
                self._step_plain(group, storage, some, theirs)
        return loss

    @property
    def masks(self) -> bool:
        """Whether a step is graphs alone, all of which take `applies` as a mask: as it was in the last one."""
        found = self._masks
        return self.engine == "compiled" and type(self).fuse is not Optimizer.fuse if found is None else found

    def left_out(self) -> None:
        """The last step was left out by `applies`: what the host counted of it is taken back."""
        for p in self._counted:
            self.state[p]["step"] -= 1
        self._counted = []

    def _can_wait(self, ready: "_Ready") -> bool:
        """Whether nothing of a group's step but what its graphs do depends on its being taken."""
        return not (ready.group["track"] or any("step" not in self.state[p] or is_sharded(p) for p in ready.params))

    def _step_plain(self, group: dict[str, Any], storage: Storage, params: list[Tensor], grads: list[Tensor]) -> None:
        """Take the step of a group's parameters, all of them plain tensors."""
        left = list(range(len(params)))
        if self.engine == "compiled":
            left = [i for i in left if not self._fused(group, storage, params[i], grads[i])]
        self._masks = not left and bool(self._masks)
        if left and self.applies is not None and not self.applies:
            return
        # Looked at, they step one by one: copies are then of one weight and not of the model.
        alone = self.watching or group["track"]
        sorts = [[i] for i in range(len(left))] if alone else self.alike(group, [params[i] for i in left])
        for some in [[left[i] for i in sort] for sort in sorts if sort]:
            self._together(group, storage, [params[i] for i in some], [grads[i] for i in some])

    def _ready(self, group: dict[str, Any], storage: Storage, states: States) -> "_Ready":
        """What a group's step needs, checked; in float32 where the storage is on a grid or states are cast."""
        numbers = {**plain_numbers(group), "states": states}
        check_rates(numbers)
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if p.grad.layout is not torch.strided and not self.takes_sparse:
                raise ValueError(
                    f"{type(self).__name__} does not take sparse gradients, and that of {self.names[p]} is sparse; use "
                    "SGD for it, or make its layer with sparse=False."
                )
        grads = [p.grad if is_sharded(p.grad) else whole_tensor(p.grad) for p in params]
        wide = storage.on_grid or states
        return _Ready(numbers, storage, params, [g.to(torch.float32) for g in grads] if wide else grads)

    def fuse(self, group: dict[str, Any], storage: Storage, p: Tensor, grid: Grid | None) -> FusedStep | None:
        """How the step of p is done by one compiled graph, if the rule is Adam's; None if it cannot be."""
        return None

    def _fused(self, group: dict[str, Any], storage: Storage, p: Tensor, gradient: Tensor) -> bool:
        """Take the step of one parameter in one graph, if that can be."""
        grid = self.grid(p, storage)
        chosen = self.fuse(group, storage, p, grid)
        if chosen is None or (self.measuring and chosen.states):
            return False
        show = bool(self.watching or group["track"])
        seen = BeforeStep([p], [grid]) if show else None
        key = site_key(self.seed, f"{self.names[p]}/storage")
        step = adam_step(p, gradient, self.state[p], group, chosen, grid, key, show=show, applies=self.applies)
        if self.applies is not None:
            self._counted.append(p)
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
        self._write(storage, params, keys, request)
        self._keep_states(group, params, "unrounded", again=storage.wants_momentum)
        if seen is not None:
            names, after = [self.names[p] for p in params], [self.grid(p, storage) for p in params]
            self._show(group, params, seen.updates(names, steps, request.keep - 1, params, after, storage.kind))

    def _write(self, storage: Storage, params: list[Tensor], keys: list[int], request: Request) -> None:
        """Let storage write the weights, those that can each in one graph."""
        left = list(range(len(params)))
        for i in list(left) if self.engine == "compiled" else ():
            one, state = request.one(i), self.state[params[i]]
            if (chosen := landing_of(storage, params[i], state, one)) is not None:
                land(chosen, params[i], state, keys[i], one)
                left.remove(i)
        if left == list(range(len(params))):
            storage.write(params, [self.state[p] for p in params], keys, request, self.engine)
            return
        for i in left:
            storage.write([params[i]], [self.state[params[i]]], [keys[i]], request.one(i), self.engine)

    def advanced(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """The states of these have moved: those of which the step takes what is kept are rounded now."""
        self._keep_states(group, params, "rounded")

    def _keep_states(self, group: dict[str, Any], params: list[Tensor], taken: str, *, again: bool = False) -> None:
        """Round the states whose `step_takes` is this, or all of them (`again`, where storage has changed them)."""
        casts = [each for each in group["states"].values() if again or each.spec.step_takes == taken]
        for p in params if casts else ():
            for each in casts:
                state = self.held(p).get(each.name)
                if isinstance(state, Tensor) and each.takes(state) and not state.is_meta:
                    key = site_key(self.seed, f"{self.names[p]}/{each.name}") if each.draws else None
                    if found := keep(each, state, self.state[p], key, self.engine, measuring=self.measuring):
                        self.losses.setdefault(p, {})[each.name] = found
            if "state_step" in self.state[p]:
                self.state[p]["state_step"].add_(1)

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


def _storage(value: Any) -> Storage:
    return Storage.made_from("master" if value is None else value)


def _tensors(values: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(entry, value) for entry, value in values.items() if isinstance(value, Tensor)]
