"""A run taken up again at a checkpoint: to go on, to be evaluated or exported, or to have its next step looked at.

One definition for all of them, so that none sees another run than the one that trained. Only `resume` writes anything;
here no lock is taken and no pass counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.data.tokens import on_progress
from altgrad.progress import progress
from altgrad.spec import LocatedError
from altgrad.store import Checkpoint, Run, RunStore
from altgrad.store.checkpoints import mismatch
from altgrad.training import checkpoint
from altgrad.training.carry import carry
from altgrad.training.micro_batches import MicroBatches
from altgrad.training.run import RunSpec
from altgrad.training.state import TrainState
from altgrad.training.twin import Twin

__all__ = ["Restored", "branch_point", "branched", "located", "restore", "resume", "same_data", "spec_of", "taken_up"]


@dataclass(frozen=True)
class Restored:
    """A run at a step. spec: what it is at that step, see `RunSpec.at`. ahead: the batches are those of so many steps
    later."""

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

    @property
    def micro_batches(self) -> MicroBatches:
        """As the run makes them."""
        return MicroBatches(self.spec, self.dataset)

    def losses(self, model: nn.Module) -> Iterator[Tensor]:
        """The next step's losses, one for each micro-batch, of this model: the run's own or one like it.

        Their sum is the loss of the step; gradients are to be taken of `micro_batches.scaled` of each.
        """
        device = next(model.parameters()).device
        for micro in range(self.spec.accumulate):
            yield self.micro_batches.loss(self.step + self.ahead, micro, model, device)[0]


def restore(run: Run, at: Checkpoint | int | None = None, device: torch.device | str = "cpu") -> Restored:
    """The run at a checkpoint or that of a step, or at its newest; at its beginning where it has none, and for step 0.

    Raises ValueError, naming what there is, for a step without a usable checkpoint, for a device that is not here, and
    where the data cannot be read or is no longer what the run was made with; CheckpointError where no checkpoint
    verifies or the one meant does not fit the spec.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device {device} is not here; name another, such as cpu.") from None
    spec, snapshot = spec_of(run), _snapshot(run, at)
    dataset = read_data(spec)
    same_data(run, dataset)
    progress("reading the checkpoint")
    state = taken_up(run, spec, dataset, torch.device(device), snapshot)
    state.model.train()
    return Restored(run, state.spec, dataset, state)


def taken_up(
    run: Run,
    spec: RunSpec,
    dataset: Dataset,
    device: torch.device,
    snapshot: Checkpoint | None,
    twin: Twin | None = None,
    *,
    sharded: bool = False,
) -> TrainState:
    """The state of a run at a checkpoint of its own; without one as it begins, which may be where it branches off."""
    if snapshot is None and spec.branch is not None:
        return branched(spec, RunStore(run.path.parent.parent), dataset, device, twin, sharded=sharded)
    return resume(spec, dataset, device, snapshot, twin, sharded=sharded)


def resume(
    spec: RunSpec,
    dataset: Dataset,
    device: torch.device,
    snapshot: Checkpoint | None,
    twin: Twin | None = None,
    *,
    sharded: bool = False,
) -> TrainState:
    """The state at a checkpoint; without one as it begins. Errors as `TrainState.build` and `checkpoint.load`."""
    with spec.in_phase(spec.phase_of(0 if snapshot is None else snapshot.step)) as now:
        now = now if snapshot is None else _changed(now, snapshot)
        fresh = snapshot is None and spec.branch is None
        state = TrainState.build(now, dataset, device, fresh=fresh, twin=twin, sharded=sharded)
    if snapshot is not None:
        checkpoint.load(state, snapshot)
    return state


def _changed(spec: RunSpec, snapshot: Checkpoint) -> RunSpec:
    """The spec with what interventions had made of its precision."""
    kept = checkpoint.record(snapshot).get("interventions", {})
    for each in spec.interventions:
        if (policy := each.entered(kept.get(each.kind, {}))) is not None:
            spec = spec.with_rules(policy)
    return spec


