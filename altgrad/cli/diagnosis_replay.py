"""The two questions of `altgrad diagnose` that take a run's step again: --replay and --against."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from altgrad.diagnosis.attribution import BATCHES, mean_attribution
from altgrad.diagnosis.bisection import bisect, require_alike, siblings_of
from altgrad.diagnosis.departure import departure
from altgrad.diagnosis.variants import variants
from altgrad.formats import FloatFormat
from altgrad.store import Run
from altgrad.training import RunSpec
from altgrad.training.restore import Restored

Json = dict[str, Any]
_LOSS = ("train/loss",)


def replayed(restored: Restored, formats: Sequence[FloatFormat]) -> Json:
    """The run's next step under other casts, and what is owed to each of its own."""
    run = restored.run
    return {
        "name": f"{run.project}/{run.id}", "kind": "replay", "path": str(run.path), "step": restored.step,
        "variants": [asdict(each) for each in variants(restored, formats)],
        "attribution": [asdict(each) for each in mean_attribution(restored)],
        "attribution_batches": BATCHES,
    }  # fmt: skip


def against(suspect: Run, reference: Run) -> Json:
    """Where the suspect parts from the reference, and the casts that part them."""
    specs = [RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml")) for run in (reference, suspect)]
    require_alike(*specs)
    torch.set_num_threads(specs[1].threads or torch.get_num_threads())
    family = [run.metrics(_LOSS) for run in siblings_of(reference)]
    parting = departure(reference.metrics(_LOSS), suspect.metrics(_LOSS), family)
    found = bisect(reference, suspect, parting.step)
    return {
        "name": f"{suspect.project}/{suspect.id} against {reference.project}/{reference.id}", "kind": "against",
        "path": str(suspect.path), "step": found.replayed_step,
        "departure": asdict(parting), "bisection": asdict(found),
    }  # fmt: skip
