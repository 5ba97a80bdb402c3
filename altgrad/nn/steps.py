"""Optimizer steps as torch tells of them, whoever's optimizer and loop it is.

Two things about a step cannot be seen from within a layer, and torch's global step hook sees them for every optimizer
that is given parameters of a model with casts:

* A closure is *one* function, however often a line search evaluates it. So each evaluation takes the same random bits,
  and only the first counts: delayed scales learn of no weights that were only tried, and the counters of a step with k
  evaluations are those of a step with one. (A closure goes on where the step stands: with passes accumulated before it,
  as Lightning does, it is the last micro-batches.)
* Delayed scales and stochastic rounding need `altgrad.commit` after each step. A loop that forgets it trains on without
  history and without a word; so the second step of an optimizer without any commit says so, once.

The road not taken: a check in every forward, which would be traced into graphs and still not know what a step is. The
hook is there once a model is quantised; to optimizers of other models it is a look into a dictionary.
"""

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from altgrad.quantize.counted import Counted

LOGGER = logging.getLogger("altgrad")


class StepListener(Protocol):
    """Who wants to know that steps are closed."""

    def step_closed(self, sites: Iterable[Counted]) -> None:
        """These have been committed."""


_followed = 0
"""How many models there were to follow; with one more, every optimizer is looked at again."""
_models: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
_committed: "weakref.WeakSet[Counted]" = weakref.WeakSet()
_listeners: "weakref.WeakSet[Any]" = weakref.WeakSet()
_known: "weakref.WeakKeyDictionary[torch.optim.Optimizer, _Known]" = weakref.WeakKeyDictionary()


class _Known:
    """What is known of an optimizer: whose parameters it has, and how many steps it took."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        given = {p for group in optimizer.param_groups for p in group["params"]}
        self.models = [weakref.ref(model) for model in _models if any(p in given for p in model.parameters())]
        self.among = _followed
        self.steps = 0

    def sites(self) -> list[Counted]:
        """Casts and transforms of its models."""
        models = (model for ref in self.models if (model := ref()) is not None)
        return list(dict.fromkeys(m for model in models for m in model.modules() if isinstance(m, Counted)))


def follow_steps(model: nn.Module) -> None:
    """Look at the steps of whatever optimizer has parameters of this model."""
    global _followed
    if not _followed:
        register_optimizer_step_pre_hook(_before_step)
    _models.add(model)
    _followed += 1


def committed(sites: Iterable[Counted]) -> None:
    """Take note that a step was closed."""
    made = list(sites)
    _committed.update(made)
    for listener in list(_listeners):
        listener.step_closed(made)


def add_listener(listener: StepListener) -> None:
    """Tell of commits, for as long as the listener lives."""
    _listeners.add(listener)


def remove_listener(listener: StepListener) -> None:
    """Tell this one no more."""
    _listeners.discard(listener)


def closure_of(args: tuple[Any, ...], named: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure among what `step` was called with, the optimizer itself first."""
    found = named.get("closure", args[1] if len(args) > 1 else None)
    return found if callable(found) else None


def with_closure(
    args: tuple[Any, ...], named: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another closure."""
    if "closure" in named:
        return args, {**named, "closure": closure}
    return (args[0], closure, *args[2:]), named


def never_committed(sites: Iterable[Counted]) -> str | None:
    """A line about casts that had passes and need commits, if none of them ever had one."""
    needing = [site for site in sites if site.needs_commit]
    recorded = (tensor for site in needing for tensor in site.passed() if not tensor.is_meta)
    if any(site in _committed for site in needing) or not any(bool(tensor.any()) for tensor in recorded):
        return None
    return (
        f"altgrad.commit(model) was never called, and {needing[0].site} needs it after each optimizer.step(): without "
        "it delayed scales have no history, and all passes draw the random bits of one step."
    )


def _before_step(
    optimizer: torch.optim.Optimizer, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    known = _known.get(optimizer)
    if known is None or known.among != _followed:
        steps = 0 if known is None else known.steps
        known = _known[optimizer] = _Known(optimizer)
        known.steps = steps
    known.steps += 1
    closure = closure_of(args, named)
    if not known.models or (closure is None and known.steps != 2):
        return None
    sites = known.sites()
    if known.steps == 2 and (line := never_committed(sites)):
        LOGGER.warning(line)
    tensors = [tensor for site in sites for tensor in site.passed()]
    return with_closure(args, named, _one_function(closure, tensors)) if closure and tensors else None


def _one_function(closure: Callable[[], Any], tensors: list[Tensor]) -> Callable[[], Any]:
    """The closure, whose first evaluation alone leaves what passes leave in these, and from which all others begin."""
    begin, after = _copies(tensors), list[Tensor]()

    def evaluate() -> Any:
        if not after:
            found = closure()
            after.extend(_copies(tensors))
            return found
        with torch.no_grad():
            torch._foreach_copy_(tensors, begin)
        try:
            return closure()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, after)

    return evaluate


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of small tensors, in a kernel for each dtype and device."""
    found: dict[int, Tensor] = {}
    alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for number, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.device), []).append(number)
    for numbers in alike.values():
        whole = torch.cat([tensors[n].detach().reshape(-1) for n in numbers])
        parts = torch.split(whole, [tensors[n].numel() for n in numbers])
        found.update((n, part.view_as(tensors[n])) for n, part in zip(numbers, parts, strict=True))
    return [found[number] for number in range(len(tensors))]
