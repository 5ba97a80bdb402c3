"""python -m bench.synthetic: where steps in spacings of the grid help, where they hurt, and where they are nothing.

A problem is 256 weights in 8 bits, each pulled to a target t of its own by a noisy gradient; the outcome is the natural
logarithm of the final loss, mean((w - t)^2 c) with a curvature c for each weight. Storage is stochastic, the learning
rate falls in a line to a tenth.

    spread      |t| log-uniform over 10 binades, c = 1/t^2, start within a binade or so of t with t's sign. As in a
                regression on inputs of scale 1/|t|, every weight matters as much as any other. Geometry wins by
                construction: what is wanted is relative precision at every scale, Adam's step has one size for all
                weights, and a step of so many spacings is a share of each weight.
    absolute    the same weights with c = 1. Expected to be even; geometry wins here too, by less (1.1 in e4m3fn).
    crossing    |t| within a binade, c = 1, half of the weights start at the wrong sign: steps that shrink with the
                weight do not get across zero. Half, because f is normalised over the tensor: where all weights
                shrink together, f stays near 1 and there is no geometry to lose by.

What `spread` shows is that the rule does what it says, not that networks have such losses. Every arm has its own
learning rate, the best mean of three tuning seeds on one list for all; the figures are of six other seeds, paired:
start, targets, gradient noise and random bits of a seed are the same in every arm. Intervals are 95 % t intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from altgrad.optim import AdamW, ManifoldAdamW

SIZE, STEPS, NOISE = 256, 100, 0.5
RATES = tuple(2.0**-k for k in range(-1, 11))
TUNING, CONFIRMATION = tuple(range(100, 103)), tuple(range(6))


@dataclass(frozen=True)
class Problem:
    """Targets, starts and curvatures by seed; see the head of the file for the three there are."""

    name: str
    binades: float
    relative: bool
    crossing: bool

    def draw(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """start [SIZE], target [SIZE], curvature [SIZE], gradient noise [STEPS, SIZE]; float32."""
        source = torch.Generator().manual_seed(seed)
        size = 2.0 ** (-self.binades * torch.rand(SIZE, generator=source))
        target = size * (2.0 * torch.randint(2, (SIZE,), generator=source) - 1)
        if self.crossing:
            side = 2.0 * torch.randint(2, (SIZE,), generator=source) - 1
            start = side * 2.0 ** (-self.binades * torch.rand(SIZE, generator=source))
        else:
            start = target * 2.0 ** torch.randn(SIZE, generator=source).clamp(-2, 2)
        curvature = target**-2 if self.relative else torch.ones(SIZE)
        noise = NOISE * torch.randn((STEPS, SIZE), generator=source) * curvature.sqrt()
        return start, target, curvature, noise


SPREAD = Problem("spread", 10, relative=True, crossing=False)
ABSOLUTE = Problem("absolute", 10, relative=False, crossing=False)
CROSSING = Problem("crossing", 1, relative=False, crossing=True)


@dataclass(frozen=True)
class Arm:
    """An optimizer: AdamW for no settings, else ManifoldAdamW with them (p = 1 unless said)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)


ADAMW = Arm("AdamW")
OWN = Arm("own", {"stiffness": "own"})
NO_FLOOR = Arm("own, kappa 0", {"kappa": 0.0})
WIDE_FLOOR = Arm("own, kappa 1/4", {"kappa": 0.25})
HALF = Arm("own, p 1/2", {"power": 0.5})
SMOOTH = Arm("smooth", {"stiffness": "smooth"})
SHUFFLED = Arm("shuffled", {"stiffness": "shuffled"})
RESHUFFLED = Arm("reshuffled", {"stiffness": "reshuffled"})


