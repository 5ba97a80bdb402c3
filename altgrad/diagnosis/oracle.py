"""How often weights will move, before training: a rehearsal of the optimizer and the storage without the model.

The move rate of a parameter is the share of the requested changes that change its code: 1 - stall ratio. It follows
from three things: the weights and their grid (what a gap is, in which direction: docs/SCIENCE.md), the learning rate
over the run, and the distribution of the optimizer's steps in units of it. The first two are known before training. The
third is for Adam nearly a matter of statistics alone, for its step m / sqrt(v) does not depend on the gradient's size.

So nothing is approximated by a formula where the thing itself can be run: the spec's own optimizer and storage take the
steps of its own schedule, on rows of its own initial weights, with gradients drawn instead of computed:

    white         g ~ N(0, 1), new at each step: what remains of a gradient when batches share no signal
    calibrated    g = rms_i size_t (sqrt(c) mu_t + sqrt(1 - c) n_t), or 0 where nothing comes in;
                  mu_t = a mu_{t-1} + sqrt(1 - a^2) n'_t

c and a, the share of a gradient that persists and how long, each element's rms and how often it is not 0, and each
step's size come from 20 steps of real training (`altgrad.diagnosis.signals`). A signal makes Adam's steps up to four
times as long as noise does (|u| near 1 instead of 0.23), which is what calibration is for; docs/ORACLE.md has both
beside measured runs. Not modelled: how the signal dies out later than in those 20 steps, and gradients that depend on
what the weights have become. Where rows stand for a large matrix, its amax is among them.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.diagnosis.signals import Signal, rehearsed_rows, take_rows
from altgrad.measures import stall_counts
from altgrad.nn import weight_quantizers
from altgrad.optim import Optimizer, Update, parameter_groups
from altgrad.quantize.noise import site_key
from altgrad.training import RunSpec

_RANGE, _NEAR, _TRIES = 20.0, math.log2(1.05), 24


class Moves:
    """Counts attempted changes and stalls by parameter: an observer of an Optimizer that is `watching`."""

    def __init__(self) -> None:
        self.attempted: dict[str, int] = {}
        self.moved: dict[str, int] = {}

    def __call__(self, update: Update) -> None:
        """Count one update; a parameter without a grid has no code that could change."""
        if update.grid is None:
            return
        start = update.start
        grid = update.grid
        if update.storage == "master":
            counts = stall_counts(start, update.after, update.requested, grid.format, scale=grid.scale)
            tried, stalls = int(counts["attempted"]), int(counts["stalls"])
        else:  # values of the grid, which are equal where their codes are, and in an eighth of the time
            attempted = update.requested != 0
            same = (start == update.after).logical_or_(start.isnan() & update.after.isnan())
            tried, stalls = int(attempted.count_nonzero()), int(same.logical_and_(attempted).count_nonzero())
        self.attempted[update.name] = self.attempted.get(update.name, 0) + tried
        self.moved[update.name] = self.moved.get(update.name, 0) + tried - stalls

    def rates(self) -> dict[str, float]:
        """Moves over attempts by parameter; NaN where none was attempted."""
        return {name: self.moved[name] / tried if tried else math.nan for name, tried in self.attempted.items()}


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
    drawn: "Drawn | None" = None,
) -> Forecast:
    """The move rates over a run of this spec from the model's weights, which stay as they are.

    model: as the spec builds it. steps: where the spec has more, its schedule is squeezed into so many. lr_factor
    multiplies every learning rate. signals: from `calibrate`; None for white gradients. drawn: shared by rehearsals
    that need the same gradients; without it they are drawn anew. Parameters without a grid have no rate. LocatedError
    for groups and storage rules that decide nothing.
    """
    steps = min(steps, spec.steps)
    optimizer, sampled = _sample(spec, model)
    moves = Moves()
    optimizer.watching = True
    optimizer.observers.append(moves)
    on_grids = {name for name, _, _ in optimizer.grids()}
    gridded = {name: each for name, each in sampled.items() if name in on_grids}
    gradients = (Drawn() if drawn is None else drawn).steps(spec.seed, gridded, signals)
    for step in range(steps):
        factor = spec.schedule.at(step * spec.steps // steps, spec.steps) * lr_factor
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for name, gradient in next(gradients).items():
            sampled[name].weight.grad = gradient
        optimizer.step()
    rates = moves.rates()
    known = {name: rate for name, rate in rates.items() if not math.isnan(rate)}
    whole = sum(sampled[name].size for name in known)
    overall = sum(rate * sampled[name].size for name, rate in known.items()) / whole if whole else math.nan
    return Forecast(rates, overall, steps, signals is not None)


def require_target(rate: float) -> None:
    """ValueError for a move rate outside (0, 1)."""
    if not 0 < rate < 1:
        raise ValueError(f"move rate {rate}; one to reach is between 0 and 1, such as 0.01.")


def smallest_lr(
    spec: RunSpec,
    model: nn.Module,
    target: float,
    *,
    steps: int,
    signals: Mapping[str, Signal] | None = None,
    drawn: "Drawn | None" = None,
    known: Forecast | None = None,
) -> float | None:
    """The smallest peak learning rate, to about 5 %, at which the expected overall move rate is `target`.

    None where no rate within 2^20 of the spec's does it. By false position in the logarithms of both, where the law is
    nearly a line, between bounds that bracket. drawn: see `rehearse`. known: what it found at the spec's own rate.
    ValueError for a target outside (0, 1).
    """
    require_target(target)
    if spec.optimizer.lr == 0:
        return None
    drawn = Drawn() if drawn is None else drawn

    def above(exponent: float) -> float:
        """log2 of the rate over the target."""
        if exponent == 0 and known is not None:
            found = known.overall
        else:
            factor = 2.0**exponent
            found = rehearse(spec, model, steps=steps, lr_factor=factor, signals=signals, drawn=drawn).overall
        return math.log2(found / target) if found > 0 else -_RANGE if found == 0 else math.nan

    low, high, exponent = -_RANGE, _RANGE, 0.0
    for _ in range(_TRIES):
        off = above(exponent)
        if math.isnan(off):
            return None
        low, high = (low, exponent) if off >= 0 else (exponent, high)
        if abs(off) <= _NEAR or high - low <= _NEAR:
            return float(spec.optimizer.lr * 2.0**exponent)
        guess = exponent - off
        exponent = guess if low < guess < high else (low + high) / 2
    return None if high == _RANGE or low == -_RANGE else float(spec.optimizer.lr * 2.0**high)


@dataclass(frozen=True)
class _Sampled:
    """Rows of a parameter that are rehearsed for the whole of it, which has `size` elements."""

    weight: nn.Parameter
    rows: Tensor | None
    size: int


def _sample(spec: RunSpec, model: nn.Module) -> tuple[Optimizer, dict[str, _Sampled]]:
    """The spec's optimizer over rows of the weights, and those by name, in the order of the spec's groups.

    Groups that differ in nothing but the rule that made them are one, whose steps are taken together.
    """
    groups = parameter_groups(model, spec.optimizer, spec.storage)
    quantizers = weight_quantizers(model)
    sampled: dict[str, _Sampled] = {}
    for group in groups:
        for name, p in group["params"]:
            rows = rehearsed_rows(p, quantizers.get(name))
            sampled[name] = _Sampled(nn.Parameter(take_rows(p.detach(), rows).clone()), rows, p.numel())
    together: dict[str, dict[str, Any]] = {}
    for group in groups:
        alike = group | {"params": None, "storage": {**group["storage"].tree(), "match": None}}
        found = together.setdefault(repr(alike), group | {"params": []})
        found["params"] += [(name, sampled[name].weight) for name, _ in group["params"]]
    optimizer = spec.optimizer.build(together.values(), seed=spec.bits_seed)
    optimizer.casts = {sampled[name].weight: q for name, q in quantizers.items() if name in sampled}
    return optimizer, sampled


class Drawn:
    """Drawn gradients, kept for rehearsals at other rates and of other formats, which need the same ones.

    Those of one question at a time are kept, so many steps as any rehearsal of it has taken.
    """

    def __init__(self) -> None:
        self._question: tuple[object, ...] = ()
        self._signals: Mapping[str, Signal] | None = None
        self._kept: list[dict[str, Tensor]] = []
        self._more: Iterator[dict[str, Tensor]] = iter(())

    def steps(
        self, seed: int, sampled: Mapping[str, _Sampled], signals: Mapping[str, Signal] | None
    ) -> Iterator[dict[str, Tensor]]:
        """By parameter, step after step."""
        rows = {name: None if each.rows is None else tuple(each.rows.tolist()) for name, each in sampled.items()}
        question = (seed, *((name, each.weight.shape, rows[name]) for name, each in sampled.items()))
        if question != self._question or signals is not self._signals:
            self._question, self._signals, self._kept = question, signals, []
            self._more = _gradients(seed, dict(sampled), signals)
        kept, more = self._kept, self._more
        for step in itertools.count():
            if step == len(kept):
                kept.append(next(more))
            yield kept[step]


def _gradients(
    seed: int, sampled: Mapping[str, _Sampled], signals: Mapping[str, Signal] | None
) -> Iterator[dict[str, Tensor]]:
    """Drawn gradients, step after step."""
    # Not the seed itself: the weights were drawn from that, and gradients would be like them.
    generator = torch.Generator().manual_seed(site_key(seed, "drawn gradients"))

    def noise(name: str) -> Tensor:
        return torch.randn(sampled[name].weight.shape, generator=generator)

    if signals is None:
        while True:
            yield {name: noise(name) for name in sampled}
    own = {name: signals[name] for name in sampled if name in signals}
    rms = {name: take_rows(each.rms, sampled[name].rows) for name, each in own.items()}
    presence = {name: take_rows(each.presence, sampled[name].rows) for name, each in own.items()}
    slow = {name: noise(name) for name in own}
    for step in itertools.count():
        found = {}
        for name, each in own.items():
            a, c = each.memory, each.persistent
            g = math.sqrt(c) * slow[name] + math.sqrt(1 - c) * noise(name)
            slow[name] = a * slow[name] + math.sqrt(1 - a * a) * noise(name)
            there = torch.rand(g.shape, generator=generator) < presence[name]
            found[name] = torch.where(there, g * rms[name] * each.size(step), 0.0)
        yield found