def branch_point(spec: RunSpec, store: RunStore, dataset: Dataset) -> tuple[RunSpec, Checkpoint]:
    """The spec of the run that this one branches from, and its checkpoint. ValueError where it cannot be gone on from.

    Raises ValueError too where the data is no longer what that run was made with.
    """
    assert spec.branch is not None
    run = store.find(spec.branch.run)
    theirs, snapshot = spec_of(run), _snapshot(run, spec.branch.step)
    assert snapshot is not None, "a branch begins after step 1 or later"
    if theirs.data == spec.data:
        same_data(run, dataset)
    changing = [each.kind for each in (*theirs.interventions, *spec.interventions) if each.changes_formats]
    if changing:
        raise ValueError(f"{changing[0]} changes formats on its way, of which a branch knows nothing; leave it out.")
    return theirs, snapshot


def branched(
    spec: RunSpec,
    store: RunStore,
    dataset: Dataset,
    device: torch.device,
    twin: Twin | None = None,
    *,
    sharded: bool = False,
) -> TrainState:
    """The state at the step of another run that the spec branches from, as this spec has it from there on.

    Raises LocatedError where there is none, see `branch_point`, and for another model.
    """
    try:
        theirs, snapshot = branch_point(spec, store, dataset)
    except ValueError as error:
        raise LocatedError(("branch",), str(error)) from None
    progress("reading the checkpoint")
    old = resume(theirs, dataset, device, snapshot, sharded=sharded)
    state = carry(old, spec.at(snapshot.step), dataset, twin=twin)
    state.evaluated, state.seconds, state.logged = -1, 0.0, {}
    return state


def read_data(spec: RunSpec) -> Dataset:
    """The run's data, with progress told. ValueError or OSError where it cannot be read."""
    progress("reading the data")
    token = on_progress.set(on_progress.get() or (lambda done, total: progress("tokenising", done, total)))
    try:
        return spec.data.build(spec.seed, spec.model.context)
    finally:
        on_progress.reset(token)


def spec_of(run: Run) -> RunSpec:
    """The resolved spec that the run was made with."""
    return RunSpec.parse(run.spec_text(), str(run.path / "spec.yaml"))


def same_data(run: Run, dataset: Dataset) -> None:
    """ValueError if the data's content is not what the run was made with, as far as the run recorded it."""
    recorded = run.meta().get("data")
    before = recorded.get("sha256") if isinstance(recorded, dict) else None
    now = dataset.describe().get("sha256")
    if before is not None and now != before:
        raise ValueError(
            f"{dataset.describe().get('source')} is not what run {run.id} was made with (sha256 {str(before)[:12]}..., "
            f"now {str(now)[:12]}...); put the file back, or start over with --resume never."
        )


def located(target: Path) -> tuple[Run, int | None] | None:
    """The run, and the step, that a path names: a run's folder, or a checkpoint's in it; None for anything else."""
    if Run(target).exists:
        return Run(target), None
    owner = Run(target.parent.parent)
    if target.parent.name == "checkpoints" and target.name.startswith("step-") and owner.exists:
        digits = target.name.removeprefix("step-")
        return (owner, int(digits)) if digits.isdecimal() else None
    return None


def _snapshot(run: Run, step: Checkpoint | int | None) -> Checkpoint | None:
    if step is None:
        return run.checkpoints.newest()
    if isinstance(step, Checkpoint):
        return step
    if step == 0 and 0 not in run.checkpoints.steps():
        return None
    path = run.checkpoints.folder / f"step-{step:08d}"
    known = run.checkpoints.steps()
    if step not in known:
        raise ValueError(f"{run.id} has no checkpoint of step {step}; it has {', '.join(map(str, known)) or 'none'}.")
    if (reason := mismatch(path, step)) is not None:
        raise ValueError(f"{path} cannot be used: {reason}.")
    return Checkpoint(step, path)
