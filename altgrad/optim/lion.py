"""Lion (Chen et al., arXiv 2302.06675): the sign of an average of gradients.

    w <- (1 - lr decay) w - lr sign(b1 m + (1 - b1) g)        m <- b2 m + (1 - b2) g

Every weight is asked to move by lr, so that in storage on a grid a step either reaches the next value of a binade or is
lost in all of it (`nearest`). Decay is decoupled. There is one state, `exp_avg`; the step sees its sign alone, so error
feedback (`eco`) has nothing to put its errors into.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from altgrad.optim.adamw import Beta
from altgrad.optim.numbers import LearningRate, check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request, states_of
from altgrad.quantize import Grid


class LionSpec(OptimizerSpec):
    """The sign of an average of gradients."""

    kind: ClassVar[str] = "lion"
    lr: LearningRate = 1e-4
    """Peak learning rate: how far every weight is asked to move in a step."""
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """What of the average goes into the step, and how much of it is kept."""


class Lion(Optimizer):
    """The rule at the head of the file. See AdamW for the arguments in common."""

    takes_shards = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        storage: Any = None,
        states: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()), seed=seed)

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def check(self, group: dict[str, Any]) -> None:
        check_decays(group, "betas")

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        beta1, beta2 = group["betas"]
        means = states_of(self.state, "exp_avg", params, grads)
        signs = torch._foreach_mul(means, beta1)
        torch._foreach_add_(signs, grads, alpha=1 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(means, beta2)
        torch._foreach_add_(means, grads, alpha=1 - beta2)
        self.advanced(group, params)
        keep = 1 - group["lr"] * group["weight_decay"]
        return Request(keep=keep, values=[-group["lr"]] * len(params), numerators=list(signs))
