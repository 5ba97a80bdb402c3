"""Whether the parts of a run go with one another, found out without memory for a model.

The model is built on the meta device: names and shapes decide every rule, group, storage, intervention and monitor. A
run of several phases is looked at in each.

    open_data     the data can be read                             fit        the parts go with one another
    check_start   weights to begin from, the run to branch from, twin and monitors are there and fit
    resolve       what a spec leaves to the machine: threads, and the engine of the casts

What is wrong is a LocatedError, whose location is that of the part of the run spec to blame.

Compiling pays only when what it saves over the whole run is more than several compilations cost:

    auto  ->  compiled   if steps * elements cast per step * 0.3 ns > 60 s, and a C++ compiler is there
              eager      otherwise

0.3 ns is what a fused cast saved per element against the eager one (2^20 elements, two threads; see bench/), 60 s what
about ten graphs take to build. Both numbers only decide how fast a run is: the bits are the same. `compile: auto` asks
likewise for twice what its graphs take to build; it takes repeated blocks, where a model has them, since one graph
serves them all.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from altgrad.data.dataset import Dataset
from altgrad.document import Location
from altgrad.monitors import Context
from altgrad.nn import Processes, QuantizedLayer
from altgrad.nn.experts import ExpertLinear
from altgrad.nn.native import accumulator_of, missing_units, native_products
from altgrad.nn.policy import Decision
from altgrad.nn.slots import SLOTS
from altgrad.nn.targets import Target
from altgrad.optim import Optimizer
from altgrad.optim.storage import GridStorage
from altgrad.quantize.engine import missing_compiler
from altgrad.spec import LocatedError
from altgrad.store import RunStore
from altgrad.training.carry import check_parameters
from altgrad.training.estimate import shapes_only
from altgrad.training.initial import fitting_weights
from altgrad.training.regions import blocks_of, compile_seconds
from altgrad.training.restore import branch_point, read_data
from altgrad.training.run import RunSpec
from altgrad.training.state import build_model, build_optimizer, build_roster
from altgrad.training.twin import Twin, find_twin
from altgrad.watching import MonitorSet

SAVED_PER_ELEMENT = 0.3e-9
WORTH_COMPILING = 60.0
GAINS = 2.0


@dataclass(frozen=True)
class Fitted:
    """A run's model and optimizer, without memory."""

    model: nn.Module
    optimizer: Optimizer
    decisions: Sequence[Decision]
    targets: Sequence[Target]

    @property
    def quantised(self) -> dict[str, int]:
        """Elements of each parameter, by its first name, that enter a format, in a cast or in storage; of a stack of
        experts by the expert."""
        casting = [
            d.name
            for d in self.decisions
            if d.precision is not None and any(d.precision.slots[slot] for slot in SLOTS if slot[1] == "weight")
        ]
        casting += [target.name for target in self.targets if target.sort == "weight"]
        named = dict(reversed(list(self.model.named_parameters(remove_duplicate=False))))
        first: dict[Tensor, str] = {p: name for name, p in named.items()}
        found = {first[named[name]]: named[name].numel() for name in self.stored}
        for name in casting:
            module = self.model.get_submodule(name)
            # What a cast weight is made of: to ask the module itself would make the cast.
            own = module._parameters.get("weight")
            weight = cast(Tensor, module.weight if own is None else own)
            stack = first.get(module.whole) if isinstance(module, ExpertLinear) else None
            if weight in first:
                found[first[weight]] = weight.numel()
            elif stack not in found:
                found[f"{name}.weight"] = weight.numel()
        return found

    @property
    def stored(self) -> dict[str, str]:
        """Parameters that are kept on a grid, by name: how, in words."""
        found: dict[str, str] = {}
        for group, storage in zip(self.optimizer.param_groups, self.optimizer.storages, strict=True):
            if isinstance(storage, GridStorage):
                words = f"{storage.kind} {storage.format}" + (" tracked" if storage.scale == "tracked" else "")
                found |= dict.fromkeys((self.optimizer.names[p] for p in group["params"]), words)
        return found


def open_data(spec: RunSpec) -> Dataset:
    """The run's data. LocatedError where it cannot be read."""
    with _blamed_on("data"):
        return read_data(spec)


def fit(spec: RunSpec, dataset: Dataset, processes: Processes, model: nn.Module | None = None) -> Fitted:
    """The run's parts, which go with one another; LocatedError where they do not.

    spec: of one phase. model: as `shapes` gives it, where that is known already.
    """
    model = shapes(spec, dataset) if model is None else model
    if spec.recompute == "blocks" and not blocks_of(model, plain=True):
        raise LocatedError(("recompute",), "this model repeats no block; leave recompute out.")
    for number, each in enumerate(spec.interventions):
        if (policy := each.entered({"since": 1})) is not None:
            with _blamed_on(("interventions", number, "precision"), instead_of="precision"):
                shapes(spec.with_rules(policy), dataset)
    with shapes_only(), _blamed_on("model"):
        optimizer = build_optimizer(spec, model)
        build_roster(spec, model, optimizer)
        spec.check_processes(processes)
    return Fitted(model, optimizer, spec.precision.decide(model), spec.precision.targets(model))


