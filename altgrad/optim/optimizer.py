"""Optimizers request; storage writes.

Every optimizer here is one pure rule that turns gradients and its state into a *request* for each parameter,

    w <- keep * w + value * numerator / denominator,

and never touches a weight itself. How a weight is kept between steps is a separate question, answered in one place for
all optimizers. Under `master` storage the request is applied to the float32 weight in the operation order of
torch.optim, so that trajectories agree with it bit for bit; that is why a request is this triple and not the finished
difference, whose sum with w rounds differently.

`parameter_groups` gives each parameter its learning rate and decay by name: first match wins, as in precision rules.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, cast, overload

import torch
from pydantic import Field
from torch import Tensor, nn

from altgrad.nn.policy import aliases, matches
from altgrad.spec import Kind, LocatedError, Spec, did_you_mean

LearningRate = Annotated[float, Field(ge=0)]
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
    def build(self, groups: Iterable[dict[str, Any]]) -> "Optimizer":
        """The optimizer over what `parameter_groups` returned."""


@dataclass(frozen=True)
class Request:
    """w <- keep * w + value * numerator / denominator, for a list of parameters; `denominators` None means 1."""

    keep: float
    values: list[float]
    numerators: list[Tensor]
    denominators: list[Tensor] | None


@dataclass(frozen=True)
class Update:
    """What one step did to one parameter: the weight before and after, and the change asked for (decay included)."""

    name: str
    before: Tensor
    requested: Tensor
    after: Tensor


class Optimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer whose rule is `request`. p.grad is never changed; parameters without a gradient are skipped.

    When `watching`, each step shows every observer what it did to each parameter; otherwise that costs nothing.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.observers: list[Callable[[Update], None]] = []
        self.watching = False
        super().__init__(params, defaults)

    @abstractmethod
    def request(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Request:
        """The rule: advance the state of these parameters and say what should become of them."""

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
        for group in self.param_groups:
            named = list(zip(group.get("param_names", [""] * len(group["params"])), group["params"], strict=True))
            named = [(name, p) for name, p in named if p.grad is not None]
            if not named:
                continue
            params = [p for _, p in named]
            before = [p.clone() for p in params] if self.watching else []
            _write_master(params, self.request(group, params, [cast(Tensor, p.grad) for p in params]))
            for (name, now), old in zip(named, before, strict=False):
                for observe in self.observers:
                    observe(Update(name, old, requested=now - old, after=now))
        return loss


def _write_master(params: list[Tensor], request: Request) -> None:
    if request.keep != 1:
        torch._foreach_mul_(params, request.keep)
    if request.denominators is None:
        torch._foreach_add_(params, torch._foreach_mul(request.numerators, request.values))
    else:
        torch._foreach_addcdiv_(params, request.numerators, request.denominators, request.values)


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """The model's trainable parameters as torch parameter groups with names, lr and weight_decay.

    A parameter belongs to the first group that matches one of its names (a tied one has several; `first` and `last`
    work as in precision rules), else to the defaults. Raises LocatedError for a group that decides nothing.
    """
    modules = aliases(model)
    names: dict[nn.Parameter, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.requires_grad:
            names.setdefault(p, []).append(name)
    found: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    used: set[int] = set()
    for p, known in names.items():
        also = {f"{m}.{leaf}" if m else leaf for owner, _, leaf in map(_split, known) for m in modules[owner]}
        number = next((i for i, group in enumerate(spec.groups) if matches(group.match, also)), None)
        lr, decay = spec.lr, spec.weight_decay if p.ndim >= 2 else 0.0
        if number is not None:
            used.add(number)
            group = spec.groups[number]
            lr = lr if group.lr is None else group.lr
            decay = decay if group.weight_decay is None else group.weight_decay
        found.setdefault((lr, decay), []).append((known[0], p))
    for number, group in enumerate(spec.groups):
        if number not in used:
            hint = did_you_mean(group.match, [known[0] for known in names.values()])
            message = f"'{group.match}' decides no parameter: none matches, or earlier groups match them all.{hint}"
            raise LocatedError(("groups", number, "match"), message)
    return [
        {"params": members, "lr": lr, "weight_decay": decay, "initial_lr": lr} for (lr, decay), members in found.items()
    ]


def _split(name: str) -> tuple[str, str, str]:
    owner, dot, leaf = name.rpartition(".")
    return owner, dot, leaf
