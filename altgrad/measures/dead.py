"""Units that do nothing: output features without output, and rows of a weight without gradient, over a window.

    dead        the feature is exactly 0 for every token of the window
    dormant     its mean |activation| is at most tau = 0.025 of the layer's mean
                (Sokar et al., arXiv 2302.12902, definition 3.1)
    grad-dead   its row of the weight's gradient is exactly 0 in every gradient of the window

A feature that is alive before its cast and dead after it was killed by the format, so both are asked. A window is any
number of batches: masks are joined by `|`, sums added up. NaN is not 0, so it keeps a unit alive; with a NaN in the
layer's mean nothing is known to be dormant, and the share is NaN. A window without a token has no dead unit: NaN.
"""

import torch
from torch import Tensor

from altgrad.measures.share import share

TAU = 0.025
"""Share of the layer's mean activation at which a unit counts as dormant."""


def alive_features(activation: Tensor) -> Tensor:
    """Which features are other than 0 for at least one token: bool [features]; activation: [..., features]."""
    return (_tokens(activation) != 0).any(dim=0)


def alive_rows(gradient: Tensor) -> Tensor:
    """Which rows of a gradient [rows, ...] hold something other than 0: bool [rows]; of a vector, which elements."""
    return (gradient != 0).reshape(gradient.shape[0], gradient.shape[1:].numel()).any(dim=1)


def dead_share(alive: Tensor, observed: Tensor) -> Tensor:
    """Share of `alive` that is False: a float64 scalar.

    observed: how many tokens (or gradients) the window held, a scalar tensor; NaN where it is 0, or alive is empty.
    """
    units = torch.full((), alive.numel(), device=alive.device)
    return torch.where(observed > 0, share(torch.count_nonzero(~alive), units), torch.nan)


def activation_sums(activation: Tensor) -> dict[str, Tensor]:
    """magnitude, the sum of |activation| by feature (float64 [features]), and tokens (int64 scalar)."""
    rows = _tokens(activation.detach())
    tokens = torch.full((), rows.shape[0], dtype=torch.int64, device=rows.device)
    return {"magnitude": rows.abs().sum(dim=0, dtype=torch.float64), "tokens": tokens}


def dormant_share(magnitude: Tensor, tokens: Tensor, tau: float = TAU) -> Tensor:
    """Share of features with a mean |activation| <= tau times the layer's, from added-up `activation_sums`.

    A float64 scalar; 1 for a layer of zeros; NaN without a token or a feature, or where a sum is not finite.
    """
    units = torch.full((), magnitude.numel(), device=magnitude.device)
    layer = share(magnitude.sum(), units)
    found = share(torch.count_nonzero(magnitude <= tau * layer), units)
    return torch.where((tokens > 0) & layer.isfinite(), found, torch.nan)


def _tokens(activation: Tensor) -> Tensor:
    """[tokens, features]; by explicit sizes, since -1 has no answer for an empty tensor."""
    return activation.reshape(activation.shape[:-1].numel(), activation.shape[-1])