def train(problem: Problem, arm: Arm, fmt: str, rate: float, seeds: Sequence[int]) -> list[list[Tensor]]:
    """The stored weights of every seed after every step, [STEPS][seeds] tensors of SIZE.

    One optimizer carries all seeds, each as a parameter with its own scale, factors and random bits (keyed by its
    name), so a seed's trajectory does not depend on which others there are.
    """
    drawn = [problem.draw(seed) for seed in seeds]
    params = [torch.nn.Parameter(start.clone()) for start, *_ in drawn]
    named = [(f"weight.{seed}", p) for seed, p in zip(seeds, params, strict=True)]
    setting: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": 0.0}
    setting["storage"] = {"kind": "stochastic", "format": fmt}
    optimizer = ManifoldAdamW(named, **setting, **arm.settings) if arm.settings else AdamW(named, **setting)
    path = []
    for step in range(STEPS):
        for p, (_, target, curvature, noise) in zip(params, drawn, strict=True):
            p.grad = curvature * (p.detach() - target) + noise[step]
        optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * step / (STEPS - 1))
        optimizer.step()
        path.append([p.detach().clone() for p in params])
    return path


def outcomes(problem: Problem, arm: Arm, fmt: str, rate: float, seeds: Sequence[int]) -> list[float]:
    """ln of the final loss of every seed."""
    final = train(problem, arm, fmt, rate, seeds)[-1]
    losses = []
    for seed, w in zip(seeds, final, strict=True):
        _, target, curvature, _ = problem.draw(seed)
        losses.append(math.log(float(((w - target).square() * curvature).mean())))
    return losses


class Result(NamedTuple):
    """An arm at its own learning rate: the rate, and ln of the final loss for each confirmation seed."""

    rate: float
    losses: list[float]


@cache
def result(problem: Problem, arm: Arm, fmt: str, rates: tuple[float, ...] = RATES) -> Result:
    """Tune on the tuning seeds, then measure on the others. ValueError if the best rate is at an edge of `rates`."""
    means = [sum(outcomes(problem, arm, fmt, rate, TUNING)) / len(TUNING) for rate in rates]
    best = means.index(min(means))
    if best in (0, len(rates) - 1):
        raise ValueError(f"{problem.name}, {arm.name}, {fmt}: the best learning rate is at an edge of {rates}; extend.")
    return Result(rates[best], outcomes(problem, arm, fmt, rates[best], CONFIRMATION))


class Interval(NamedTuple):
    """A mean and its 95 % t interval."""

    low: float
    mean: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The t interval of the mean of two or more values."""
    n = len(values)
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Interval(mean - half, mean, mean + half)


def against(problem: Problem, arm: Arm, other: Arm, fmt: str, rates: tuple[float, ...] = RATES) -> Interval:
    """The paired difference in ln loss, `arm` less `other`, each at its own rate: negative where `arm` is better."""
    pairs = zip(result(problem, arm, fmt, rates).losses, result(problem, other, fmt, rates).losses, strict=True)
    return interval([mine - others for mine, others in pairs])


TABLE = (
    (SPREAD, ("e4m3fn", "e5m2"), (ADAMW, OWN, HALF, SMOOTH, SHUFFLED, RESHUFFLED)),
    (ABSOLUTE, ("e4m3fn", "e5m2"), (ADAMW, OWN, SHUFFLED)),
    (CROSSING, ("e4m3fn", "e5m2"), (ADAMW, NO_FLOOR, OWN, WIDE_FLOOR, HALF)),
    (SPREAD, ("e0m7", "e1m6"), (ADAMW, OWN, SHUFFLED)),
)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"ln of the final loss, {len(CONFIRMATION)} seeds, stochastic storage; mean [95 % t interval]\n")
    print("| problem | format | arm | learning rate | ln loss | less AdamW's, paired |\n|---|---|---|---|---|---|")
    for problem, fmts, arms in TABLE:
        for fmt in fmts:
            for arm in arms:
                try:
                    found = result(problem, arm, fmt)
                    level, less = interval(found.losses), against(problem, arm, ADAMW, fmt)
                except ValueError as error:  # no best rate inside the list, of this arm or of AdamW: said, not hidden
                    print(f"| {problem.name} | {fmt} | {arm.name} | {error} | | |", flush=True)
                    continue
                cells = [f"{i.mean:.2f} [{i.low:.2f}, {i.high:.2f}]" for i in (level, less)]
                rate = f"2^{round(math.log2(found.rate))}"
                print(f"| {problem.name} | {fmt} | {arm.name} | {rate} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
