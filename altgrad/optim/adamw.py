"""AdamW (Loshchilov & Hutter, arXiv 1711.05101), in torch.optim's order of operations.

    m <- m + (1 - b1) (g - m)        v <- b2 v + (1 - b2) g^2
    w <- (1 - lr decay) w - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

The same bits as torch.optim.AdamW, which the tests check step by step: a reference arm must not differ from what
everybody else calls AdamW. State has torch's names and shapes, so checkpoints move both ways.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.optim.optimizer import Optimizer, OptimizerSpec, Request

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWSpec(OptimizerSpec):
    """AdamW with decoupled decay."""

    kind: ClassVar[str] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: Iterable[dict[str, Any]]) -> "AdamW":
        """See OptimizerSpec."""
        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


class AdamW(Optimizer):
    """torch.optim.AdamW's trajectory (defaults as there), as a request.

    params: parameters, (name, parameter) pairs, or groups of either. Raises ValueError for values out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        for name, value, good in (
            ("lr", lr, lr >= 0),
            ("betas", betas, all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, eps >= 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
        ):
            if not good:
                limit = "both in [0, 1)" if name == "betas" else "not negative"
                raise ValueError(f"AdamW: {name} is {value}; it must be {limit}.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def request(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Request:
        """See Optimizer."""
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        steps = [self.state[p]["step"] for p in params]
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
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
        )
