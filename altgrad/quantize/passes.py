"""Which forward counts, and which only repeats one: the rule that everything in a step shares.

A *pass* is one forward of a training step through a site. It is what feeds delayed scaling, uses up random bits and is
shown to monitors, each of them once. But forwards also run again, and then they must be the same function and leave no
trace:

    activation checkpointing   runs a region's forward again inside backward
    reentrant checkpointing    runs it first under no_grad, and that is the forward the loss comes from
    evaluation                 records no graph, or the model is in eval mode
    replays                    say so themselves (`altgrad.nn.unrecorded`)

So: a pass is a forward in training mode that records a graph or is the first run of a reentrant region, and is not
inside a backward, of which autograd's graph task tells. A repetition takes the keys of the very pass it repeats. Those
are kept on the object that torch itself makes for each checkpointed region (a frame, or the node of the reentrant
function), found on the Python stack, because nothing else tells two micro-batches of one region apart, or two uses of
one layer within it. Where the region is not one of torch's (a library that recomputes in a Function of its own), the
key is that of the site's last pass.

Traced code takes none of these ways: in a compiled graph the compiler itself arranges what is computed again.
"""

import sys
import typing
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.utils import checkpoint

_KEPT, _TAKEN = "_altgrad_keys", "_altgrad_taken"
_SPREAD = 0x9E3779B97F4A7C15


class Site(Protocol):
    """What passes go through: a module that can be told not to record them.

    uncounted: whether its last forward in training mode recorded no graph.
    """

    training: bool
    recording: bool
    uncounted: bool


class _Region(NamedTuple):
    """A checkpointed region on the stack: what torch keeps of it, and whether it runs again."""

    kept: Any
    again: bool


def counts(site: Site) -> bool:
    """Whether a forward that runs now is a pass; see the head of this file."""
    if not (site.training and site.recording):
        return False
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    if inside_backward():
        # A library with a reentrant checkpoint of its own: the forward under no_grad went by, so this one counts.
        return site.uncounted and torch.is_grad_enabled() and not any(region.again for region in _regions())
    found = torch.is_grad_enabled() or any(_has_graph(region.kept) for region in _regions())
    if site.uncounted == found:
        site.uncounted = not found
    return found


def backward_counts(site: Site) -> bool:
    """Whether the backward of a forward that runs now is that of a pass: it has a graph, be it a repetition's."""
    return site.training and site.recording and torch.is_grad_enabled()


def process_key(key: Tensor, role: str) -> Tensor:
    """The key of a site in this process, of several that train on different data: another in each, but for weights.

    A weight is the same tensor everywhere, so its bits are, too.
    """
    if dist.is_available() and dist.is_initialized() and role in ("input", "grad_output"):
        return key ^ (dist.get_rank() * _SPREAD & (1 << 63) - 1)
    return key


def refuse_transforms(what: str) -> None:
    """RuntimeError under torch.func (grad, vmap, jvp ...) and in forward-mode AD, which copy the state of casts."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        raise RuntimeError(
            f"AltGrad: {what} cannot run under torch.func transforms or forward-mode AD, since its casts keep state; "
            "use loss.backward() or torch.autograd.grad, or dequantize_model first."
        )


def inside_backward() -> bool:
    """Whether autograd is at work on this thread."""
    return torch._C._current_graph_task_id() != -1


def _has_graph(kept: Any) -> bool:
    """Whether a region is the reentrant function's, called where autograd records, so that it will run again."""
    return isinstance(kept, FunctionCtx) and bool(typing.cast(Any, kept).next_functions)


def keep_key(site: object, key: Tensor) -> None:
    """Remember the key of a pass for the regions that will run it again."""
    for region in _regions():
        if region.again:
            return
        vars(region.kept).setdefault(_KEPT, {}).setdefault(site, []).append(key)


def repeated_key(site: object) -> Tensor | None:
    """The key of the pass that this forward repeats; None where no region that runs again has one of this site."""
    running: list[Any] = []
    for region in _regions():
        if not region.again:
            running.append(region.kept)
            continue
        keys = vars(region.kept).get(_KEPT, {}).get(site, [])
        # Each backward through the region begins from its first pass.
        taken = vars(region.kept).setdefault(_TAKEN, {}).setdefault(torch._C._current_graph_task_id(), {})
        number = taken.get(site, 0)
        if number >= len(keys):
            return None
        taken[site] = number + 1
        for inner in running:  # a region within this one, which will run again once more
            vars(inner).setdefault(_KEPT, {}).setdefault(site, []).append(keys[number])
        key: Tensor = keys[number]
        return key
    return None


def _regions() -> Iterator[_Region]:
    """The checkpointed regions that the caller runs in, from the inside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            region = _region(frame)
            if region is not None:
                yield region
        frame = frame.f_back


def _region(frame: FrameType) -> _Region | None:
    """The region that a frame of torch.utils.checkpoint runs."""
    name, local = frame.f_code.co_name, frame.f_locals
    if name in ("forward", "backward") and isinstance(local.get("ctx"), FunctionCtx):
        return _Region(local["ctx"], name == "backward")
    if name == "unpack_hook" and "frame" in local:
        return _Region(local["frame"], True)
    if name == "checkpoint" and (made := local.get("gen")) is not None and made.gi_frame is not None:
        kept = made.gi_frame.f_locals.get("new_frame")
        return None if kept is None else _Region(kept, False)
    return None
