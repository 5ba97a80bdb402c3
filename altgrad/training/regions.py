"""Regions: a model whose repeated blocks run as compiled graphs, one for all blocks that are alike.

Compiling takes time for every cast of a graph, and the blocks of a model repeat each other: traced as one, a model
waits the longer the more of them it has. A block by itself is a graph that the next one finds ready, since nothing that
differs between them (weights, keys of random bits, rows of tables) is a Python value on the way. What lies outside the
blocks runs as it is.

The model stays plain: its blocks are compiled for as long as `at_work` lasts, forward and backward, and replays,
monitors and whoever else calls it see the module that it was.
"""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from altgrad.nn import quantizers, unrecorded
from altgrad.nn.experts import ExpertHolder
from altgrad.quantize import Quantizer, Rounding
from altgrad.quantize.engine import quickly, ready_compiler

GRAPHS = 3
"""Of each sort of block: evaluation, a watched step and an unwatched one."""
PLAIN, CAST, BLOCKED, RANDOM = 10.0, 0.6, 0.25, 1.0
"""Seconds to compile a block without casts, and what a cast adds: any, one with block scales, one with random bits
(bench/RESULTS.md, two cores)."""
_KIND: list[Hashable] = []
"""What made the graphs that this process has."""


def blocks_of(model: nn.Module, *, plain: bool = False) -> list[nn.Module]:
    """The repeated blocks with casts: the members of the outermost lists of two or more modules of one class.

    plain: also those without casts.
    """
    found: list[nn.Module] = []
    for child in model.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len(members) > 1 and len({type(each) for each in members}) == 1
        if alike and (plain or any(map(quantizers, members))):
            found += members
        else:
            found += blocks_of(child, plain=plain)
    return found


def compile_seconds(model: nn.Module, how: str) -> float:
    """About how long `compile: model` or `blocks` makes the first step wait, where nothing is in torch's cache."""
    blocks = blocks_of(model) if how == "blocks" else [model]
    kinds = {repr(block): block for block in blocks}  # what a block looks like tells its casts
    return sum(PLAIN + sum(map(_seconds, quantizers(block))) for block in kinds.values())


def _seconds(quantizer: Quantizer) -> float:
    blocked = quantizer.spec.scaling.kind not in ("unscaled", "current", "delayed", "fixed")
    return CAST + BLOCKED * blocked + RANDOM * (quantizer.spec.rounding is Rounding.stochastic)


def run_plainly(model: nn.Module, forward: Callable[[], object]) -> None:
    """Let a model run once in training and once in evaluation, without a trace, before it is compiled.

    That each quantised layer's forward is what runs is proved in a first pass (`altgrad.nn.first_pass`), which looks at
    Python as it happens: compiled it sees nothing, and is one more graph.
    """
    training = model.training
    devices = [p.device for p in (next(model.parameters()),) if p.device.type == "cuda"]
    with torch.random.fork_rng(devices), unrecorded(model):
        model.train()
        forward()
        model.eval()
        with torch.no_grad():
            forward()
    model.train(training)


def is_traceable(model: nn.Module) -> bool:
    """Whether it is one graph. Experts with casts are not: how many rows each gets is known when they run, so they run
    between graphs of the rest."""
    return all(stack.is_one_product for stack in model.modules() if isinstance(stack, ExpertHolder))


def watch_apart(model: nn.Module) -> None:
    """Have the graphs of a model, which Inductor makes, call their watched casts instead of holding them."""
    for quantizer in quantizers(model):
        quantizer.apart = True


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """While the model runs in a step, backward included: its repeated blocks keep their input alone, and run again in
    backward. What counts and what random bits they take then stands in `altgrad.quantize.passes`."""
    blocks: list[Any] = blocks_of(model, plain=True)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def drop_other_graphs(kind: Hashable) -> None:
    """Drop the graphs of this process, except those that the last call with an equal `kind` made.

    Others would count towards torch's limits, and what shapes they had seen would change the graphs to come.
    """
    if kind is None or [kind] != _KIND:
        torch.compiler.reset()
    _KIND[:] = [] if kind is None else [kind]


def other_graphs_to_come() -> None:
    """A run begins whose casts and steps may be compiled, the model not: the next call above drops all."""
    _KIND.clear()


class Regions:
    """The compiled blocks of a model. They are compiled when they first run.

    backend: of torch.compile. plain: also blocks without casts.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor", *, plain: bool = False) -> None:
        options: Any = quickly() if backend == "inductor" else None
        self.compiled: list[tuple[Any, Callable[..., Any]]] = [
            (block, torch.compile(block.forward, fullgraph=is_traceable(block), backend=backend, options=options))
            for block in blocks_of(model, plain=plain)
        ]
        if backend == "inductor":
            watch_apart(nn.ModuleList(blocks_of(model)))
        ready_compiler()
        self._uses = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the blocks run compiled; backward passes of what ran so belong inside."""
        self._uses += 1
        # Compiling makes millions of objects that stay; to look through them for garbage takes an eighth of its time.
        collects = self._uses <= GRAPHS and gc.isenabled()
        if collects:
            gc.disable()
        for block, forward in self.compiled:
            block.forward = forward
        try:
            yield
        finally:
            for block, _ in self.compiled:
                del block.forward
            if collects:
                gc.enable()
