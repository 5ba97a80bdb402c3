"""Adam's whole step on one weight in one compiled graph: moments and their casts, stiffness, update and storage.

The rule is that of `altgrad.optim.adamw` and `manifold_adamw`, and storage that of `altgrad.optim.storage`; what is
gained is memory traffic. Step by step they read and write each tensor a dozen times; fused, weight, gradient and
moments are read once and written once, after three reductions over the weight where there is a stiffness. Operations
are in another order, so results agree with the eager engine to float32 rounding, not to the bit; the engine is part of
a run's spec. What `fused_step` does not cover takes the eager path.

A step may be left to the device (`applies`): then the host has launched it before it knows whether the gradients were
finite, and where they were not the graph writes back what it read.

Numbers enter as one tensor; what decides the shape of the computation (`FusedStep`) makes a graph of its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.optim.states import StateCast, States, StateSpec
from altgrad.optim.stiffness import factor, floored
from altgrad.optim.storage import GridStorage, Storage
from altgrad.quantize import Grid
from altgrad.quantize.engine import Numbers, as_tensors, nearest, numbers, ready_compiler, serves, stochastic
from altgrad.quantize.noise import fold
from altgrad.quantize.traced import binade, binades


class FusedStep(NamedTuple):
    """What is constant in a graph: the grid's format, p and kappa (power 0: no stiffness), and how the weight lands."""

    format: FloatFormat | None
    power: float
    kappa: float
    landing: Rounding | None
    """None: master."""
    states: tuple[tuple[str, StateSpec], ...] = ()
    """The states that are cast, by name."""

    def __hash__(self) -> int:
        return hash((*self[:4], *((name, str(spec.tree())) for name, spec in self.states)))


_LANDINGS = {"nearest": Rounding.nearest_even, "stochastic": Rounding.stochastic}


def fused_step(
    storage: Storage, grid: Grid | None, p: Tensor, power: float, kappa: float, casts: States
) -> FusedStep | None:
    """What the fused step of a weight is; None if its step cannot be fused."""
    states = tuple((name, cast.spec) for name, cast in casts.items() if cast.takes(p))
    if p.dtype != torch.float32 or any(spec.draws for _, spec in states):
        return None
    landed = _landing(storage, grid, power, kappa)
    return None if landed is None else landed._replace(states=states)


def _landing(storage: Storage, grid: Grid | None, power: float, kappa: float) -> FusedStep | None:
    """The same without the states."""
    fmt = None if grid is None else grid.format
    power = power if grid is not None else 0.0
    if storage.tracks:
        return None
    if not storage.on_grid:
        if not power:
            return FusedStep(None, power, kappa, None)
        return FusedStep(fmt, power, kappa, None) if isinstance(fmt, FloatFormat) else None
    landing = _LANDINGS.get(storage.kind)
    assert isinstance(storage, GridStorage)
    kept = storage.format
    if landing is None or not isinstance(kept, FloatFormat) or not serves(kept, landing):
        return None
    return FusedStep(kept, power, kappa, landing)


def adam_step(
    p: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
    chosen: FusedStep,
    grid: Grid | None,
    key: int,
    *,
    show: bool,
    applies: Tensor | None = None,
) -> Tensor | None:
    """Take one step of p, in place; with `show`, returns the change asked for but decay.

    applies: a bool on p's device. Where it is false only `step`, which the host counts, moves; but of a p without
    moments it must be true.
    """
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    state["step"] += 1
    count, (beta1, beta2) = state["step"].item(), group["betas"]
    found = torch.tensor(
        [
            1 - beta1, beta2, 1 - beta2, (1 - beta2**count) ** 0.5, group["eps"],
            -(group["lr"] / (1 - beta1**count)), 1 - group["lr"] * group["weight_decay"],
            chosen.power, chosen.kappa, *((0.0, 0.0) if chosen.format is None else binades(chosen.format)),
        ]
    ).to(p.device, non_blocking=True)  # fmt: skip
    scale = None if grid is None or chosen.format is None else grid.scale
    tensors = [p.detach(), gradient, state["exp_avg"], state["exp_avg_sq"]]
    if scale is None or scale.numel() == 1:
        if not all(t.is_contiguous() for t in tensors):
            tensors = [t.contiguous() if i == 1 else t for i, t in enumerate(tensors)]
        tensors = [t.view(-1) for t in tensors]
        scale = None if scale is None else scale.reshape(())
    at = state["storage_step"] if chosen.landing is not None else None
    seed = torch.tensor(key, device=p.device) if chosen.landing is Rounding.stochastic else None
    form = None if chosen.format is None else numbers(chosen.format)
    if chosen.format is not None and p.device.type != "cpu":
        # Integers that enter a graph are 64 bits wide in Triton, which then has no float32 of the same bits.
        form = as_tensors(chosen.format, p.device)
    before = {name: t for name, t in state.items() if "." in name}  # a state's scales, as `exp_avg.scale`
    asked, beside = _compiled(chosen, show)(*tensors, found, scale, seed, at, form, applies, before)
    state |= beside
    return asked if asked is None else asked.view(p.shape)


