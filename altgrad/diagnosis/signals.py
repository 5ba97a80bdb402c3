"""What real gradients tell the stall oracle: how much of one persists, for how long, how large, and how often it is 0.

A rehearsal draws gradients instead of computing them (`altgrad.diagnosis.oracle`). Twenty steps of real training say
what to draw: of every element its rms and how often anything comes in; of every parameter the share c of its gradients
that persists from step to step, and the share a of that which is left a step later. c and a come from the correlation
of gradients at distances of one and two steps and of half the steps, every element in units of its own rms: right for a
signal of lasting sign, low for one whose own size varies, which the rms takes up.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altgrad.data.dataset import Dataset
from altgrad.nn import commit
from altgrad.optim import make_dense
from altgrad.progress import progress
from altgrad.quantize import StackedCasts
from altgrad.training import RunSpec
from altgrad.training.micro_batches import MicroBatches
from altgrad.training.state import TrainState

CALIBRATION_STEPS = 20
_ROWS_OF = 1 << 12  # elements of a parameter that are rehearsed


@dataclass(frozen=True)
class Signal:
    """What 20 steps say of one parameter's gradients.

    persistent: c, in [0, 1]. memory: a, the share of the persistent part that is left a step later. rms, presence: of
    each element of the parameter, its root mean square where it is not 0 and how often it is not. sizes: of each step,
    the rms of the whole gradient over that of all steps; what comes later is taken for as large as the last quarter.
    """

    persistent: float
    memory: float
    rms: Tensor
    presence: Tensor
    sizes: Sequence[float]

    def size(self, step: int) -> float:
        """The size of the gradient of a step counted from 0."""
        if step < len(self.sizes):
            return self.sizes[step]
        last = self.sizes[-max(1, len(self.sizes) // 4) :]
        return math.sqrt(sum(size * size for size in last) / len(last))


def calibrate(spec: RunSpec, dataset: Dataset, steps: int = CALIBRATION_STEPS) -> dict[str, Signal]:
    """The signals of a fresh model's gradients, from its first steps as the spec trains it; nothing is written."""
    state = TrainState.build(spec, dataset, torch.device("cpu"))
    seen: dict[str, _Record] = {}
    for step, _ in enumerate(train_steps(spec, dataset, state, steps)):
        progress("taking steps to see what gradients are like", step, steps)
        for name, p in state.model.named_parameters():
            if p.grad is not None:
                seen.setdefault(name, _Record(p)).add(p.grad)
    return {name: record.signal() for name, record in seen.items()}


def train_steps(spec: RunSpec, dataset: Dataset, state: TrainState, steps: int) -> Iterator[float]:
    """Train without a store, as `altgrad.training.loop` does; yields each step's loss before its update."""
    micro_batches, device = MicroBatches(spec, dataset), next(state.model.parameters()).device
    state.model.train()
    for step in range(steps):
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * spec.schedule.at(min(step, spec.steps), spec.steps)
        total = 0.0
        for micro in range(spec.accumulate):
            loss, _ = micro_batches.loss(step, micro, state.model, device)
            torch.autograd.backward(micro_batches.scaled(loss))
            total += float(loss.detach())
        make_dense(state.model.parameters())
        micro_batches.unscale(p.grad for p in state.model.parameters() if p.grad is not None)
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), spec.clip_norm)
        yield total
        state.optimizer.step()
        state.optimizer.zero_grad()
        commit(state.model)


class _Record:
    """What is kept of one parameter's gradients: sums over all of it, and some rows step by step."""

    def __init__(self, p: Tensor) -> None:
        self._rows = rehearsed_rows(p, None)
        self._energy, self._present = torch.zeros_like(p), torch.zeros_like(p)
        self._steps: list[Tensor] = []
        self._sizes: list[float] = []

    def add(self, gradient: Tensor) -> None:
        """Count one step's gradient."""
        self._energy += gradient.square()
        self._present += gradient != 0
        self._sizes.append(float(gradient.square().mean()))
        self._steps.append(take_rows(gradient, self._rows).clone())

    def signal(self) -> Signal:
        rms = (self._energy / self._present.clamp(min=1)).sqrt()
        persistent, memory = persistence(torch.stack(self._steps))
        mean = sum(self._sizes) / len(self._sizes)
        sizes = [math.sqrt(size / mean) if mean > 0 else 1.0 for size in self._sizes]
        return Signal(persistent, memory, rms, self._present / len(self._steps), sizes)


def persistence(gradients: Tensor) -> tuple[float, float]:
    """c and a of the gradients of consecutive steps, [steps, ...]: see Signal.

    c is the correlation at a distance of one and two steps, a what is left of it at half the steps.
    """
    g = gradients.double()
    count = g.shape[0]
    rms = g.square().mean(0).sqrt()
    unit = torch.where(rms > 0, g / torch.where(rms > 0, rms, 1.0), 0.0).flatten(1)
    energy = unit.square().mean()

    def correlation(lags: range) -> float:
        found = [float((unit[lag:] * unit[:-lag]).mean() / energy) for lag in lags if 0 < lag < count]
        return sum(found) / len(found) if found and float(energy) else 0.0

    near, far = correlation(range(1, 3)), correlation(range(count // 2 - 1, count // 2 + 2))
    near = min(max(near, 0.0), 1.0)
    memory = min(max(far, 1e-6) / near, 1.0) ** (1 / max(1.0, count / 2 - 1.5)) if near > 0 else 0.0
    return near, memory


_OF_AMAX = ("current", "delayed", "unscaled", "fixed")


def rehearsed_rows(p: Tensor, quantizer: Any) -> Tensor | None:
    """Rows spread over the parameter, that of its amax among them, so that it has the whole's scale; None for all."""
    whole = quantizer is not None and getattr(quantizer.spec.scaling, "granularity", "tensor") != "tensor"
    whole = whole or isinstance(quantizer, StackedCasts)
    whole = whole or (quantizer is not None and quantizer.spec.scaling.kind not in _OF_AMAX)
    if p.ndim < 2 or whole or p.numel() <= _ROWS_OF:
        return None
    wanted = max(2, _ROWS_OF * p.shape[0] // p.numel())
    spread = torch.arange(wanted) * p.shape[0] // wanted
    top = int(p.detach().abs().flatten(1).amax(1).argmax())
    return torch.tensor(sorted({*spread.tolist(), top}))


def take_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Those rows; all of x for None."""
    return x if rows is None else x[rows]
