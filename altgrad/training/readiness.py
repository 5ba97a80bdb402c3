"""What must hold before a run may start: asked by `train` of its one run, and by `sweep` of every run of its matrix.

A sweep that plans what no worker will train finds out hours later, so both ask here and nowhere else. The model stands
on the meta device, which costs no memory: names and shapes decide every rule, group, storage, intervention and monitor.
What is wrong is a LocatedError, whose location is that of the part of the run spec to blame.

    open_data     the data can be read                             fit          the parts go with one another
    check_start   weights to begin from, twin and monitors are there and fit
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.monitors import Context
from altgrad.nn import Processes
from altgrad.optim import Optimizer
from altgrad.spec import LocatedError
from altgrad.store import RunStore
from altgrad.training.estimate import shapes_only
from altgrad.training.initial import fitting_weights
from altgrad.training.run import RunSpec
from altgrad.training.state import build_model, build_optimizer, build_roster
from altgrad.training.twin import Twin, find_twin
from altgrad.watching import MonitorSet


@dataclass(frozen=True)
class Fitted:
    """A run's model and optimizer, without memory."""

    model: nn.Module
    optimizer: Optimizer


def open_data(spec: RunSpec) -> Dataset:
    """The run's data. LocatedError where it cannot be read."""
    with _owed_to("data"):
        return spec.data.build(spec.seed, spec.model.context)


def fit(spec: RunSpec, dataset: Dataset, processes: Processes, model: nn.Module | None = None) -> Fitted:
    """The run's parts, which go with one another; LocatedError where they do not.

    model: as `shapes` gives it, where that is known already.
    """
    model = shapes(spec, dataset) if model is None else model
    with shapes_only(), _owed_to("model"):
        optimizer = build_optimizer(spec, model)
        build_roster(spec, model, optimizer)
        spec.check_processes(processes)
    return Fitted(model, optimizer)


def shapes(spec: RunSpec, dataset: Dataset) -> nn.Module:
    """The run's quantised model on the meta device. LocatedError where it cannot be built."""
    with shapes_only(), _owed_to("model"):
        return build_model(spec, dataset.vocabulary, dataset.outputs)


def check_start(spec: RunSpec, dataset: Dataset, fitted: Fitted, store: RunStore) -> Twin | None:
    """The run's twin, if it names one. LocatedError where that cannot serve, where the weights to begin from cannot be
    read or do not fit, and for monitors that lack what they ask for of the run or its twin.
    """
    with _owed_to("twin"):
        twin = find_twin(spec, store, dataset)
    with _owed_to("monitors"):
        context = Context(-(-dataset.epoch_batches // spec.accumulate), None if twin is None else twin.rows)
        with shapes_only():
            MonitorSet(spec.monitors, fitted.model, fitted.optimizer, context).close()
    if spec.init_from is not None:
        with _owed_to("init_from"):
            fitting_weights(fitted.model, spec.model, spec.init_from)
    return twin


@contextmanager
def _owed_to(part: str) -> Iterator[None]:
    """What goes wrong in the block is that part's fault, unless it knows better."""
    try:
        yield
    except LocatedError:
        raise
    except (ValueError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {error.strerror}."  # without the number
        raise LocatedError((part,), said) from None
