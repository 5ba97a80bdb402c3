"""Evaluation of the weights the forward pass uses: the model as it trains, casts and all, not its masters.

Nothing is recorded on the way: amax histories, random bits and monitors stay as they were.
"""

from collections.abc import Callable

import torch
from torch import nn

from altgrad.data.dataset import Dataset


@torch.no_grad()
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
    device = next(model.parameters()).device
    evaluator = dataset.evaluator()
    training = model.training
    model.eval()
    try:
        for batch in dataset.evaluation(split):
            if interrupted():
                return None
            here = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16"):
                output = model(here.inputs)
            evaluator.add(output, here)
    finally:
        model.train(training)
    return evaluator.result()
