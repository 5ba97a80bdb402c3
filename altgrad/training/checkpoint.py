"""A TrainState as files: tensors in safetensors, the rest in JSON. Nothing is pickled, so nothing read can run code.

    model.safetensors       parameters and buffers by name (a tied parameter once)
    optimizer.safetensors   state by `<parameter>/<entry>`; of one that is packed its codes and scales
    monitors.safetensors    what monitors remember of weights, by `<kind>/<key>`
    interventions.safetensors   the same of interventions, in runs that have any
    state.json              the record of TrainState

How they get to disk whole (written aside, synced, hashed, renamed) is the store's business.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from altgrad.optim.packed_states import packed_state, unpacked_state
from altgrad.store import Checkpoint, CheckpointError, Checkpoints
from altgrad.training.state import TrainState

INTERVENTIONS = "interventions.safetensors"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save(state: TrainState, snapshots: Checkpoints) -> Checkpoint:
    """Write a snapshot of the state's step."""
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: _write(_model_tensors(state.model), path),
        "optimizer.safetensors": lambda path: _write(_optimizer_tensors(state), path),
        "monitors.safetensors": lambda path: _write(_contiguous(state.monitor_tensors()), path),
        "state.json": lambda path: _write_record(state, path),
    }
    if state.roster.members:
        files[INTERVENTIONS] = lambda path: _write(_contiguous(state.intervention_tensors()), path)
    return snapshots.write(state.step, files)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """OSError where the library, which has errors of its own, met the system's.

    The library makes files that only their owner can read. Ours are for whom the user's umask says, as all of a run.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)
    except SafetensorError as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None


def record(snapshot: Checkpoint) -> dict[str, Any]:
    """What of a snapshot is no tensor. CheckpointError where that cannot be read."""
    try:
        found: dict[str, Any] = json.loads(snapshot.file("state.json").read_text())
        return found
    except ValueError as error:
        raise CheckpointError(f"{snapshot.path} does not fit this run's spec: {error}.") from None


def load(state: TrainState, snapshot: Checkpoint) -> None:
    """Bring a freshly built state to the snapshot's step. Raises CheckpointError if it belongs to another spec."""
    try:
        saved = record(snapshot)
        state.prepare(saved)
        tensors = load_file(snapshot.file("model.safetensors"))
        expected = _model_tensors(state.model)
        if tensors.keys() != expected.keys():
            raise KeyError(", ".join(sorted(tensors.keys() ^ expected.keys())[:3]))
        state.model.load_state_dict(tensors, strict=False)
        _load_optimizer(state, load_file(snapshot.file("optimizer.safetensors")))
        kept = load_file(snapshot.file(INTERVENTIONS)) if state.roster.members else {}
        state.restore(saved, load_file(snapshot.file("monitors.safetensors")), kept)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{snapshot.path} does not fit this run's spec: {str(error).splitlines()[0]}.") from None


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, with tensors that share memory kept under their first name only (safetensors wants it so)."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        found[name] = tensor.contiguous()
    return found


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}/{entry}": tensor
        for group, casts in zip(state.optimizer.param_groups, state.optimizer.states, strict=True)
        for name, p in zip(group["param_names"], group["params"], strict=True)
        for entry, tensor in packed_state(state.optimizer.state[p], casts).items()
    }


def _load_optimizer(state: TrainState, tensors: dict[str, Tensor]) -> None:
    owners = {
        name: (p, casts)
        for group, casts in zip(state.optimizer.param_groups, state.optimizer.states, strict=True)
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    found: dict[str, dict[str, Tensor]] = {name: {} for name in owners}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        found[name][entry] = tensor
    for name, (p, casts) in owners.items():  # what a fresh state has and the saved one had not is not part of it
        own = state.optimizer.state[p]
        own.clear()
        for entry, tensor in unpacked_state(found[name], casts, p.shape).items():
            # Step counts live on the CPU, so that reading them never waits for the device.
            own[entry] = tensor if entry == "step" else tensor.to(p.device)


def _write_record(state: TrainState, path: Path) -> None:
    path.write_text(json.dumps(state.record()))
