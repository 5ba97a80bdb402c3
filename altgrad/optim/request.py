"""Request and Update: what an optimizer asks for, and what became of it.

A request is a rule for a list of weights,

    w <- keep * w + value * factor * numerator / denominator,

and not the finished difference, for two reasons. Under master storage it is applied in torch.optim's own order of
operations, so trajectories agree bit for bit. And error feedback needs to know which buffer carries the momentum and
what it will be multiplied by.

What must be known of weights before a step, to say afterwards what it did, and what `track` keeps of that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from altgrad.optim.whole_tensor import whole_tensor
from altgrad.quantize import Grid, round_to, rung, spacing


@dataclass(frozen=True)
class Request:
    """w <- keep * w + value * factor * numerator / denominator, for a list of weights; None stands for ones."""

    keep: float
    values: list[float]
    numerators: list[Tensor]
    denominators: list[Tensor] | None = None
    factors: list[Tensor] | None = None
    beta: float | None = None
    """The decay of a momentum buffer, if the numerators are such buffers themselves."""
    in_rungs: bool = False
    """Whether the change (all but `keep`) counts grid positions instead of values; numerators alone, then."""

    def steps(self) -> list[Tensor]:
        """value * factor * numerator / denominator, fresh tensors."""
        found = list(torch._foreach_mul(self._factored(), self.values))
        return found if self.denominators is None else list(torch._foreach_div(found, self.denominators))

    def _factored(self) -> list[Tensor]:
        return self.numerators if self.factors is None else list(torch._foreach_mul(self.numerators, self.factors))

    def apply(self, params: list[Tensor]) -> None:
        """Do to the weights what is asked for, in place, as torch.optim would.

        In float32 where weights and request are of several dtypes, as with a stiffness of a bfloat16 weight.
        """
        given = (*params, *self.numerators, *(self.denominators or ()), *(self.factors or ()))
        if len({t.dtype for t in given}) > 1:
            for p, step in zip(params, self.steps(), strict=True):
                p.copy_(p.to(torch.float32) * self.keep + step)
            return
        if self.keep != 1:
            torch._foreach_mul_(params, self.keep)
        numerators = self._factored()
        if self.denominators is not None:
            torch._foreach_addcdiv_(params, numerators, self.denominators, self.values)
        elif len(set(self.values)) == 1:
            torch._foreach_add_(params, numerators, alpha=self.values[0])
        else:
            for p, numerator, value in zip(params, numerators, self.values, strict=True):
                p.add_(numerator, alpha=value)

    def one(self, index: int) -> "Request":
        """The request for one of the weights."""
        return replace(
            self,
            values=[self.values[index]],
            numerators=[self.numerators[index]],
            denominators=None if self.denominators is None else [self.denominators[index]],
            factors=None if self.factors is None else [self.factors[index]],
        )


@dataclass(frozen=True)
class Update:
    """What one step did to one parameter.

    before, after: the stored weight. requested: the change asked for, decoupled decay included, before storage rounded
    it; undecayed: that without the decay, None where there is none. grid: on which the weight is stored or cast, as it
    was when the request was rounded; None for neither. moved: the weight before, on that grid (another value only where
    the scale has changed); None under master. storage: the kind. gradient: what the optimizer was given, clipped if it
    was. draw: the key by which an observer that samples chooses elements, an int64 scalar.
    """

    name: str
    before: Tensor
    requested: Tensor
    after: Tensor
    undecayed: Tensor | None = None
    grid: Grid | None = None
    moved: Tensor | None = None
    storage: str = "master"
    gradient: Tensor | None = None
    draw: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """The weight before, on this step's grid: what codes after the step are compared with."""
        return self.before if self.moved is None else self.moved


class BeforeStep:
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
            given = None if now.grad is None else whole_tensor(now.grad)
            moved = None
            if grid is not None and storage == "master":
                grid = Grid(grid.format, scale)
            elif grid is not None and grid.scale is not None:
                grid = Grid(grid.format, grid.scale.clone())
                moved = round_to(old, grid.format, scale=grid.scale)
            yield Update(name, old, requested, now.detach(), step if decay else None, grid, moved, storage, given)


def states_of(
    states: Mapping[Tensor, dict[str, Any]], name: str, params: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    """The state of that name of each parameter, which begins as zeros of its gradient's type."""
    for p, g in zip(params, grads, strict=True):
        if name not in states[p]:
            states[p][name] = torch.zeros_like(p, dtype=g.dtype)
    return [states[p][name] for p in params]


def track(state: dict[str, Any], update: Update) -> None:
    """Advance rung, travel, flips and updates of one parameter; made at its first step."""
    assert update.grid is not None
    fmt, scale = update.grid.format, update.grid.scale
    start = rung(update.start, fmt, scale=scale)
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
