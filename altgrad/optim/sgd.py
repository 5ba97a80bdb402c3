"""SGD with momentum, in torch.optim's order of operations, bit for bit.

    g <- g + decay w        m <- momentum m + g  (m = g at the first step)        w <- w - lr m

Decay is torch's: part of the gradient. Nesterov's variant steps by g + momentum m.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.optim.numbers import check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request
from altgrad.quantize import Grid


class SGDSpec(OptimizerSpec):
    """Stochastic gradient descent; its decay is added to the gradient, as torch's is."""

    kind: ClassVar[str] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the momentum in a step (0 to 1); 0: no momentum."""
    nesterov: bool = False
    """Nesterov's momentum."""

    @model_validator(mode="after")
    def _agree(self) -> "SGDSpec":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; set momentum: 0.9, or nesterov: false.")
        return self


class SGD(Optimizer):
    """torch.optim.SGD's trajectory without dampening (defaults as there). See AdamW for the arguments in common."""

    has_momentum = "momentum"
    takes_sparse = True
    takes_shards = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        storage: Any = None,
        states: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()), seed=seed)

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def check(self, group: dict[str, Any]) -> None:
        check_decays(group, "momentum")
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov needs momentum above 0.")

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        momentum, decay = group["momentum"], group["weight_decay"]
        if decay:
            weights = [p.to(g.dtype) for p, g in zip(params, grads, strict=True)]
            grads = list(torch._foreach_add(grads, weights, alpha=decay))
        beta = None
        if momentum:
            grads, beta = self._advance(group, params, grads)
        return Request(keep=1.0, values=[-group["lr"]] * len(params), numerators=grads, beta=beta)

    def _advance(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> tuple[list[Tensor], float | None]:
        """The step's numerators, and the decay of the buffers if they are those."""
        momentum = group["momentum"]
        new = [i for i, p in enumerate(params) if "momentum_buffer" not in self.state[p]]
        for i in new:
            self.state[params[i]]["momentum_buffer"] = grads[i].clone()
        old = sorted(set(range(len(params))) - set(new))
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        if old:
            advanced = [buffers[i] for i in old]
            torch._foreach_mul_(advanced, momentum)
            torch._foreach_add_(advanced, [grads[i] for i in old])
        self.advanced(group, params)
        if group["nesterov"]:
            return list(torch._foreach_add(grads, buffers, alpha=momentum)), None
        return buffers, momentum
