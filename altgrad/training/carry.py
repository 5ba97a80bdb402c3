"""A run's state carried over to another spec at the end of a step: a phase's end, or a branch's beginning.

What both specs say alike goes on as if nothing had happened, to the bit: weights, moments, a cast that is the same cast
(with its amax history and its place in the random bits), a storage that is the same storage, what monitors remember.
What the new spec says otherwise begins at this step: a new cast without history, its random bits those of the steps
to come; a new storage from the weight as it is, with what `kahan` owes it; a new kind of optimizer without moments, and
other interventions without their state, which `TrainState.notices` says.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.nn import PrecisionPolicy, use_engine
from altgrad.optim import Optimizer, Storage, own_part
from altgrad.quantize import Quantizer
from altgrad.quantize.counted import Counted
from altgrad.quantize.transform import Transform
from altgrad.spec import LocatedError
from altgrad.spec.messages import listed
from altgrad.training.run import RunSpec
from altgrad.training.sharding import holds_shards, shard
from altgrad.training.state import TrainState, build_model, plain_states, state_tensors, together
from altgrad.training.twin import Twin

_IN_GRID_UNITS = {"rung", "travel"}
"""What an optimizer tracks of a grid, which is another one after a change of storage."""


def carry(old: TrainState, spec: RunSpec, dataset: Dataset, *, twin: Twin | None = None) -> TrainState:
    """The state under another spec, of the same parameters; `old` is not to be used afterwards.

    Raises LocatedError for a model whose parameters are others, and as `TrainState.build`.
    """
    device = next(old.model.parameters()).device
    torch.manual_seed(spec.seed)
    made = build_model(spec, dataset.vocabulary, dataset.outputs)
    check_parameters(old.model, made)
    model = shard(made, device) if holds_shards(old.model) else made.to(device)
    kept = _casts_kept(old.model, model, old.step)
    tensors = old.model.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            owner = _owner(name, kept)
            if name in tensors and (not owner or kept[owner]):
                tensor.copy_(tensors[name])
        owed = _weights(old.optimizer)
        for name, p in model.named_parameters():
            if name in owed:
                p.copy_(owed[name][2])
    state = TrainState.around(model, spec, dataset, twin=twin)
    _carry_optimizer(old.optimizer, state.optimizer, owed)
    state.notices = [*_anew(old, state)]
    state.step, state.tokens, state.evaluated = old.step, old.tokens, old.evaluated
    state.seconds, state.logged, state.edition = old.seconds, old.logged, old.edition
    state.watch.processes = old.watch.processes
    state.watch.restore(_as_saved(old.watch.state(), device))
    if state.roster.members.keys() == old.roster.members.keys():
        state.roster.restore(_as_saved(old.roster.state(), device))
    old.watch.close()
    return state


def _anew(old: TrainState, new: TrainState) -> Iterator[str]:
    """What goes on without the state that it had, or has none to go on from, in lines."""
    before, now = (type(each.optimizer).__name__ for each in (old, new))
    if before != now:
        yield f"The moments of {before} are no moments of {now}, which begins without any."
    if old.roster.members and old.roster.members.keys() != new.roster.members.keys():
        yield f"The state of {listed(old.roster.members, 'and')} is not taken over, since interventions are others now."


def evaluation_model(state: TrainState, spec: RunSpec, casts: PrecisionPolicy, dataset: Dataset) -> nn.Module:
    """The model with other casts, without history, on the very parameters of the run's own."""
    built = build_model(spec.with_rules(casts), dataset.vocabulary, dataset.outputs)
    device = next(state.model.parameters()).device
    parameters = dict(state.model.named_parameters(remove_duplicate=False))
    if holds_shards(state.model):
        made = shard(built, device)  # has parameters of its own to gather, each process its part
        for name, p in made.named_parameters():
            own_part(p).copy_(own_part(parameters[name]))
    else:
        made = built.to(device)
        for name, _ in list(made.named_parameters(remove_duplicate=False)):
            owner, _, own = name.rpartition(".")
            made.get_submodule(owner).register_parameter(own, parameters[name])
    casts_of = {name for name, module in made.named_modules() if isinstance(module, Counted)}
    buffers = dict(state.model.named_buffers())
    for name, buffer in made.named_buffers():
        if not _owner(name, casts_of):
            buffer.copy_(buffers[name])
    use_engine(made, spec.engine)
    return made


