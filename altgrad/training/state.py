"""TrainState: everything that must survive a restart, and the parts a step works with.

Randomness needs no saving: data order and random bits are functions of the seed and the step, and the generator that
dropout draws from is seeded anew in each micro-batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.monitors import Watch
from altgrad.nn import quantize_model, quantizers, weight_quantizers
from altgrad.optim import Optimizer, parameter_groups
from altgrad.spec import LocatedError
from altgrad.training.initial import initialise
from altgrad.training.run import RunSpec


@dataclass
class TrainState:
    """A run in progress. `step` counts finished optimizer steps."""

    model: nn.Module
    optimizer: Optimizer
    watch: Watch
    step: int = 0
    tokens: int = 0
    evaluated: int = -1
    """The last step after which the validation split was evaluated."""
    seconds: float = 0.0
    """Wall time of earlier sittings."""

    @classmethod
    def build(cls, spec: RunSpec, dataset: Dataset, device: torch.device, *, fresh: bool = True) -> "TrainState":
        """Step 0 of a run; unless `fresh`, init_from is left unread, since a checkpoint follows.

        The weights are drawn on the CPU whatever the device, so they are the same everywhere. Raises LocatedError, with
        the location in the run spec, for rules and groups that decide nothing and for weights that do not fit.
        """
        torch.manual_seed(spec.seed)
        model = build_model(spec, dataset.vocabulary, dataset.outputs)
        if spec.init_from is not None and fresh:
            try:
                initialise(model, spec.model, spec.init_from)
            except ValueError as error:
                raise LocatedError(("init_from",), str(error)) from None
        model.to(device)
        for quantizer in quantizers(model):
            quantizer.engine = "compiled" if spec.engine == "compiled" else "eager"
        optimizer = build_optimizer(spec, model)
        return cls(model, optimizer, Watch(spec.monitors, model, optimizer))

    def record(self) -> dict[str, Any]:
        """What is not a tensor, as plain JSON data."""
        return {
            "step": self.step, "tokens": self.tokens, "evaluated": self.evaluated, "seconds": self.seconds,
            "monitors": self.watch.state(),
        }  # fmt: skip

    def restore(self, record: dict[str, Any]) -> None:
        """Take back what `record` gave."""
        self.step, self.tokens, self.evaluated = record["step"], record["tokens"], record["evaluated"]
        self.seconds = record["seconds"]
        self.watch.restore(record["monitors"])


def build_optimizer(spec: RunSpec, model: nn.Module) -> Optimizer:
    """The optimizer over the model's parameters, which are put on the grids of their storage.

    Raises LocatedError, with the location in the run spec, for groups and storage rules that decide nothing or do not
    go together with the optimizer.
    """
    try:
        groups = parameter_groups(model, spec.optimizer, spec.storage)
    except LocatedError as error:
        raise (error if error.location[0] == "storage" else error.within("optimizer")) from None
    try:
        optimizer = spec.optimizer.build(groups, seed=spec.seed)
    except ValueError as error:
        raise LocatedError(("optimizer",), str(error)) from None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    optimizer.casts = {parameters[name]: quantizer for name, quantizer in weight_quantizers(model).items()}
    return optimizer


def build_model(spec: RunSpec, vocabulary: int, outputs: int) -> nn.Module:
    """The quantised model, under whatever default device is in force (also `meta`)."""
    model = spec.model.build(vocabulary, outputs)
    try:
        return quantize_model(model, spec.precision, seed=spec.seed)
    except LocatedError as error:
        raise error.within("precision") from None
    except ValueError as error:
        raise LocatedError(("precision",), str(error)) from None
