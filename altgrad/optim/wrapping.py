"""stored(): any optimizer of torch's kind, with its weights and states kept in formats, in a loop of one's own.

    inner = torch.optim.Adafactor(model.parameters())
    optimizer = altgrad.optim.stored(inner, {"kind": "stochastic", "format": "e4m3fn"}, {"variance": "bf16"})

The optimizer steps as it always does. What it made of a weight, w~, is its request: the weight as it was and w~ go to
the storage, which writes the weight, on its grid, and counts its own bits. So storage and states serve optimizers that
know nothing of them, monitors see requested and realised updates, and what remains impossible is what needs the
inside of a rule: `eco`, which writes into a momentum buffer, and `index`, which takes whole rungs.

The step is computed in the dtype of the weight. Learning rates are those of `param_groups`, which both share, so
schedulers may be made of either. State dicts hold both.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from altgrad.optim.optimizer import Optimizer
from altgrad.optim.request import BeforeStep, Request
from altgrad.optim.states import States, state_casts
from altgrad.optim.storage import Storage
from altgrad.optim.whole_tensor import is_sharded
from altgrad.quantize import Grid
from altgrad.quantize.noise import site_key


def stored(
    optimizer: torch.optim.Optimizer,
    storage: Any = None,
    states: Any = None,
    *,
    named: Iterable[tuple[str, Tensor]] = (),
    track: bool = False,
    seed: int = 0,
) -> "StoredOptimizer":
    """The optimizer with its weights in `storage` and its states in the formats of `states`; use it in its place.

    storage, states: as `AdamW` takes them; groups may have their own. named: the model's `named_parameters()`, if the
    optimizer was not given names: they key the random bits, and monitors go by them. The weights are put on their grids
    at once. ValueError for a storage that needs the inside of a rule, and at the first step for a state that the
    optimizer does not keep.
    """
    return StoredOptimizer(optimizer, storage, states, named=named, track=track, seed=seed)


class StoredOptimizer(Optimizer):
    """What `stored` returns."""

    takes_sparse = True
    takes_shards = True

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        storage: Any = None,
        states: Any = None,
        *,
        named: Iterable[tuple[str, Tensor]] = (),
        track: bool = False,
        seed: int = 0,
    ) -> None:
        if isinstance(inner, Optimizer):
            raise ValueError(f"{type(inner).__name__} keeps weights and states itself; give storage and states to it.")
        self.inner = inner
        names = {p: name for name, p in named}
        groups = []
        for group in inner.param_groups:
            given = group.get("param_names") or [names.get(p) for p in group["params"]]
            known = None not in given
            params = list(zip(given, group["params"], strict=True)) if known else group["params"]
            rest = {key: value for key, value in group.items() if key != "param_names"}
            groups.append({"storage": storage, **({"states": states} if states else {}), **rest, "params": params})
        super().__init__(groups, {**inner.defaults, "track": track}, seed=seed)
        self._share()

    def _share(self) -> None:
        self.inner.param_groups = self.param_groups

    def _casts(self, group: dict[str, Any]) -> States:
        return state_casts(group.get("states"), None, type(self.inner).__name__)

    def _check(self, group: dict[str, Any], storage: Storage) -> None:
        if storage.wants_momentum or storage.kind == "index":
            raise ValueError(
                f"storage {storage.kind} needs the inside of a rule, and {type(self.inner).__name__} is not ours; use "
                "stochastic or kahan."
            )
        sharded = next((p for p in group["params"] if is_sharded(p)), None)
        if sharded is not None and (storage.on_grid or group.get("states")):
            raise ValueError(
                f"a weight {list(sharded.shape)} is a DTensor, which {type(self.inner).__name__} steps part by part; "
                "storage on a grid and states need whole tensors: use altgrad.optim.AdamW, or storage master."
            )

    def held(self, p: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = self.inner.state[p]
        return found

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        """Never asked: the optimizer inside steps."""
        raise AssertionError("a wrapped optimizer steps by itself")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of the optimizer inside, and then of the storage."""
        self.losses.clear()
        kept = [
            (group, storage, p, p.detach().clone() if self._looks(group, storage) else None)
            for group, storage in zip(self.param_groups, self.storages, strict=True)
            for p in group["params"]
            if p.grad is not None or (closure is not None and p.requires_grad)
        ]
        loss = self.inner.step() if closure is None else self.inner.step(closure)
        for group, storage, p, before in kept:
            if before is not None and p.grad is not None:
                self._land(group, storage, p, before)
        for group, casts in zip(self.param_groups, self.states, strict=True):
            moved = [p for p in group["params"] if p.grad is not None]
            self._keep_states({"states": casts}, moved, "unrounded", again=True)
            self._check_states(casts, moved)
        return loss

    def _looks(self, group: dict[str, Any], storage: Storage) -> bool:
        return bool(storage.on_grid or self.watching or group["track"])

    def _land(self, group: dict[str, Any], storage: Storage, p: Tensor, before: Tensor) -> None:
        """Let storage write p, which was `before` and which the step made what it is."""
        wanted, state = p.detach().to(torch.float32, copy=True), self.state[p]
        p.copy_(before)
        seen = BeforeStep([p], [self.grid(p, storage)]) if self.watching or group["track"] else None
        request = Request(keep=0.0, values=[1.0], numerators=[wanted])
        if storage.on_grid:
            storage.write([p], [state], [site_key(self.seed, f"{self.names[p]}/storage")], request, self.engine)
        else:
            p.copy_(wanted)
        if seen is not None:
            steps = [wanted - seen.before[0].to(torch.float32)]
            updates = seen.updates([self.names[p]], steps, 0.0, [p], [self.grid(p, storage)], storage.kind)
            self._show(group, [p], updates)

    def _check_states(self, casts: States, params: list[Tensor]) -> None:
        """ValueError, at the first step, for a state that the optimizer does not keep."""
        held = {name for p in params for name, value in self.held(p).items() if isinstance(value, Tensor)}
        for name in casts if params else ():
            if name not in held:
                kept = ", ".join(sorted(held)) or "none"
                raise ValueError(f"'{name}' is not a state of {type(self.inner).__name__}; it keeps {kept}.")

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with that of the optimizer inside under `inner`."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.inner.load_state_dict(state_dict["inner"])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """As Optimizer's, with the optimizer inside."""
        return {**super().__getstate__(), "inner": self.inner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The groups are shared again."""
        if "inner" in state:
            self.inner = state["inner"]
        super().__setstate__(state)
        self._share()
