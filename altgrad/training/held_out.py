"""A finished run judged on a split it never looked at.

Whatever is chosen by looking at answers (a classifier's threshold) is chosen on the validation split and taken over.
The weights are those of the newest checkpoint, as the forward uses them: casts and all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.store import CheckpointError, Run
from altgrad.training import checkpoint
from altgrad.training.evaluate import gather
from altgrad.training.run import RunSpec
from altgrad.training.state import TrainState

__all__ = ["Judged", "judge", "restored"]


@dataclass(frozen=True)
class Judged:
    """The numbers of validation and of the split, the split's table of classes (empty for text), and the step."""

    step: int
    validation: dict[str, float]
    found: dict[str, float]
    table: list[dict[str, Any]]


def restored(run: Run, device: torch.device | str = "cpu") -> tuple[RunSpec, Dataset, nn.Module, int]:
    """A run's spec, data, and model at its newest checkpoint, with the checkpoint's step.

    ValueError where it has none, where its data cannot be read or is no longer what it was trained on, and for a device
    that is not here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {device} is not here; name another, such as cpu.") from None
    spec = RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml"))
    newest = run.checkpoints.newest()
    if newest is None:
        raise ValueError(f"{run.path} is a run without a checkpoint; let it reach one first.")
    dataset = spec.data.build(spec.seed, spec.model.context)
    same_data(run, dataset)
    state = TrainState.build(spec, dataset, torch.device(device), fresh=False)
    try:
        checkpoint.load(state, newest)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    return spec, dataset, state.model, state.step


def same_data(run: Run, dataset: Dataset) -> None:
    """ValueError if the data's content is not what the run was made with, as far as the run recorded it."""
    recorded = run.meta().get("data")
    before = recorded.get("sha256") if isinstance(recorded, dict) else None
    now = dataset.describe().get("sha256")
    if before is not None and now != before:
        raise ValueError(
            f"{dataset.describe().get('source')} is not what run {run.id} was made with (sha256 {str(before)[:12]}..., "
            f"now {str(now)[:12]}...); put the file back, or start anew with --resume never."
        )


def judge(run: Run, split: str = "test", device: torch.device | str = "cpu") -> Judged:
    """Evaluate a run's newest checkpoint. ValueError as `restored` says, and for a split that is not there."""
    spec, dataset, model, step = restored(run, device)
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    validation = dataset.evaluator()
    gather(model, dataset, "validation", validation, compute=spec.compute)
    if split == "validation":
        return Judged(step, validation.result(), validation.result(), validation.table())
    found = dataset.evaluator(validation)
    gather(model, dataset, split, found, compute=spec.compute)
    return Judged(step, validation.result(), found.result(), found.table())
