"""An optimizer of your own, whose weights AltGrad stores in 8 bits: what the rule makes of a weight is its request."""

from collections.abc import Callable

import torch
from torch import nn

from altgrad.optim import stored


class SignMomentum(torch.optim.Optimizer):
    """Steps of one size along the sign of the averaged gradient (Signum, arXiv 1802.04434)."""

    def __init__(self, params: object, lr: float = 1e-2, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    average = state.setdefault("average", torch.zeros_like(weight))
                    average.lerp_(weight.grad, 1 - group["beta"])
                    weight.sub_(average.sign(), alpha=group["lr"])


torch.manual_seed(0)
model = nn.Linear(16, 16)
rule = SignMomentum(model.parameters())
optimizer = stored(rule, {"kind": "stochastic", "format": "e4m3fn"}, named=model.named_parameters())
x = torch.randn(64, 16)
for _ in range(30):
    loss = (model(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss {loss:.3f}; different values in the weight: {model.weight.unique().numel()} of at most 253")
