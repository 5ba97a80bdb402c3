"""A run taken up again to look at, not to go on: its model at a checkpoint, its data, and the batch that came next.

Nothing is written, no lock is taken, and no pass counts: the model is run `unrecorded`. A run without a checkpoint is
taken up at step 0, as it began.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.quantize.noise import site_key
from altgrad.store import Checkpoint, Run
from altgrad.store.checkpoints import mismatch
from altgrad.training import RunSpec, checkpoint
from altgrad.training.state import TrainState


@dataclass(frozen=True)
class Restored:
    """A run at a step. ahead: the batches are those of so many steps later."""

    run: Run
    spec: RunSpec
    dataset: Dataset
    state: TrainState
    ahead: int = 0

    @property
    def model(self) -> nn.Module:
        """The quantised model, in training mode."""
        return self.state.model

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.state.step

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """The next step's losses, one for each micro-batch, of this model: the run's own or one like it.

        As `altgrad.training.loop` has them, in float32; their sum is the loss of the step.
        """
        for micro in range(self.spec.accumulate):
            index = (self.step + self.ahead) * self.spec.accumulate + micro
            torch.manual_seed(site_key(self.spec.seed, f"micro-batch {index}"))
            batch = self.dataset.batch(index).to(next(model.parameters()).device)
            yield self.dataset.loss(model(batch.inputs), batch) / self.spec.accumulate


def restore(run: Run, step: int | None = None) -> Restored:
    """The run at the checkpoint of `step`, or at its newest; at its beginning where it has none, and for step 0.

    Raises ValueError, naming what there is, for a step without a usable checkpoint; CheckpointError where none
    verifies.
    """
    spec = RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml"))
    snapshot = _snapshot(run, step)
    dataset = spec.data.build(spec.seed, spec.model.context)
    state = TrainState.build(spec, dataset, torch.device("cpu"), fresh=snapshot is None)
    if snapshot is not None:
        checkpoint.load(state, snapshot)
    state.model.train()
    return Restored(run, spec, dataset, state)


def _snapshot(run: Run, step: int | None) -> Checkpoint | None:
    if step is None:
        return run.checkpoints.newest()
    if step == 0 and 0 not in run.checkpoints.steps():
        return None
    path = run.checkpoints.folder / f"step-{step:08d}"
    known = run.checkpoints.steps()
    if step not in known:
        raise ValueError(f"{run.id} has no checkpoint of step {step}; it has {', '.join(map(str, known)) or 'none'}.")
    if (reason := mismatch(path, step)) is not None:
        raise ValueError(f"{path} cannot be used: {reason}.")
    return Checkpoint(step, path)


def located(target: Path) -> tuple[Run, int | None] | None:
    """The run, and the step, that a path names: a run's folder, or a checkpoint's in it; None for anything else."""
    if Run(target).exists:
        return Run(target), None
    owner = Run(target.parent.parent)
    if target.parent.name == "checkpoints" and target.name.startswith("step-") and owner.exists:
        digits = target.name.removeprefix("step-")
        return (owner, int(digits)) if digits.isdecimal() else None
    return None
