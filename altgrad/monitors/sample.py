"""Counts of one element in sixteen: what monitors that count and add up look at under `sample: 1/16`.

A tensor is cut into runs of 16 elements, a line of a processor's cache in float32, and of every 16 runs one is drawn at
random: by a hash of the run's seed, the site, the observation and the number of the 16, so the same on every machine
and in every engine, and another each time. Each element is looked at with probability 1/16, so 16 times a count is
right on average (Horvitz and Thompson 1952), whatever pattern the tensor has, and shares are those of what was drawn.
A tensor of fewer than 2^16 elements, or of a number that is no multiple of 256, is counted in full. Extremes are, too:
no sample has them. What follows weights from step to step (`flips`) draws once and keeps to it.

The error of a share is not that of independent elements: neighbours are alike, a block of a scale above all. It is seen
from one observation to the next instead, by von Neumann's mean square successive difference (1941),

    error^2 = sum (x_i - x_(i-1))^2 / (2 (n - 1)),

which a slow drift of the share itself does not enter; a fast one does, so the figure errs on the high side.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import MonitorSpec
from altgrad.optim import Update
from altgrad.quantize import Cast, Grid
from altgrad.quantize.noise import counted_bits, fold, site_key
from altgrad.spec import Since

EVERY = 16
RUN = 16
LEAST = 1 << 16
PARTS = ("before", "requested", "after", "undecayed", "moved", "gradient")
ERROR = Metric(
    "*_error", "as *", "with `sample`: standard error of *, and how fast it changes itself",
    "sqrt(sum (x_i - x_(i-1))^2 / (2 (n - 1))) over observations",
)  # fmt: skip


class SampledSpec(MonitorSpec):
    """What the spec of a monitor that counts has."""

    sample: Annotated[Literal["1/16"] | None, Since(2)] = None
    """Count one element in 16, drawn at random at each observation, in tensors of 2^16 elements or more."""


class Draws:
    """Keys by site and parameter, int64 scalars that `renew` changes in place: a draw for each observation."""

    def __init__(self, seed: int, names: Iterable[str], device: torch.device) -> None:
        keys = {name: site_key(seed, f"{name}/sample") for name in names}
        self.bases = torch.tensor(list(keys.values()), dtype=torch.int64, device=device)
        self.keys = {name: torch.zeros((), dtype=torch.int64, device=device) for name in keys}

    def renew(self, observation: int) -> None:
        """Draw anew. observation: its number, such as that of the step."""
        if self.keys:
            torch._foreach_copy_(list(self.keys.values()), fold(self.bases, observation).unbind())


def taken(key: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The drawn runs of tensors of one shape, [runs, 16]; what `is_drawn` allows."""
    every = tensors[0].numel() // (EVERY * RUN)
    among = counted_bits((every,), key, device=key.device) >> 20
    runs = torch.arange(every, device=key.device) * EVERY + among
    return [tensor.reshape(-1, RUN).index_select(0, runs) for tensor in tensors]


def is_drawn(x: Tensor) -> bool:
    """Whether a tensor is large and even enough to be sampled."""
    return x.numel() >= LEAST and x.numel() % (EVERY * RUN) == 0


def drawn_cast(cast: Cast) -> tuple[Cast, int]:
    """What counts of a cast are taken of, and what to multiply them with; scale and scales are left out."""
    if cast.draw is None or not is_drawn(cast.exact):
        return cast, 1
    exact, unbounded, rounded = taken(cast.draw, cast.exact, cast.unbounded, cast.rounded)
    return replace(cast, exact=exact, unbounded=unbounded, rounded=rounded, scale=None, scales=None), EVERY


def drawn_update(update: Update, key: Tensor | None) -> tuple[Update, int]:
    """The same of an update, its grid included."""
    if key is None or not is_drawn(update.before):
        return update, 1
    given: dict[str, Tensor] = {}
    grid = update.grid
    for name in PARTS:
        tensor = getattr(update, name)
        if tensor is not None:
            given[name] = tensor
    scale = None if grid is None else grid.scale
    if scale is not None and scale.numel() > 1:
        given["scale"] = scale.expand_as(update.before)
    found: dict[str, Any] = dict(zip(given, taken(key, *given.values()), strict=True))
    if grid is not None:
        grid = Grid(grid.format, found.pop("scale", scale))
    return replace(update, grid=grid, **found), EVERY


class Errors:
    """The standard errors of shares from their successive differences, by site and share."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}
        """The last value, the number of differences, and the sum of their squares."""

    def see(self, site: str, shares: Mapping[str, float]) -> dict[str, float]:
        """`<share>_error` of each, an observation on; NaN before the second."""
        found = {}
        for name, value in shares.items():
            last, n, squares = self.seen.get(f"{site}/{name}", [math.nan, 0.0, 0.0])
            if math.isfinite(value):
                if math.isfinite(last):
                    n, squares = n + 1, squares + (value - last) ** 2
                self.seen[f"{site}/{name}"] = [value, n, squares]
            found[f"{name}_error"] = math.sqrt(squares / (2 * n)) if n else math.nan
        return found

    def state(self) -> dict[str, list[float]]:
        """What must survive a restart."""
        return self.seen

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take back what `state` gave."""
        self.seen = {name: list(row) for name, row in state.items()}
