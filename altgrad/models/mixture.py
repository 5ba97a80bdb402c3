"""A mixture of experts: each token passes a few of many gated MLPs, those that a router chooses (arXiv 2101.03961).

    p = softmax(router(x))           float32, also under autocast (ST-MoE, arXiv 2202.08906)
    y = sum of w_e down_e(act(gate_e(x)) * up_e(x)) over the k experts of largest p, w their p divided by its sum

as in Mixtral (arXiv 2401.04088) and Qwen3. Every token keeps its experts: there is no capacity, and nothing is dropped.
No loss balances the experts; a run of the length that is trained here shows how far they part.

Tokens are sorted by expert, so that the three products are those of `altgrad.nn.experts`, and come back in their own
order before they are weighed and added: by no `index_add`, whose sums differ from call to call on a GPU.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from altgrad.nn.experts import StackedLinear, sorted_by_expert

__all__ = ["Experts", "routed"]


def routed(x: Tensor, router: nn.Linear, active: int) -> tuple[Tensor, Tensor]:
    """The weights, float32, and the numbers of the `active` experts of each token, `[tokens, active]`.

    x: `[tokens, width]`. Of experts with one probability, torch's `topk` decides.
    """
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        shares = router(x.to(router.weight.dtype)).softmax(dim=-1, dtype=torch.float32)
    weights, chosen = shares.topk(active, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), chosen


class Experts(nn.Module):
    """The experts' gated MLPs as three stacks: `gate`, `up`, `down`, each with a weight `[experts, out, in]`."""

    def __init__(self, experts: int, width: int, inner: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate = StackedLinear(experts, width, inner)
        self.up = StackedLinear(experts, width, inner)
        self.down = StackedLinear(experts, inner, width)
        self.activation = activation

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`[tokens, width]` to the same; weights and chosen as `routed` gives them."""
        sent, counts, back = sorted_by_expert(x, chosen, len(self.gate.weight))
        hidden = self.activation(self.gate(sent, counts)) * self.up(sent, counts)
        made = self.down(hidden, counts)[back].view(*chosen.shape, -1)
        mixed: Tensor = (made * weights.unsqueeze(-1)).sum(dim=1).to(made.dtype)
        return mixed
