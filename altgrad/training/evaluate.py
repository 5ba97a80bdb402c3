"""Evaluation of the weights the forward pass uses: the model as it trains, casts and all, not its masters.

Nothing is recorded on the way: amax histories, random bits and monitors stay as they were. Whatever is chosen by
looking at answers (a classifier's threshold) is chosen on the validation split and taken over to the others.

A run may look at the first batches of the validation split alone while it trains (`evaluate_limit`); `evaluate_run`
looks at all.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import nn

from altgrad.data.dataset import Dataset, Evaluator
from altgrad.progress import progress
from altgrad.store import Run
from altgrad.training.micro_batches import autocast
from altgrad.training.restore import restore

__all__ = ["Evaluation", "evaluate", "evaluate_run"]


@dataclass(frozen=True)
class Evaluation:
    """The numbers of validation and of the split, the split's table of classes (empty for text), and the step."""

    step: int
    validation: dict[str, float]
    found: dict[str, float]
    table: list[dict[str, Any]]


def evaluate_run(run: Run, split: str = "test", device: torch.device | str = "cpu") -> Evaluation:
    """Evaluate a run's newest checkpoint on a split.

    ValueError for a run without a checkpoint and a split that is not there, and as `restore` says.
    """
    restored = restore(run, run.newest_checkpoint(), device)
    dataset, spec = restored.dataset, restored.spec
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    validation = dataset.evaluator()
    _gather(restored.model, dataset, "validation", validation, spec.compute)
    if split == "validation":
        return Evaluation(restored.step, validation.result(), validation.result(), validation.table())
    found = dataset.evaluator(validation)
    _gather(restored.model, dataset, split, found, spec.compute)
    return Evaluation(restored.step, validation.result(), found.result(), found.table())


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str = "validation",
    *,
    compute: str = "float32",
    limit: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The data set's numbers for a split, `loss` among them; None if `interrupted` said so on the way.

    limit: how many of its batches are looked at, from the first on; None: all. Leaves the model in the mode it was in.
    """
    evaluator = dataset.evaluator()
    done = _gather(model, dataset, split, evaluator, compute, limit, interrupted)
    return evaluator.result() if done else None


@torch.no_grad()
def _gather(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    evaluator: Evaluator,
    compute: str,
    limit: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> bool:
    """Give the evaluator the model's answers to a split, or to its first `limit` batches.

    False if `interrupted` said so on the way.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    phase = "validating" if split == "validation" else f"evaluating on {split}"
    try:
        batches = dataset.evaluation(split)
        total = length_hint(batches) if limit is None else min(limit, length_hint(batches))
        for number, batch in enumerate(itertools.islice(batches, limit)):
            progress(phase, number, total)
            if interrupted():
                return False
            here = batch.to(device)
            with autocast(compute, device):
                output = model(here.inputs)
            evaluator.add(output, here)
    finally:
        model.train(training)
    return True
