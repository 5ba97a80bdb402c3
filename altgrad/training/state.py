"""TrainState: everything that must survive a restart, and the parts a step works with.

Randomness needs no saving: data order and random bits are functions of the seed and the step, and the generator that
dropout draws from is seeded anew in each micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.interventions import InterventionSet, Subject
from altgrad.monitors import Context
from altgrad.nn import casts_engine, quantize_model, use_engine, weight_quantizers
from altgrad.optim import Optimizer, parameter_groups
from altgrad.spec import LocatedError
from altgrad.training.initial import initialise
from altgrad.training.run import RunSpec
from altgrad.training.sharding import shard
from altgrad.training.twin import Twin
from altgrad.watching import MonitorSet

EDITION = 2
"""Of AltGrad's numerics. Specs of an earlier edition name the same runs; CHANGELOG says which numbers moved."""


@dataclass
class TrainState:
    """A run in progress. `step` counts finished optimizer steps. spec: what the run is now, see `RunSpec.at`."""

    spec: RunSpec
    model: nn.Module
    optimizer: Optimizer
    watch: MonitorSet
    roster: InterventionSet
    step: int = 0
    tokens: int = 0
    evaluated: int = -1
    """The last step after which the validation split was evaluated."""
    seconds: float = 0.0
    """Wall time of earlier sittings."""
    logged: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each log that were whole when the checkpoint was made."""
    edition: int = EDITION
    """Whose arithmetic the steps so far had: of the edition that made the checkpoint."""
    notices: Sequence[str] = ()
    """What of another run's state this one goes on without."""

    @classmethod
    def build(
        cls,
        spec: RunSpec,
        dataset: Dataset,
        device: torch.device,
        *,
        fresh: bool = True,
        twin: Twin | None = None,
        sharded: bool = False,
    ) -> "TrainState":
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
        placed = shard(model, device) if sharded else model.to(device)
        return cls.around(placed, spec, dataset, twin=twin)

    @classmethod
    def around(cls, model: nn.Module, spec: RunSpec, dataset: Dataset, *, twin: Twin | None = None) -> "TrainState":
        """The same of a model that `build_model` made of this spec, with the weights that it has. Raises as `build`."""
        use_engine(model, spec.engine)
        optimizer = build_optimizer(spec, model)
        context = Context(-(-dataset.epoch_batches // spec.accumulate), None if twin is None else twin.rows, spec.seed)
        try:
            watch = MonitorSet(spec.monitors, model, optimizer, context)
        except ValueError as error:
            raise LocatedError(("monitors",), str(error)) from None
        return cls(spec, model, optimizer, watch, build_roster(spec, model, optimizer))

    def record(self) -> dict[str, Any]:
        """What is not a tensor, as plain JSON data."""
        return {
            "step": self.step, "tokens": self.tokens, "evaluated": self.evaluated, "seconds": self.seconds,
            "logged": dict(self.logged), "edition": EDITION,
            "monitors": plain_states(self.watch.state()), "interventions": plain_states(self.roster.state()),
        }  # fmt: skip

    def monitor_tensors(self) -> dict[str, Tensor]:
        """The tensors among the monitors' state, by `<kind>/<key>`."""
        return state_tensors(self.watch.state())

    def intervention_tensors(self) -> dict[str, Tensor]:
        """The tensors among the interventions' state, by `<kind>/<key>`."""
        return state_tensors(self.roster.state())

    def prepare(self, record: Mapping[str, Any]) -> None:
        """Change what interventions had changed, so that the tensors of a checkpoint find their places."""
        self.roster.prepare(record["interventions"] if self.roster.members else {})

    def restore(
        self, record: dict[str, Any], monitor_tensors: Mapping[str, Tensor], intervention_tensors: Mapping[str, Tensor]
    ) -> None:
        """Take back what `record` and the tensors of monitors and interventions gave, after `prepare`."""
        self.step, self.tokens, self.evaluated = record["step"], record["tokens"], record["evaluated"]
        self.seconds, self.logged = record["seconds"], record["logged"]
        self.edition = record.get("edition", 1)
        device = next(self.model.parameters()).device
        self.watch.restore(together(record["monitors"], monitor_tensors, device))
        if self.roster.members:
            self.roster.restore(together(record["interventions"], intervention_tensors, device))


States = Mapping[str, Mapping[str, Any]]


def plain_states(states: States) -> dict[str, dict[str, Any]]:
    """What of the states of several kinds is no tensor."""
    return {
        kind: {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        for kind, state in states.items()
    }


def state_tensors(states: States) -> dict[str, Tensor]:
    """The tensors of the same, by `<kind>/<key>`."""
    return {
        f"{kind}/{key}": value
        for kind, state in states.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def together(plain: States, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, dict[str, Any]]:
    """The states again of what `plain_states` and `state_tensors` gave."""
    states = {kind: dict(state) for kind, state in plain.items()}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        states[kind][name] = tensor.to(device)
    return states


def build_roster(spec: RunSpec, model: nn.Module, optimizer: Optimizer) -> InterventionSet:
    """The run's interventions. Raises LocatedError for one that could never do anything."""
    try:
        return InterventionSet(spec.interventions, Subject(model, optimizer, spec.compute, spec.steps))
    except ValueError as error:
        raise LocatedError(("interventions",), str(error)) from None


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
        optimizer = spec.optimizer.build(groups, seed=spec.bits_seed)
    except ValueError as error:
        raise LocatedError(("optimizer",), str(error)) from None
    optimizer.engine = casts_engine(spec.engine)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    optimizer.casts = {parameters[name]: quantizer for name, quantizer in weight_quantizers(model).items()}
    return optimizer


def build_model(spec: RunSpec, vocabulary: int, outputs: int) -> nn.Module:
    """The quantised model, under whatever default device is in force (also `meta`)."""
    try:
        model = spec.model.build(vocabulary, outputs)
    except ValueError as error:
        raise LocatedError(("model",), str(error)) from None
    try:
        return quantize_model(model, spec.precision, seed=spec.bits_seed)
    except LocatedError as error:
        raise error.within("precision") from None
    except ValueError as error:
        raise LocatedError(("precision",), str(error)) from None
