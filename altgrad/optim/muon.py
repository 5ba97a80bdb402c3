"""Muon (Jordan et al., 2024; arXiv 2502.16982): the momentum of a matrix with its singular values near 1.

    m <- m + (1 - b) (g - m)        u = g + b (m - g)  (nesterov)  or  m        w <- (1 - lr decay) w - lr a NS(u)

NS is five steps of Newton and Schulz in bfloat16, X <- a X + (b A + c A^2) X with A = X X^T, from X = u / norm(u), the
longer axis last: singular values end between about 0.7 and 1.2. `adjust_lr_fn` makes updates of all shapes alike:
sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns)), with which AdamW's rates serve. The order of operations
is that of torch.optim.Muon, and so are the bits.

What is no matrix is stepped by AdamW, and so are matrices whose name `adam_for` matches: embeddings and heads, of which
a step changes a few rows. There the learning rate is lr `adam_rate`. Momentum and moments may be kept in a format
(`states`); 8-bit Muon (arXiv 2509.23106) is `momentum_buffer` in blocks of 2,048. The step is made from an
orthogonalised copy, so error feedback (`eco`) has nothing to put its errors into.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from altgrad.nn.names import matches
from altgrad.optim.adamw import ADAM_STATES, Beta, adam_request, check_adam
from altgrad.optim.numbers import NonNegative, Positive, check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request, states_of
from altgrad.quantize import Grid

Adjust = Literal["original", "match_rms_adamw"]
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_OTHERS = ("*embed*", "*position*", "*head*", "*classifier*")


class MuonSpec(OptimizerSpec):
    """Orthogonalised momentum for matrices, AdamW for the rest."""

    kind: ClassVar[str] = "muon"
    momentum: Beta = 0.95
    """Decay of the momentum of matrices in a step (0 to 1)."""
    nesterov: bool = True
    """Nesterov's momentum."""
    ns_coefficients: tuple[float, float, float] = _COEFFICIENTS
    """a, b and c of a Newton-Schulz step."""
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Newton-Schulz steps in one optimizer step."""
    eps: Positive = 1e-7
    """The least norm that momentum is divided by."""
    adjust_lr_fn: Adjust = "original"
    """How lr follows the shape: sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns))."""
    adam_for: tuple[Annotated[str, Field(min_length=1)], ...] = _OTHERS
    """Patterns of the names of matrices that AdamW steps."""
    adam_rate: NonNegative = 1.0
    """What lr is multiplied by where AdamW steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's decay of the first and of the second moment."""
    adam_eps: Positive = 1e-8
    """AdamW's eps, added to the root of the second moment."""


class Muon(Optimizer):
    """torch.optim.Muon's trajectory for matrices; see MuonSpec for the settings and AdamW for the arguments in common.

    Matrices that no name tells (`params` without names) are all Muon's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = _COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Adjust = "original",
        *,
        adam_for: tuple[str, ...] = _OTHERS,
        adam_rate: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        storage: Any = None,
        states: Any = None,
        track: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings(locals()), seed=seed)

    @classmethod
    def keeps(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer", *ADAM_STATES)

    def check(self, group: dict[str, Any]) -> None:
        check_adam({"betas": group["betas"], "eps": group["adam_eps"]})
        check_decays(group, "momentum")
        if group["adjust_lr_fn"] not in get_args(Adjust):
            raise ValueError(f"adjust_lr_fn is {group['adjust_lr_fn']}; choose one of {', '.join(get_args(Adjust))}.")
        if not 1 <= group["ns_steps"] < 100:
            raise ValueError(f"ns_steps is {group['ns_steps']}; it must be from 1 to 99.")

    def takes_adam(self, group: Mapping[str, Any], p: Tensor) -> bool:
        """Whether AdamW steps this parameter."""
        return p.ndim != 2 or any(matches(pattern, {self.names[p]}) for pattern in group["adam_for"])

    def alike(self, group: dict[str, Any], params: list[Tensor]) -> list[list[int]]:
        others = [self.takes_adam(group, p) for p in params]
        return [[i for i, other in enumerate(others) if other == which] for which in (False, True)]

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        if params and self.takes_adam(group, params[0]):
            own = {**group, "lr": group["lr"] * group["adam_rate"], "eps": group["adam_eps"]}
            return adam_request(self, own, params, grads)
        momentum, numerators, values = group["momentum"], [], []
        buffers = states_of(self.state, "momentum_buffer", params, grads)
        for g, buffer in zip(grads, buffers, strict=True):
            buffer.lerp_(g, 1 - momentum)  # one by one, as torch's Muon does
        self.advanced(group, params)
        for p, g, buffer in zip(params, grads, buffers, strict=True):
            update = g.lerp(buffer, momentum) if group["nesterov"] else buffer
            turned = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
            numerators.append(turned.to(g.dtype))
            values.append(-group["lr"] * shape_factor(p.shape, group["adjust_lr_fn"]))
        return Request(keep=1 - group["lr"] * group["weight_decay"], values=values, numerators=numerators)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix with its singular values near 1, bfloat16, of the same shape."""
    a, b, c = coefficients
    found = x.to(torch.bfloat16, copy=True)
    turn = x.shape[0] > x.shape[1]
    found = found.T if turn else found
    found.div_(found.norm().clamp(min=eps))
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if turn else found


def shape_factor(shape: torch.Size, adjust: Adjust) -> float:
    """What lr is multiplied by for a matrix of this shape."""
    rows, columns = shape[:2]
    return math.sqrt(max(1, rows / columns)) if adjust == "original" else 0.2 * math.sqrt(max(rows, columns))