@functools.cache
def _compiled(chosen: FusedStep, show: bool) -> Callable[..., Any]:
    # Plain booleans, decided here: numbers of a closure become inputs of a graph, and its branches would test them.
    stiff, whole = chosen.power > 0 and chosen.format is not None, chosen.power == 1
    casts = {name: StateCast(spec, name) for name, spec in chosen.states}

    def run(
        p: Tensor, g: Tensor, mean: Tensor, square: Tensor, found: Tensor, scale: Tensor | None, seed: Tensor | None,
        at: Tensor | None, form: Numbers | None, applies: Tensor | None, before: dict[str, Tensor],
    ) -> tuple[Tensor | None, dict[str, Tensor]]:  # fmt: skip
        rate1, beta2, rate2, root, eps, value, keep, power, kappa, lowest, highest = found.unbind()
        moments = {"exp_avg": mean.lerp(g, rate1)}
        moments["exp_avg_sq"] = square.lerp(g * g, rate2) if "exp_avg_sq" in casts else square * beta2 + g * g * rate2
        kept = {name: cast.kept(moments[name], None) for name, cast in casts.items()}
        first, second = (
            kept[name].values if name in kept and casts[name].spec.step_takes == "rounded" else moment
            for name, moment in moments.items()
        )
        step = first / (second.sqrt() / root + eps) * value
        if stiff:
            u = floored(p, kappa) if scale is None else floored(p, kappa) / scale
            field = binade(u, lowest, highest)
            if scale is not None and scale.ndim > 0:
                field = field * (scale / scale.amax())
            step = step * factor(field, 1.0 if whole else power)
        key = fold(seed, at) if seed is not None and at is not None else None
        landed = _landed(p * keep + step, chosen, form, scale, key)
        beside: dict[str, Tensor] = {}
        for name, cast in kept.items():
            moments[name] = cast.values
            beside |= {f"{name}.{part}": tensor for part, tensor in cast.beside.items()}
        written = [(p, landed), (mean, moments["exp_avg"]), (square, moments["exp_avg_sq"])]
        for target, new in written if at is None else [*written, (at, at + 1)]:
            target.copy_(new if applies is None else torch.where(applies, new, target))
        if applies is not None:
            beside = {name: torch.where(applies, new, before.get(name, new)) for name, new in beside.items()}
        return (step if show else None), beside

    ready_compiler()
    made = torch.compile(run, dynamic=True, fullgraph=True)
    if not casts:
        return made

    def constant(*given: Any) -> Any:
        # The numbers of the states' formats, which would be inputs of the graph.
        with torch._dynamo.config.patch(specialize_int=True, specialize_float=True):
            return made(*given)

    return constant


def _landed(
    wanted: Tensor, chosen: FusedStep, form: Numbers | None, scale: Tensor | None, key: Tensor | None
) -> Tensor:
    """The stored weight for a wanted one."""
    if chosen.landing is None or chosen.format is None or form is None:
        return wanted
    fmt = chosen.format
    inverse = scale.reciprocal() if scale is not None and scale.ndim == 0 else None
    if key is not None and chosen.landing is Rounding.stochastic:
        return stochastic(wanted, scale, inverse, fmt.has_negative_zero, form, key)
    return nearest(wanted, scale, inverse, fmt.has_negative_zero, form)
