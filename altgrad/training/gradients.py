"""A step's gradients: its micro-batches forward and backward, summed over those who share them.

A micro-batch is a function of the seed and its index alone: so it can be asked for again in the same step, by monitors
that replay it, and any process may take it.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from altgrad.data.dataset import Dataset
from altgrad.nn import check_passes, seek
from altgrad.optim import make_dense
from altgrad.quantize.noise import site_key
from altgrad.training.run import RunSpec
from altgrad.training.state import TrainState


class Gradients:
    """Fills `.grad` of a model's parameters. tokens: how many the last step's micro-batches had, on all processes."""

    def __init__(self, spec: RunSpec, dataset: Dataset, state: TrainState) -> None:
        self.spec, self.dataset, self.state = spec, dataset, state
        self.processes = state.watch.processes
        self.device = next(state.model.parameters()).device
        self.tokens = 0
        self.trained: list[torch.nn.Parameter] | None = None
        # Evaluation keeps the plain model: so there are two graphs, watched and unwatched, and no third.
        self.forward = self._compiled()

    def recompile(self) -> None:
        """Call it when formats of the model have changed."""
        self.forward = self._compiled()

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """The model as it is now, in one graph if the spec says so.

        Graphs made before are dropped: they are of formats that are gone, they count towards torch's limit of 8, and
        beside them torch 2.13 takes a format that changed for a size that varies and fails on it.
        """
        if self.spec.compile != "model":
            return self.state.model
        torch.compiler.reset()
        return torch.compile(self.state.model, fullgraph=True)

    def backward(self) -> Tensor:
        """Gradients of the mean loss over all micro-batches, which is returned."""
        state, spec = self.state, self.spec
        total = torch.zeros((), device=self.device)
        self.tokens = 0
        for micro in self.processes.share_of(spec.accumulate):
            if self.processes.size > 1:
                seek(state.model, micro)
            with state.watch.micro_batch():
                loss, tokens = self.loss(micro, self.forward, spec.compute)
                torch.autograd.backward(loss * spec.loss_scale.factor)
            self.tokens += tokens
            total += loss.detach()
        make_dense(state.model.parameters())  # norms, clipping, sums over processes and most optimizers need them so
        if spec.loss_scale.factor != 1:
            torch._foreach_mul_(
                [p.grad for p in state.model.parameters() if p.grad is not None], 1 / spec.loss_scale.factor
            )
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
        self.processes.add([p.grad for p in self.trained if p.grad is not None])
        numbers = torch.stack([loss.to(torch.float64), loss.new_tensor(self.tokens, dtype=torch.float64)])
        self.processes.add([numbers])
        self.tokens = int(numbers[1])
        return numbers[0].to(loss.dtype)

    def loss(self, micro: int, forward: Callable[[Tensor], Tensor], compute: str) -> tuple[Tensor, int]:
        """One micro-batch's share of the step's loss, and its tokens; the same every time it is asked for in a step."""
        index = self.state.step * self.spec.accumulate + micro
        # For dropout; whatever else draws would also be a function of the seed and the step alone.
        torch.manual_seed(site_key(self.spec.seed, f"micro-batch {index}"))
        batch = self.dataset.batch(index)
        tokens, batch = batch.tokens, batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=compute == "bfloat16"):
            output = forward(batch.inputs)
        return self.dataset.loss(output, batch) / self.spec.accumulate, tokens

    def replayed(self) -> Iterator[Tensor]:
        """The step's losses once more, in eager and in float32: for monitors that look at whole tensors."""
        for micro in self.processes.share_of(self.spec.accumulate):
            yield self.loss(micro, self.state.model, "float32")[0]
