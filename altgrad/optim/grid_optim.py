"""GridOptim: momentum on the gradient, steps counted in grid positions.

    v <- momentum v + g        r = clip(lr v, +-rung_clip)

`lr` is rungs per unit of velocity, so the schedule acts on it; a step never exceeds `rung_clip` rungs.

    landing: value   requested = -r spacing(max(|w|, kappa rms(w))): linear in value, so that stochastic storage lands
                     it without bias, E[Q(w)] = w inside the range
    landing: index   floor(-r + u) rungs, u uniform: the original walk on codes, in `index` storage. Biased in value,
                     because rungs grow with |w|: under +-1-rung noise of probability p each way a weight of M = 0 grows
                     by 1 + p/2 a step. Kept as the documented control.

It moves on the weight's own format and scale, under any storage: `master` keeps float32 masters that the forward pass
projects (GRID-02), the others keep none. A parameter that no rule gives a format walks on the grid of `format`. Decay
is decoupled: `weight_decay` is the share that a weight loses in a step at the peak of the schedule.
Flips and updates are counted in the state (`track`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, parse_format
from altgrad.optim.numbers import NonNegative, Positive, check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request, states_of
from altgrad.optim.stiffness import absolute, floor_of, spacing_field
from altgrad.optim.stored_scale import own_grid
from altgrad.quantize import Grid
from altgrad.quantize.engine import SMALL, Engine, ready_compiler
from altgrad.quantize.grid import grid_units, spacing_units
from altgrad.spec import Format

Landing = Literal["value", "index"]


class GridOptimSpec(OptimizerSpec):
    """Momentum steps in whole grid positions."""

    kind: ClassVar[str] = "grid_optim"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the momentum in a step (0 to 1); 0: no momentum."""
    rung_clip: Positive = 1.0
    """The most rungs of one step."""
    landing: Landing = "value"
    """value: a step in value, stored as storage says; index: whole rungs, with storage index."""
    kappa: NonNegative = 2.0**-6
    """Floor on |w|, as a share of the tensor's rms."""
    format: Format = FloatFormat.parse("e4m3fn")
    """The grid of parameters that have none of their own."""
    track: bool = True
    """Keep every weight's rung and its travel, and counts of flips and updates, in the state."""


class GridOptim(Optimizer):
    """The rule at the head of the file. See AdamW for the arguments in common."""

    has_momentum = "momentum"

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        rung_clip: float = 1.0,
        landing: Landing = "value",
        kappa: float = 2.0**-6,
        format: str | NumberFormat = "e4m3fn",
        weight_decay: float = 0.0,
        *,
        storage: Any = None,
        states: Any = None,
        track: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()) | {"format": str(format)}, seed=seed)

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def check(self, group: dict[str, Any]) -> None:
        check_decays(group, "momentum")
        if not group["rung_clip"] > 0:
            raise ValueError(f"rung_clip is {group['rung_clip']}; it must be above 0.")
        if not 0 <= group["kappa"] < float("inf"):
            raise ValueError(f"kappa is {group['kappa']}; it must be not negative and finite.")
        parse_format(group["format"]).require_tensor_domain()
        if group["landing"] not in ("value", "index"):
            raise ValueError(f"landing is {group['landing']}; choose value or index.")

    def in_rungs(self, group: dict[str, Any]) -> bool:
        return bool(group["landing"] == "index")

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        lr, clip = group["lr"], group["rung_clip"]
        velocities = states_of(self.state, "momentum_buffer", params, grads)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads)
        self.advanced(group, params)
        peak = group.get("initial_lr", lr)
        keep = 1 - group["weight_decay"] * (lr / peak if peak else 0.0)
        if self.in_rungs(group):
            rungs = [(velocity * lr).clamp(-clip, clip) for velocity in velocities]
            return Request(keep, [-1.0] * len(params), rungs, in_rungs=True)
        # The clip as a factor, so that the numerator stays the momentum buffer, which error feedback writes to.
        factors = [
            rungs_of(
                p, velocity, own_grid(p, parse_format(group["format"])) if grid is None else grid, lr, clip,
                group["kappa"], self.engine,
            )
            for p, velocity, grid in zip(params, velocities, grids, strict=True)
        ]  # fmt: skip
        return Request(keep, [-lr] * len(params), velocities, factors=factors, beta=group["momentum"] or None)


def rungs_of(
    p: Tensor, velocity: Tensor, grid: Grid, lr: float, clip: float, kappa: float, engine: Engine = "eager"
) -> Tensor:
    """What velocity is multiplied by, but lr, to be a step of at most `clip` spacings; the same bits as one graph."""
    whole = grid.scale is None or grid.scale.numel() == 1
    plain = p.dtype == velocity.dtype == torch.float32 and p.is_contiguous() and velocity.is_contiguous()
    if engine == "compiled" and whole and plain and p.numel() >= SMALL and isinstance(grid.format, FloatFormat):
        floor = floor_of(p.detach(), kappa)
        scale = torch.ones((), device=p.device) if grid.scale is None else grid.scale.reshape(())
        made = _compiled(grid.format)(velocity.view(-1), p.detach().view(-1), floor, scale, torch.tensor([lr, clip]))
        return made.view(p.shape)
    asked = (velocity * lr).abs()
    clipped = torch.where(asked > clip, clip / asked, 1.0)
    return clipped.mul_(absolute(spacing_field(p, grid, kappa=kappa), grid))


@functools.cache
def _compiled(fmt: FloatFormat) -> Callable[..., Tensor]:
    def run(velocity: Tensor, w: Tensor, floor: Tensor, scale: Tensor, found: Tensor) -> Tensor:
        lr, clip = found.unbind()
        asked = (velocity * lr).abs()
        clipped = torch.where(asked > clip, clip / asked, 1.0)
        return clipped * (spacing_units(grid_units(torch.maximum(w.abs(), floor), scale), fmt) * scale)

    ready_compiler()
    made = torch.compile(run, dynamic=True, fullgraph=True)

    def constant(*given: Any) -> Tensor:
        # A format's numbers, which would be inputs of the graph.
        with torch._dynamo.config.patch(specialize_int=True, specialize_float=True):
            return made(*given)

    return constant
