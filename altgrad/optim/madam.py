"""Madam: multiplicative Adam (Bernstein et al., arXiv 2006.14560), the baseline whose steps are relative by design.

    v <- .999 v + .001 g^2        w <- w exp(-lr sign(w) clip(g / sqrt(v_hat), +-10)),        0/0 -> 0

v_hat is v with its bias corrected; there is no momentum; |w| stays at most 3 rms(w0). On a logarithmic number system
its steps are whole multiples of the spacing, which is why it belongs beside manifold-aware updates. Signs never change
and zeros never move: `zero_weights` counts those. Decay, if any, is decoupled.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from altgrad.optim.numbers import LearningRate, Positive, check_decays
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, settings
from altgrad.optim.request import Request
from altgrad.quantize import Grid
from altgrad.quantize.engine import SMALL, ready_compiler


class MadamSpec(OptimizerSpec):
    """Multiplicative Adam."""

    kind: ClassVar[str] = "madam"
    lr: LearningRate = 1e-2
    """Peak learning rate, of relative steps."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the second moment in a step (0 to 1)."""
    clip: Positive = 10.0
    """The largest normalised gradient."""
    bound: Positive = 3.0
    """The largest magnitude a weight may have, as a multiple of the tensor's first rms."""


class Madam(Optimizer):
    """The rule at the head of the file. See AdamW for the arguments in common."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta: float = 0.999,
        clip: float = 10.0,
        bound: float = 3.0,
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
        return ("exp_avg_sq",)

    def check(self, group: dict[str, Any]) -> None:
        check_decays(group, "beta")
        for name in ("clip", "bound"):
            if not group[name] > 0:
                raise ValueError(f"{name} is {group[name]}; it must be above 0.")

    def request(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], grids: list[Grid | None]
    ) -> Request:
        changes = []
        for p, g in zip(params, grads, strict=True):
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=g.dtype)
                state["limit"] = group["bound"] * p.to(torch.float64).square().mean().sqrt().to(torch.float32)
            state["step"] += 1
            square = state["exp_avg_sq"].mul_(group["beta"]).addcmul_(g, g, value=1 - group["beta"])
            self.advanced(group, [p])
            root = (square / (1 - group["beta"] ** state["step"].item())).sqrt_()
            flat = p.is_contiguous() and g.is_contiguous() and p.dtype == g.dtype == torch.float32
            if self.engine == "compiled" and flat and p.numel() >= SMALL:
                numbers = torch.tensor([-group["lr"], -group["clip"], group["clip"]])
                asked = _compiled(_exponent)(p.detach().view(-1), g.view(-1), root.view(-1), numbers)
                changes.append(_compiled(_change)(p.detach().view(-1), asked.expm1_(), state["limit"]).view(p.shape))
                continue
            ratio = g / root
            changes.append(madam_change(p, ratio, group["lr"], group["clip"], state["limit"]))
        return Request(keep=1 - group["lr"] * group["weight_decay"], values=[1.0] * len(params), numerators=changes)

    def zero_weights(self) -> int:
        """How many weights are exactly 0, and so will never move."""
        counts = [torch.count_nonzero(p == 0) for group in self.param_groups for p in group["params"]]
        return int(torch.stack(counts).sum()) if counts else 0


def madam_change(w: Tensor, ratio: Tensor, lr: float, clip: float, limit: Tensor) -> Tensor:
    """What w changes by: w expm1(-lr sign(w) clip(ratio)), so that |w| ends at most at `limit`; NaN counts 0."""
    exponent = ratio.nan_to_num(nan=0.0).clamp(-clip, clip) * w.sign() * -lr
    return _change(w, exponent.expm1(), limit)


def _change(w: Tensor, relative: Tensor, limit: Tensor) -> Tensor:
    wanted = w + w * relative
    return torch.where(wanted.abs() > limit, limit.copysign(w), wanted) - w


def _exponent(w: Tensor, g: Tensor, root: Tensor, numbers: Tensor) -> Tensor:
    rate, low, high = numbers.unbind()
    return (g / root).nan_to_num(nan=0.0).clamp(low, high) * w.sign() * rate


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Everything but sqrt and expm1, whose last bits are others in a graph."""
    ready_compiler()
    made: Callable[..., Tensor] = torch.compile(function, dynamic=True, fullgraph=True)
    return made
