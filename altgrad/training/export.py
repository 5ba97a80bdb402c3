"""A trained run as a folder of Hugging Face's libraries."""

from pathlib import Path

from altgrad.store import Run
from altgrad.training.held_out import restored

__all__ = ["export"]


def export(run: Run, folder: Path) -> int:
    """Write the newest checkpoint of a run of kind `hf` to a new folder; returns the checkpoint's step.

    ValueError for a run without a checkpoint, for models that have no such form and for a folder in use.
    """
    spec, dataset, model, step = restored(run)
    labels = getattr(dataset, "classes", None)
    spec.model.export(model, folder, labels)
    return step
