"""How often weights will move, before training: a rehearsal of the optimizer and the storage without the model.

The move rate of a parameter is the share of the requested changes that change its code: 1 - stall ratio. It follows
from three things: the weights and their grid (what a gap is, in which direction: SCIENCE 4's laws), the learning rate
over the run, and the distribution of the optimizer's steps in units of it. The first two are known before training. The
third is for Adam nearly a matter of statistics alone, for its step m / sqrt(v) does not depend on the gradient's size.

So nothing is approximated by a formula where the thing itself can be run: the spec's own optimizer and storage take the
steps of its own schedule, on rows of its own initial weights, with gradients drawn instead of computed:

    white         g ~ N(0, 1), new at each step: what remains of a gradient when batches share no signal
    calibrated    g = rms_i (sqrt(c) mu_t + sqrt(1 - c) n_t), or 0 where nothing comes in; mu_t = a mu_{t-1} + ...

c and a, the share of a gradient that persists and how long, each element's rms and how often it is not 0 come from 20
steps of real training. A signal makes Adam's steps up to four times as long as noise does (|u| near 1 instead of 0.23),
which is what calibration is for; docs/ORACLE.md has both beside measured runs. Not modelled: clipping by norm, and how
the signal dies out later than in those 20 steps.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.measures import stall_counts
from altgrad.nn import commit, weight_quantizers
from altgrad.optim import Optimizer, Update, parameter_groups
from altgrad.training import RunSpec
from altgrad.training.state import TrainState

CALIBRATION_STEPS = 20
_ROWS_OF = 1 << 13  # elements of a parameter that are rehearsed


class Moves:
    """Counts attempted changes and stalls by parameter: an observer of an Optimizer that is `watching`."""

    def __init__(self) -> None:
        self.attempted: dict[str, int] = {}
        self.moved: dict[str, int] = {}

    def __call__(self, update: Update) -> None:
        """Count one update; a parameter without a grid has no code that could change."""
        if update.grid is None:
            return
        start = update.before if update.moved is None else update.moved
        grid = update.grid
        counts = stall_counts(start, update.after, update.requested, grid.format, scale=grid.scale)
        tried, stalls = int(counts["attempted"]), int(counts["stalls"])
        self.attempted[update.name] = self.attempted.get(update.name, 0) + tried
        self.moved[update.name] = self.moved.get(update.name, 0) + tried - stalls

    def rates(self) -> dict[str, float]:
        """Moves over attempts by parameter; NaN where none was attempted."""
        return {name: self.moved[name] / tried if tried else math.nan for name, tried in self.attempted.items()}


@dataclass(frozen=True)
class Signal:
    """What 20 steps say of one parameter's gradients.

    persistent: c, in [0, 1]. memory: a, the share of the persistent part that is left a step later. rms, presence: of
    each element of the parameter, its root mean square where it is not 0 and how often it is not.
    """

    persistent: float
    memory: float
    rms: Tensor
    presence: Tensor


@dataclass(frozen=True)
class Forecast:
    """Expected move rate over the steps rehearsed, by parameter, and over all of them by their size."""

    rates: Mapping[str, float]
    overall: float
    steps: int
    calibrated: bool


def rehearse(
    spec: RunSpec,
    model: nn.Module,
    *,
    steps: int,
    lr_factor: float = 1.0,
    signals: Mapping[str, Signal] | None = None,
) -> Forecast:
    """The move rates of the first `steps` steps of this spec from the model's weights, which stay as they are.

    model: as the spec builds it. lr_factor multiplies every learning rate. signals: from `calibrate`; None for white
    gradients. LocatedError for groups and storage rules that decide nothing.
    """
    optimizer, sampled = _sample(spec, model)
    moves = Moves()
    optimizer.watching = True
    optimizer.observers.append(moves)
    drawn = _gradients(spec.seed, sampled, signals)
    for step in range(steps):
        factor = spec.schedule.at(min(step, spec.steps), spec.steps) * lr_factor
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for name, gradient in next(drawn).items():
            sampled[name].weight.grad = gradient
        optimizer.step()
    rates = moves.rates()
    known = {name: rate for name, rate in rates.items() if not math.isnan(rate)}
    whole = sum(sampled[name].size for name in known)
    overall = sum(rate * sampled[name].size for name, rate in known.items()) / whole if whole else math.nan
    return Forecast(rates, overall, steps, signals is not None)


def smallest_lr(
    spec: RunSpec, model: nn.Module, target: float, *, steps: int, signals: Mapping[str, Signal] | None = None
) -> float | None:
    """The smallest peak learning rate, to 5 %, whose expected overall move rate reaches `target`; None below 2^20 lr.

    ValueError for a target outside (0, 1).
    """
    if not 0 < target < 1:
        raise ValueError(f"target {target}; a move rate to reach lies between 0 and 1, such as 0.01.")

    def reaches(exponent: float) -> bool:
        found = rehearse(spec, model, steps=steps, lr_factor=2.0**exponent, signals=signals)
        return found.overall >= target

    low, high = -20.0, 20.0
    if spec.optimizer.lr == 0 or not reaches(high):
        return None
    while high - low > math.log2(1.05):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return spec.optimizer.lr * 2.0**high


def calibrate(spec: RunSpec, dataset: Dataset, steps: int = CALIBRATION_STEPS) -> dict[str, Signal]:
    """The signals of a fresh model's gradients, from its first steps as the spec trains it; nothing is written."""
    state = TrainState.build(spec, dataset, torch.device("cpu"))
    seen: dict[str, _Record] = {}
    for _ in train_steps(spec, dataset, state, steps):
        for name, p in state.model.named_parameters():
            if p.grad is not None:
                seen.setdefault(name, _Record(p)).add(p.grad)
    return {name: record.signal() for name, record in seen.items()}


