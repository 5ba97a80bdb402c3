"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), in torch.optim's order of operations.

    m <- m + (1 - b1) (g - m)        v <- b2 v + (1 - b2) g^2
    w <- (1 - lr decay) w - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

The same bits as torch.optim.AdamW, which the tests check step by step: a reference arm must not differ from what
everybody else calls AdamW. State has torch's names and shapes, so checkpoints move both ways.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.optim.fused import FusedStep, fused_step
from altgrad.optim.numbers import Positive
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request
from altgrad.optim.storage import Storage
from altgrad.quantize import Grid

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWSpec(OptimizerSpec):
    """AdamW with decoupled decay."""

    kind: ClassVar[str] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""


class AdamW(Optimizer):
    """torch.optim.AdamW's trajectory (defaults as there), as a request.

    params: parameters, (name, parameter) pairs, or groups of either. storage, track, seed: see Optimizer. Raises
    ValueError for values out of range.
    """

    has_momentum = "betas"
    takes_shards = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        storage: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()), seed=seed)

    def check(self, group: dict[str, Any]) -> None:
        check_adam(group)

    def fuse(self, group: dict[str, Any], storage: Storage, p: Tensor, grid: Grid | None) -> FusedStep | None:
        return fused_step(storage, grid, p, 0.0, 0.0)

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        return adam_request(self.state, group, params, grads)


def check_adam(group: Mapping[str, Any]) -> None:
    """ValueError for betas or eps out of range."""
    betas, eps = group["betas"], group["eps"]
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas}; it must be both in [0, 1).")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it must be not negative.")


def adam_request(
    state: Mapping[Tensor, dict[str, Any]], group: Mapping[str, Any], params: list[Tensor], grads: list[Tensor]
) -> Request:
    """Advance Adam's moments by these gradients, and ask for its step; lr, betas, eps and decay come from the group."""
    beta1, beta2 = group["betas"]
    for p, g in zip(params, grads, strict=True):
        if "step" not in state[p]:
            state[p]["step"] = torch.zeros((), dtype=torch.float32)
            state[p]["exp_avg"] = torch.zeros_like(p, dtype=g.dtype)
            state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=g.dtype)
    steps = [state[p]["step"] for p in params]
    means = [state[p]["exp_avg"] for p in params]
    squares = [state[p]["exp_avg_sq"] for p in params]
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    counts = [step.item() for step in steps]  # on the CPU: no device waits
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, group["eps"])
    return Request(
        keep=1 - group["lr"] * group["weight_decay"],
        values=[-(group["lr"] / (1 - beta1**count)) for count in counts],
        numerators=means,
        denominators=list(roots),
        beta=beta1,
    )