def fit_phases(
    spec: RunSpec, dataset: Dataset, processes: Processes, models: Sequence[nn.Module] | None = None
) -> list[Fitted]:
    """`fit` of each phase; what is wrong with one is placed there. A phase without casts has no block to compile."""
    found = []
    for number in spec.phases:
        with spec.in_phase(number) as now:
            found.append(fit(now, dataset, processes, None if models is None else models[number]))
    if spec.compile == "blocks" and not any(blocks_of(each.model) for each in found):
        raise LocatedError(("compile",), "this model repeats no block that has casts; use compile: model.")
    return found


def shapes(spec: RunSpec, dataset: Dataset) -> nn.Module:
    """The run's quantised model on the meta device. LocatedError where it cannot be built.

    spec: of one phase. What its evaluation casts is tried, too.
    """
    with shapes_only(), _blamed_on("model"):
        if spec.evaluate_with is not None:
            with _blamed_on("evaluate_with", instead_of="precision"):
                build_model(spec.with_rules(spec.evaluate_with), dataset.vocabulary, dataset.outputs)
        return build_model(spec, dataset.vocabulary, dataset.outputs)


def check_start(spec: RunSpec, dataset: Dataset, phases: Sequence[Fitted], store: RunStore) -> Twin | None:
    """The run's twin, if it names one. LocatedError where that cannot serve, where the weights to begin from or the run
    to branch from cannot be read or do not fit, and for monitors that lack what they ask for of the run or its twin.
    """
    with _blamed_on("twin"):
        twin = find_twin(spec, store, dataset)
    with _blamed_on("branch"):
        if spec.branch is not None:
            theirs, _ = branch_point(spec, store, dataset)
            check_parameters(shapes(theirs.at(0), dataset), phases[0].model)
    with _blamed_on("monitors"):
        context = Context(-(-dataset.epoch_batches // spec.accumulate), None if twin is None else twin.rows, spec.seed)
        for fitted in phases:
            with shapes_only():
                MonitorSet(spec.monitors, fitted.model, fitted.optimizer, context).close()
    if spec.init_from is not None:
        with _blamed_on("init_from"):
            fitting_weights(phases[0].model, spec.model, spec.init_from)
    return twin


def resolve(
    spec: RunSpec, models: Sequence[nn.Module], tokens: int, device: torch.device
) -> tuple[RunSpec, str | None]:
    """The resolved spec, and a notice for people if it is not what was asked for.

    models: as the spec builds them, one for each phase, on any device. tokens: of one micro-batch.
    """
    model = max(models, key=lambda each: elements_cast(each, tokens))
    threads = spec.threads or torch.get_num_threads()
    why = missing_compiler(device)
    engine, notice = spec.engine, None
    if engine == "native":
        lacking = missing_units(device)
        engine, notice = ("native", _taken(model, device)) if lacking is None else ("compiled", _instead(lacking))
    saved = spec.steps * spec.accumulate * elements_cast(model, tokens) * SAVED_PER_ELEMENT
    if engine == "auto":
        engine = "compiled" if saved > WORTH_COMPILING and why is None else "eager"
    elif engine != "eager" and why is not None:
        engine, notice = "eager", f"engine: eager instead of {spec.engine}, because {why}"
    compile_ = spec.compile
    if compile_ == "auto":
        # A GPU waits for the host at each call of a graph (140 us), so it gets one for the whole model.
        repeated = device.type != "cuda" and all(map(blocks_of, models))
        how: Literal["blocks", "model"] = "blocks" if repeated else "model"
        can = why is None and spec.data.one_shape and spec.recompute == "none"
        compile_ = how if can and saved > GAINS * compile_seconds(model, how) else False
    return spec.model_copy(update={"threads": threads, "engine": engine, "compile": compile_}), notice


def _taken(model: nn.Module, device: torch.device) -> str:
    """What a chip's 8-bit units may take of a model's products, for people."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    taken, every = sum(len(native_products(layer, device)) for layer in layers), 3 * len(layers)
    sums = accumulator_of(device)
    return (
        f"engine: native: {taken} of {every} products may run on 8-bit units, added up in {sums}; others are emulated"
    )


def _instead(lacking: str) -> str:
    return f"engine: compiled instead of native, because {lacking}"


def elements_cast(model: nn.Module, tokens: int) -> int:
    """How many elements one forward and backward pass over so many tokens casts, each operand counted once."""
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, QuantizedLayer)]
    return sum(tokens * (rows + columns) + rows * columns for rows, columns in shapes)


@contextmanager
def _blamed_on(part: str | Location, *, instead_of: str = "") -> Iterator[None]:
    """What goes wrong in the block is that part's fault, unless it knows better; and so is what is laid on another."""
    place = (part,) if isinstance(part, str) else part
    try:
        yield
    except LocatedError as error:
        if error.location[:1] == (instead_of,):
            raise LocatedError((*place, *error.location[1:]), str(error)) from None
        raise
    except (ValueError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {error.strerror}."  # without the number
        raise LocatedError(place, said) from None
