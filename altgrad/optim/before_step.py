"""What must be known of weights before a step, to say afterwards what it did, and what `track` keeps of that."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from altgrad.optim.request import Request, Update
from altgrad.optim.whole_tensor import whole_tensor
from altgrad.quantize import Grid, round_to, rung, spacing


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
