"""ManifoldAdamW: AdamW whose step is measured in spacings of the weight's own grid.

    requested = -lr f m_hat / (sqrt(v_hat) + eps)  (+ decoupled decay),        f = T^p / rms(T^p)

with T the stiffness of `altgrad.optim.stiffness`. p = 0 is AdamW; at p = 1 every weight is asked to move by the same
number of ulps, up to Adam's own direction. Normalising by the rms keeps the size of the tensor's step, so that a
learning rate means the same at every p. Where there is no geometry (E <= 1 with one scale, groups without a format)
f is exactly 1 and the trajectory is AdamW's bit for bit. `normalise: none` leaves f = S^p, S in the weight's units:
then tensors with wider spacings take longer steps, too, and lr counts spacings.

Where S enters decides what it does (`precondition`):

    update               f on the step, after the moments: the meaningful one, and the default
    gradient             g S before the moments, S = T^p in the weight's units: the original formula. Adam divides it
                         out again; what is left is eps (a step shrinks by r/(1 + r), r = g S / eps), the moments'
                         memory of an older S, and near-frozen zeros
    gradient_normalised  g f before the moments: the same without the eps artefact
    both                 g f before the moments and f on the step
    off                  AdamW

Relatives: natural gradient in the code index (mirror descent with Hessian 1/S), Madam (arXiv 2006.14560).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.optim.adamw import ADAM_STATES, Beta, adam_request, check_adam
from altgrad.optim.fused import FusedStep, fused_step
from altgrad.optim.numbers import NonNegative, Positive
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request
from altgrad.optim.stiffness import (
    Normalise,
    Stiffness,
    absolute,
    factor,
    permutation,
    spacing_field,
    stiffness_of,
)  # fmt: skip
from altgrad.optim.storage import Storage
from altgrad.quantize import Grid
from altgrad.quantize.noise import site_key

Precondition = Literal["off", "gradient", "gradient_normalised", "update", "both"]
_KAPPA = 2.0**-6


class ManifoldAdamWSpec(OptimizerSpec):
    """AdamW with steps in spacings of the weight's own grid."""

    kind: ClassVar[str] = "manifold_adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    precondition: Precondition = "update"
    """What is taken in spacings: the update, the gradient (as it is or normalised), both, or nothing."""
    power: Annotated[float, Field(ge=0, le=1)] = 1.0
    """p: 0 is AdamW, 1 whole spacings."""
    kappa: NonNegative = _KAPPA
    """Floor on |w|, as a share of the tensor's rms: lets weights cross zero."""
    stiffness: Stiffness = "own"
    """own, smooth, constant, shuffled, reshuffled, or the name of another format."""
    normalise: Normalise = "rms"
    """Which mean of the spacings becomes 1, so that lr keeps its meaning; none: spacings as they are."""
    track: bool = False
    """Keep every weight's rung and its travel, and counts of flips and updates, in the optimizer's state."""


class ManifoldAdamW(Optimizer):
    """The rule at the head of the file; see ManifoldAdamWSpec for its settings and AdamW for the arguments in common.

    format: short for storage {kind: master, format: ...}, the grid of float32 weights in a plain training loop.
    """

    has_momentum = "betas"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        precondition: Precondition = "update",
        power: float = 1.0,
        kappa: float = _KAPPA,
        stiffness: str | NumberFormat = "own",
        normalise: Normalise = "rms",
        format: str | NumberFormat | None = None,
        storage: Any = None,
        states: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        if format is not None and storage is not None:
            raise ValueError("ManifoldAdamW: format is short for a master storage; name it in storage alone.")
        stiffness = str(stiffness)
        if format is not None:
            storage = {"kind": "master", "format": str(format)}
        given = settings(locals())
        del given["format"]
        self._permutations: dict[Tensor, Tensor] = {}
        super().__init__(params, given, seed=seed)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Permutations are found again when they are asked for."""
        super().__setstate__(state)
        self._permutations = {}

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ADAM_STATES

    def check(self, group: dict[str, Any]) -> None:
        check_adam(group)
        if group["precondition"] not in get_args(Precondition):
            raise ValueError(
                f"precondition is {group['precondition']}; choose one of {', '.join(get_args(Precondition))}."
            )
        if group["normalise"] not in get_args(Normalise):
            raise ValueError(f"normalise is {group['normalise']}; choose {', '.join(get_args(Normalise))}.")
        if not 0 <= group["power"] <= 1:
            raise ValueError(f"power is {group['power']}; it must be in [0, 1].")
        if not 0 <= group["kappa"] < float("inf"):
            raise ValueError(f"kappa is {group['kappa']}; it must be not negative and finite.")
        stiffness_of(group["stiffness"])

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        mode = group["precondition"]
        if mode == "off" or group["power"] == 0:
            return adam_request(self, group, params, grads)
        if mode == "gradient":
            scaled = [
                g if grid is None else g * absolute(self._field(group, p, grid), grid).pow(group["power"])
                for g, p, grid in zip(grads, params, grids, strict=True)
            ]
            return adam_request(self, group, params, scaled)
        factors = [
            None if grid is None else self._factor(group, p, grid) for p, grid in zip(params, grids, strict=True)
        ]
        if mode in ("gradient_normalised", "both"):
            grads = [g if f is None else g * f for g, f in zip(grads, factors, strict=True)]
        request = adam_request(self, group, params, grads)
        if mode == "gradient_normalised" or all(f is None for f in factors):
            return request
        whole = [torch.ones_like(g) if f is None else f for g, f in zip(grads, factors, strict=True)]
        return replace(request, factors=whole)

    def fuse(self, group: dict[str, Any], storage: Storage, p: Tensor, grid: Grid | None) -> FusedStep | None:
        if group["precondition"] == "off" or group["power"] == 0:
            return fused_step(storage, grid, p, 0.0, 0.0, group["states"])
        plain = group["precondition"] == "update" and group["stiffness"] == "own" and group["normalise"] == "rms"
        return fused_step(storage, grid, p, group["power"], group["kappa"], group["states"]) if plain else None

    def _factor(self, group: dict[str, Any], p: Tensor, grid: Grid) -> Tensor:
        """f for one parameter."""
        field = self._field(group, p, grid)
        if group["normalise"] == "none":
            return absolute(field, grid).pow(group["power"])
        return factor(field, group["power"], group["normalise"])

    def _field(self, group: dict[str, Any], p: Tensor, grid: Grid) -> Tensor:
        """T for one parameter."""
        kind = stiffness_of(group["stiffness"])
        if kind not in ("shuffled", "reshuffled"):
            return spacing_field(p, grid, stiffness=kind, kappa=group["kappa"])
        own = spacing_field(p, grid, kappa=group["kappa"])
        key = site_key(self.seed, f"{self.names[p]}/stiffness")
        if kind == "reshuffled":
            step = self.state[p].get("step", torch.zeros(())).to(torch.int64)
            return own.flatten()[permutation(own, key, step)].view(own.shape)
        if p not in self._permutations:
            self._permutations[p] = permutation(own, key)
        return own.flatten()[self._permutations[p]].view(own.shape)