def train_steps(spec: RunSpec, dataset: Dataset, state: TrainState, steps: int) -> Iterator[float]:
    """Train without a store, as `altgrad.training.loop` does; yields each step's loss after backward, before the update."""
    state.model.train()
    for step in range(steps):
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * spec.schedule.at(min(step, spec.steps), spec.steps)
        total = 0.0
        for micro in range(spec.accumulate):
            batch = dataset.batch(step * spec.accumulate + micro)
            loss = dataset.loss(state.model(batch.inputs), batch) / spec.accumulate
            torch.autograd.backward(loss)
            total += float(loss.detach())
        if spec.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), spec.clip_norm)
        yield total
        state.optimizer.step()
        state.optimizer.zero_grad()
        commit(state.model)


class _Record:
    """What is kept of one parameter's gradients: sums over all of it, and some rows step by step."""

    def __init__(self, p: Tensor) -> None:
        self._rows = _rows(p, None)
        self._energy, self._present = torch.zeros_like(p), torch.zeros_like(p)
        self._steps: list[Tensor] = []

    def add(self, gradient: Tensor) -> None:
        """Count one step's gradient."""
        self._energy += gradient.square()
        self._present += gradient != 0
        self._steps.append(_take(gradient, self._rows).clone())

    def signal(self) -> Signal:
        """See Signal."""
        rms = (self._energy / self._present.clamp(min=1)).sqrt()
        persistent, memory = persistence(torch.stack(self._steps))
        return Signal(persistent, memory, rms, self._present / len(self._steps))


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


@dataclass(frozen=True)
class _Sampled:
    """Rows of a parameter that are rehearsed for the whole of it, which has `size` elements."""

    weight: nn.Parameter
    rows: Tensor | None
    size: int


def _sample(spec: RunSpec, model: nn.Module) -> tuple[Optimizer, dict[str, _Sampled]]:
    """The spec's optimizer over rows of the weights, and those by name."""
    groups = parameter_groups(model, spec.optimizer, spec.storage)
    quantizers = weight_quantizers(model)
    sampled: dict[str, _Sampled] = {}
    for group in groups:
        for name, p in group["params"]:
            rows = _rows(p, quantizers.get(name))
            sampled[name] = _Sampled(nn.Parameter(_take(p.detach(), rows).clone()), rows, p.numel())
        group["params"] = [(name, sampled[name].weight) for name, _ in group["params"]]
    optimizer = spec.optimizer.build(groups, seed=spec.seed)
    optimizer.casts = {sampled[name].weight: q for name, q in quantizers.items() if name in sampled}
    return optimizer, sampled


def _rows(p: Tensor, quantizer: Any) -> Tensor | None:
    """Rows spread over the parameter, that of its amax among them, so that it has the whole's scale; None for all."""
    whole = quantizer is not None and getattr(quantizer.spec.scaling, "granularity", "tensor") != "tensor"
    whole = whole or (quantizer is not None and quantizer.spec.scaling.kind not in ("current", "delayed", "unscaled"))
    if p.ndim < 2 or whole or p.numel() <= _ROWS_OF:
        return None
    wanted = max(2, _ROWS_OF * p.shape[0] // p.numel())
    spread = torch.arange(wanted) * p.shape[0] // wanted
    top = int(p.detach().abs().flatten(1).amax(1).argmax())
    return torch.cat((spread, torch.tensor([top]))).unique()


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


def _gradients(
    seed: int, sampled: Mapping[str, _Sampled], signals: Mapping[str, Signal] | None
) -> Iterator[dict[str, Tensor]]:
    """Drawn gradients, step after step."""
    generator = torch.Generator().manual_seed(seed)

    def noise(name: str) -> Tensor:
        return torch.randn(sampled[name].weight.shape, generator=generator)

    if signals is None:
        while True:
            yield {name: noise(name) for name in sampled}
    own = {name: signals[name] for name in sampled if name in signals}
    rms = {name: _take(each.rms, sampled[name].rows) for name, each in own.items()}
    presence = {name: _take(each.presence, sampled[name].rows) for name, each in own.items()}
    slow = {name: noise(name) for name in own}
    while True:
        found = {}
        for name, each in own.items():
            a, c = each.memory, each.persistent
            g = math.sqrt(c) * slow[name] + math.sqrt(1 - c) * noise(name)
            slow[name] = a * slow[name] + math.sqrt(1 - a * a) * noise(name)
            there = torch.rand(g.shape, generator=generator) < presence[name]
            found[name] = torch.where(there, g * rms[name], 0.0)
        yield found