def check_parameters(old: nn.Module, new: nn.Module) -> None:
    """LocatedError unless both have parameters of the same names and shapes."""
    before, now = ({name: tuple(p.shape) for name, p in model.named_parameters()} for model in (old, new))
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            was, is_ = (list(found[name]) if name in found else "absent" for found in (before, now))
            raise LocatedError(("model",), f"the model is another one: {name} is {is_} here and was {was} there.")


def _casts_kept(old: nn.Module, new: nn.Module, step: int) -> dict[str, bool]:
    """For each module of casts of the new model, by name, whether it is the old one's; others begin at this step."""
    theirs = {name: module for name, module in old.named_modules() if isinstance(module, Counted)}
    found: dict[str, bool] = {}
    for name, module in new.named_modules():
        if not isinstance(module, Counted):
            continue
        found[name] = name in theirs and _is_same(theirs[name], module)
        if not found[name] and module.draws:
            module.counter.fill_(step << 16)  # as if it had been there: a step's bits are not drawn for another step
    return found


def _is_same(old: Counted, new: Counted) -> bool:
    if isinstance(old, Quantizer) and isinstance(new, Quantizer):
        return bool((old.spec, old.reduced, old.run) == (new.spec, new.reduced, new.run))
    if isinstance(old, Transform) and isinstance(new, Transform):
        return bool(old.spec == new.spec)
    return False


def _owner(name: str, casts: Collection[str]) -> str:
    """The outermost module of casts that a tensor of a state dict belongs to; empty for none."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in casts), "")


def _weights(optimizer: Optimizer) -> dict[str, tuple[Storage, Tensor, Tensor]]:
    """By name each parameter's storage, the parameter, and its weight with what is owed to it."""
    return {
        optimizer.names[p]: (storage, p, storage.whole(p, optimizer.state[p]))
        for group, storage in zip(optimizer.param_groups, optimizer.storages, strict=True)
        for p in group["params"]
    }


@torch.no_grad()
def _carry_optimizer(old: Optimizer, new: Optimizer, weights: Mapping[str, tuple[Storage, Tensor, Tensor]]) -> None:
    """Moments go on where the rule is the same, and what a storage keeps where the storage is."""
    for name, (storage, p, _) in _weights(new).items():
        if name not in weights:
            continue
        before, was, _ = weights[name]
        own, theirs = _kept_by(storage, p), _kept_by(before, was)
        entries = old.state[was]
        moments = {key: value for key, value in entries.items() if key not in theirs} if type(old) is type(new) else {}
        if _said(storage) == _said(before):
            p.copy_(was)
            new.state[p].update({key: entries[key] for key in own if key in entries})
            for gone in own - entries.keys():  # what a state of the first edition has not
                del new.state[p][gone]
        else:
            moments = {key: value for key, value in moments.items() if key not in _IN_GRID_UNITS}
        new.state[p].update(moments)


def _kept_by(storage: Storage, p: Tensor) -> set[str]:
    """The entries of a parameter's state that its storage makes."""
    state: dict[str, Any] = {}
    storage.adopt(torch.empty(p.shape, dtype=p.dtype, device="meta"), state)
    return set(state)


def _said(storage: Storage) -> dict[str, Any]:
    return {key: value for key, value in storage.tree().items() if key != "match"}


def _as_saved(state: Mapping[str, Mapping[str, Any]], device: torch.device) -> dict[str, dict[str, Any]]:
    """What a checkpoint would give back of it, so that carrying a state over equals saving and loading it."""
    return together(json.loads(json.dumps(plain_states(state))), state_tensors(state), device)
