"""The moving average of a weight, by which `rounding: toward_average` decides: TetraJet's Q-EMA (arXiv 2502.20853).

    a <- d a + (1 - d) w        once for each optimizer step, when its first pass shows the weight that came of the last

It begins as the weight itself, so that the first step rounds to nearest. What is committed changes between steps alone:
a forward goes by what the average is about to become, a pure function of it and of the weight. So micro-batches,
repetitions, replays and a compiled backward pass that computes the cast again all round alike, and an evaluation after
a step sees the function that the next step trains.

The sum is float64, rounded once to float32: there the products of float32 numbers are exact, so that no fused
multiply-add makes one engine's average another's. TetraJet itself goes by the average from its tenth step on only,
when with d = 0.998 it has come one fiftieth of the way. The average has no period: its authors move it after every
step, as here (`engine.py`). The period of updates that TetraJet speaks of is Q-Ramping's, an optimizer that steps the
weights which oscillate more rarely; it is a form of its own, never used together with the average.
"""

import torch
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.quantize.cast_state import CastState


class Average(CastState):
    """The average of one weight of this shape, float32 whatever the model becomes; see the head of this file."""

    committed: Tensor
    now: Tensor
    steps: Tensor
    passed_once: Tensor

    def __init__(self, shape: tuple[int, ...], decay: float) -> None:
        super().__init__()
        share = torch.tensor(1 - decay, dtype=torch.float32, device="cpu").item()
        self._kept, self._taken = 1 - share, share  # of float32 numbers, which add up to 1 exactly
        self.register_buffer("committed", torch.zeros(shape))
        self.register_buffer("now", torch.zeros(shape))
        # Whole numbers, since averages of models (torch's AveragedModel) subtract and truncate.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passed_once", torch.zeros((), dtype=torch.int64))

    def goal(self, weight: Tensor, live: bool, rows: slice = slice(None)) -> Tensor:
        """What the weight is to be rounded towards in this pass: float32, same shape. live: the pass counts.

        rows: which of its rows these are, where it is cast in slabs; no such cast counts.
        """
        weight = weight.detach().to(torch.float32)
        weight = torch.where(weight.isfinite(), weight, self.committed[rows])  # a NaN would stay for ever
        total = self.committed[rows].to(torch.float64) * self._kept + weight.to(torch.float64) * self._taken
        found = torch.where(self.steps > 0, total.to(torch.float32), weight)
        if live:
            self.now.copy_(found)
            self.passed_once.fill_(1)
        return found

    def commit(self) -> None:
        """Close an optimizer step."""
        self.committed.copy_(torch.where(self.passed_once > 0, self.now, self.committed))
        self.steps.add_(self.passed_once)
        self.passed_once.zero_()

    def reset_parameters(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()

    def passed(self) -> list[Tensor]:
        """What passes of the step leave here, to be changed in place."""
        return [self.now, self.passed_once]


def averaged(rounding: Rounding, decay: float, role: str, shape: tuple[int, ...] | None) -> Average | None:
    """What `rounding: toward_average` goes to. ValueError for what is no weight, and for one whose shape is unknown."""
    if rounding is not Rounding.toward_average:
        return None
    if role != "weight":
        raise ValueError(f"rounding: toward_average goes by the average of a weight, and this cast has role: {role}.")
    if shape is None:
        raise ValueError("rounding: toward_average keeps the average of a weight; give the weight's shape=.")
    return Average(shape, decay)
