"""A TrainState as files: tensors in safetensors, the rest in JSON. Nothing is pickled, so nothing read can run code.

    model.safetensors       parameters and buffers by name (a tied parameter once), whole where they are sharded
    optimizer.safetensors   state by `<parameter>/<entry>`; of one that is packed its codes and scales
    monitors.safetensors    what monitors remember of weights, by `<kind>/<key>`
    interventions.safetensors   the same of interventions, in runs that have any
    state.json              the record of TrainState

How they get to disk whole (written aside, synced, hashed, renamed) is the store's business.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from altgrad.nn import Processes
from altgrad.optim import is_sharded, laid_as, whole_state, whole_tensor
from altgrad.optim.packed_states import packed_state, unpacked_state
from altgrad.store import Checkpoint, CheckpointError, Checkpoints
from altgrad.training.sharding import holds_shards
from altgrad.training.state import TrainState

INTERVENTIONS = "interventions.safetensors"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def save(state: TrainState, snapshots: Checkpoints) -> Checkpoint:
    """Write a snapshot of the state's step."""
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: _write(dict(_model_tensors(state.model)), path),
        "optimizer.safetensors": lambda path: _write(dict(_optimizer_tensors(state)), path),
        "monitors.safetensors": lambda path: _write(_contiguous(state.monitor_tensors()), path),
        "state.json": lambda path: _write_record(state, path),
    }
    if state.roster.members:
        files[INTERVENTIONS] = lambda path: _write(_contiguous(state.intervention_tensors()), path)
    return snapshots.write(state.step, files)


def save_together(state: TrainState, snapshots: Checkpoints, processes: Processes) -> None:
    """Write a snapshot, which is the first process's to do. Where the model is sharded all must call it."""
    if processes.is_first:
        save(state, snapshots)
    elif holds_shards(state.model):
        for _ in (*_model_tensors(state.model), *_optimizer_tensors(state)):
            """The others give their parts, tensor by tensor, in the order in which it writes them."""


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
        expected = dict(_distinct(state.model))
        if tensors.keys() != expected.keys():
            raise KeyError(", ".join(sorted(tensors.keys() ^ expected.keys())[:3]))
        laid = {name: laid_as(tensor.to(expected[name].device), expected[name]) for name, tensor in tensors.items()}
        state.model.load_state_dict(laid, strict=False)
        _load_optimizer(state, load_file(snapshot.file("optimizer.safetensors")))
        kept = load_file(snapshot.file(INTERVENTIONS)) if state.roster.members else {}
        state.restore(saved, load_file(snapshot.file("monitors.safetensors")), kept)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{snapshot.path} does not fit this run's spec: {str(error).splitlines()[0]}.") from None


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What of the model is saved, whole, tensor by tensor."""
    return ((name, whole_tensor(tensor).contiguous()) for name, tensor in _distinct(model))


def _distinct(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state_dict, with tensors that share memory under their first name only (safetensors wants it so)."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A part may be empty, and all processes must find the same.
        memory = id(tensor) if is_sharded(tensor) else tensor.data_ptr()
        if tensor.numel() and memory in seen:
            continue
        seen.add(memory)
        yield name, tensor


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _optimizer_tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    for group, casts in zip(state.optimizer.param_groups, state.optimizer.states, strict=True):
        for name, p in zip(group["param_names"], group["params"], strict=True):
            for entry, tensor in packed_state(whole_state(state.optimizer.state[p]), casts).items():
                yield f"{name}/{entry}", tensor


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
            own[entry] = tensor if entry == "step" else laid_as(tensor.to(p.device), p)


def _write_record(state: TrainState, path: Path) -> None:
    path.write_text(json.dumps(state.record()))
