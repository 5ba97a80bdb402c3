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
from altgrad.optim.numbers import Positive, check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request, states_of
from altgrad.optim.storage import Storage
from altgrad.quantize import Grid
from altgrad.spec import Since

ADAM_STATES = ("exp_avg", "exp_avg_sq")
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWSpec(OptimizerSpec):
    """AdamW with decoupled decay."""

    kind: ClassVar[str] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    amsgrad: Annotated[bool, Since(2)] = False
    """Divide by the largest second moment so far (Reddi et al., arXiv 1904.09237)."""
    maximize: Annotated[bool, Since(2)] = False
    """Go up the gradient."""


class AdamW(Optimizer):
    """torch.optim.AdamW's trajectory (defaults as there), as a request.

    params: parameters, (name, parameter) pairs, or groups of either. storage, states, track, seed: see Optimizer.
    Raises ValueError for values out of range.
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
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        storage: Any = None,
        states: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()), seed=seed)

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ADAM_STATES + (("max_exp_avg_sq",) if group.get("amsgrad") else ())

    def check(self, group: dict[str, Any]) -> None:
        check_adam(group)

    def fuse(self, group: dict[str, Any], storage: Storage, p: Tensor, grid: Grid | None) -> FusedStep | None:
        plain = not (group["amsgrad"] or group["maximize"])
        return fused_step(storage, grid, p, 0.0, 0.0, group["states"]) if plain else None

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        return adam_request(self, group, params, grads)


def check_adam(group: Mapping[str, Any]) -> None:
    """ValueError for betas or eps out of range."""
    check_decays(group, "betas")
    if not group["eps"] >= 0:
        raise ValueError(f"eps is {group['eps']}; it must be not negative.")


def adam_request(rule: Optimizer, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Request:
    """Advance Adam's moments by these gradients, and ask for its step; lr, betas, eps and decay come from the group."""
    state, (beta1, beta2) = rule.state, group["betas"]
    if group.get("maximize"):
        grads = list(torch._foreach_neg(grads))
    for p in params:
        if "step" not in state[p]:
            state[p]["step"] = torch.zeros((), dtype=torch.float32)
    steps = [state[p]["step"] for p in params]
    means, squares = (states_of(state, name, params, grads) for name in ADAM_STATES)
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    _advance_squares(group, squares, grads, beta2)
    largest = squares
    if group.get("amsgrad"):
        largest = states_of(state, "max_exp_avg_sq", params, grads)
        torch._foreach_maximum_(largest, squares)
    rule.advanced(group, params)
    counts = [step.item() for step in steps]  # on the CPU: no device waits
    roots = torch._foreach_sqrt(largest)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, group["eps"])
    return Request(
        keep=1 - group["lr"] * group["weight_decay"],
        values=[-(group["lr"] / (1 - beta1**count)) for count in counts],
        numerators=means,
        denominators=list(roots),
        beta=beta1,
    )


def _advance_squares(group: Mapping[str, Any], squares: list[Tensor], grads: list[Tensor], beta2: float) -> None:
    """v <- b2 v + (1 - b2) g^2, in torch.optim's order, and where v is cast in torchao's."""
    cast = group["states"].get("exp_avg_sq")
    fine = [i for i, v in enumerate(squares) if cast is None or not cast.takes(v)]
    if fine:
        some, of_some = [squares[i] for i in fine], [grads[i] for i in fine]
        torch._foreach_mul_(some, beta2)
        torch._foreach_addcmul_(some, of_some, of_some, 1 - beta2)
    for i in set(range(len(squares))).difference(fine):
        squares[i].lerp_(grads[i].square(), 1 - beta2)
