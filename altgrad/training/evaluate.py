"""Evaluation of the weights the forward pass uses: the model as it trains, casts and all, not its masters.

Nothing is recorded on the way: amax histories, random bits and monitors stay as they were.
"""

from collections.abc import Callable

import torch
from torch import nn

from altgrad.data.dataset import Dataset, Evaluator


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str = "validation",
    *,
    compute: str = "float32",
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """The data set's numbers for a whole split, `loss` among them; None if `interrupted` said so on the way.

    Leaves the model in the mode it was in.
    """
    evaluator = dataset.evaluator()
    done = gather(model, dataset, split, evaluator, compute=compute, interrupted=interrupted)
    return evaluator.result() if done else None


@torch.no_grad()
def gather(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    evaluator: Evaluator,
    *,
    compute: str = "float32",
    interrupted: Callable[[], bool] = lambda: False,
) -> bool:
    """Give the evaluator the model's answers to a whole split; False if `interrupted` said so on the way."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for batch in dataset.evaluation(split):
            if interrupted():
                return False
            here = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16"):
                output = model(here.inputs)
            evaluator.add(output, here)
    finally:
        model.train(training)
    return True
