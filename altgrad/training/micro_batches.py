"""How a micro-batch is made, once for training, held-out evaluation, replay and diagnosis; and a step's gradients.

A micro-batch is a function of the seed and its index alone: so it can be asked for again in the same step, by monitors
that replay it, any process may take it, and `diagnose` sees long afterwards what the run saw.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from altgrad.data.dataset import Dataset
from altgrad.nn import check_passes, seek
from altgrad.optim import is_sharded, make_dense, own_part
from altgrad.quantize.engine import ready_compiler
from altgrad.quantize.noise import site_key
from altgrad.training.gradient_sums import GradientCasts, GradientSums
from altgrad.training.regions import (
    Regions,
    drop_other_graphs,
    is_traceable,
    other_graphs_to_come,
    recomputing,
    run_plainly,
    watch_apart,
)
from altgrad.training.run import RunSpec
from altgrad.training.state import TrainState


def autocast(compute: str, device: torch.device) -> torch.autocast:
    """The type that products run in, as a run's `compute` says, for the length of a block."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16")


@dataclass(frozen=True)
class MicroBatches:
    """A run's micro-batches: `spec.accumulate` of them make a step."""

    spec: RunSpec
    dataset: Dataset

    def loss(
        self, step: int, micro: int, forward: Callable[[Tensor], Tensor], device: torch.device, compute: str = ""
    ) -> tuple[Tensor, int]:
        """One micro-batch's share of the loss of the step after `step`, and its tokens; the same at each call.

        compute: instead of the spec's.
        """
        index = step * self.spec.accumulate + micro
        # For dropout; whatever else draws would also be a function of the seed and the step alone.
        torch.manual_seed(site_key(self.spec.seed, f"micro-batch {index}"))
        batch = self.dataset.batch(index)
        tokens, batch = batch.tokens, batch.to(device)
        with autocast(compute or self.spec.compute, device):
            output = forward(batch.inputs)
        return self.dataset.loss(output, batch) / self.spec.accumulate, tokens

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to take gradients of, which `unscale` then takes the factor off."""
        return loss * self.spec.loss_scale.factor

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Take the loss scale off gradients, in place."""
        if self.spec.loss_scale.factor != 1:
            torch._foreach_mul_(list(gradients), 1 / self.spec.loss_scale.factor)


class Gradients:
    """Fills `.grad` of a model's parameters. tokens: how many the last step's micro-batches had, on all processes."""

    def __init__(self, spec: RunSpec, dataset: Dataset, state: TrainState) -> None:
        self.spec, self.state = spec, state
        self.micro_batches = MicroBatches(spec, dataset)
        self.processes = state.watch.processes
        self.device = next(state.model.parameters()).device
        self.tokens = 0
        self.trained: list[torch.nn.Parameter] | None = None
        self.sums: GradientSums | None = None
        if spec.gradients != GradientCasts():
            trained = {name: p for name, p in state.model.named_parameters() if p.requires_grad}
            self.sums = GradientSums(
                spec.gradients, trained, state.optimizer.state, seed=spec.bits_seed, processes=self.processes
            )
        self.forward: Callable[[Tensor], Tensor] = state.model
        self.regions: Regions | None = None
        if spec.compile:
            run_plainly(state.model, lambda: self.micro_batches.loss(0, 0, state.model, self.device))
        self.recompile()

    def recompile(self) -> None:
        """Take the model as it is now, in the graphs that the spec asks for. Call it when its formats have changed.

        A run that differs from the one before it in this process by seed, salt, rate and name alone finds its graphs
        ready. All others are dropped, as are those of formats that are gone: they count towards torch's limits.
        """
        if self.spec.compile:
            ready_compiler()
            drop_other_graphs(self._kind())
        else:
            other_graphs_to_come()
        if self.spec.compile == "model":
            watch_apart(self.state.model)
            self.forward = torch.compile(self.state.model, fullgraph=is_traceable(self.state.model))
        elif self.spec.compile == "blocks":
            self.regions = Regions(self.state.model)

    def _kind(self) -> Hashable:
        """What decides the graphs, and shapes in the order in which they come. None: no other run's serve, since
        batches of several shapes leave graphs behind that would also serve the first one, with other last bits."""
        if self.spec.data.answers != "token":
            return None
        tree = self.spec.tree()
        tree["optimizer"].pop("lr", None)
        told = {key: value for key, value in tree.items() if key not in ("name", "seed", "salt")}
        return json.dumps(told, sort_keys=True), repr(self.state.model), str(self.device)

    def compiled(self) -> AbstractContextManager[None]:
        """While the model runs in a step, backward included: its blocks are compiled, or computed again in backward, if
        the spec says so."""
        if self.spec.recompute == "blocks":
            return recomputing(self.state.model)
        return nullcontext() if self.regions is None else self.regions.at_work()

    def evaluation(self) -> AbstractContextManager[None]:
        """While it is evaluated. One graph serves batches of one shape, as those of text are; `compile: model` keeps
        the plain model for evaluation."""
        return nullcontext() if self.regions is None or self.spec.data.answers != "token" else self.regions.at_work()

    def backward(self) -> Tensor:
        """Gradients of the mean loss over all micro-batches, which is returned."""
        state, spec = self.state, self.spec
        total = torch.zeros((), device=self.device)
        self.tokens = 0
        for micro in self.processes.share_of(spec.accumulate):
            if self.processes.size > 1:
                seek(state.model, micro)
            with state.watch.micro_batch(), self.compiled():
                loss, tokens = self.micro_batches.loss(state.step, micro, self.forward, self.device)
                torch.autograd.backward(self.micro_batches.scaled(loss))
            if self.sums is not None:
                self.sums.take(state.step, micro)
            self.tokens += tokens
            total += loss.detach()
        if self.sums is not None:
            self.sums.give(state.step)
        make_dense(state.model.parameters())  # norms, clipping, sums over processes and most optimizers need them so
        self.micro_batches.unscale(own_part(p.grad) for p in state.model.parameters() if p.grad is not None)
        return total if self.processes.size == 1 else self.together(total)

    def together(self, loss: Tensor) -> Tensor:
        """Add the processes' gradients up, in place, and their tokens; returns the step's loss."""
        parameters = [p for p in self.state.model.parameters() if p.requires_grad]
        if self.trained is None:  # decided at the first step: one without a gradient anywhere keeps none
            having = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
            self.processes.add([having])
            self.trained = [p for p, count in zip(parameters, having.tolist(), strict=True) if count]
            check_passes(self.state.model, self.processes.share_of(self.spec.accumulate)[-1] + 1)
        seek(self.state.model, self.spec.accumulate)
        for p in self.trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if self.spec.gradients.reduce is None:  # sharded ones are sums over processes already
            self.processes.add([p.grad for p in self.trained if p.grad is not None and not is_sharded(p.grad)])
        numbers = torch.stack([loss.to(torch.float64), loss.new_tensor(self.tokens, dtype=torch.float64)])
        self.processes.add([numbers])
        self.tokens = int(numbers[1])
        return numbers[0].to(loss.dtype)

    def replayed(self) -> Iterator[Tensor]:
        """The step's losses once more, in eager and in float32: for monitors that look at whole tensors."""
        for micro in self.processes.share_of(self.spec.accumulate):
            if self.processes.size > 1:
                seek(self.state.model, micro)
            yield self.micro_batches.loss(self.state.step, micro, self.state.model, self.device, "float32")[0]
