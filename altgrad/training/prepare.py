"""What must hold before a run may start, and the run that can be started: for `train`, `sweep` and everybody else.

A sweep that plans what no worker will train finds out hours later, so all ask here and nowhere else. The model is built
on the meta device, which costs no memory: names and shapes decide every rule, group, storage, intervention and monitor.

    open_data     the data can be read                             fit        the parts go with one another
    check_start   weights to begin from, twin and monitors are there and fit
    resolve       what a spec leaves to the machine: threads, and the engine of the casts
    prepare       all of it, for one run, from whatever a spec is written in

What is wrong is a LocatedError, whose location is that of the part of the run spec to blame; `prepare` and what it
gives say it as a SpecError, with the place where that part was written. What the machine cannot do is a MachineError.

Compiling pays only when what it saves over the whole run is more than several compilations cost:

    auto  ->  compiled   if steps * elements cast per step * 0.3 ns > 60 s, and a C++ compiler is there
              eager      otherwise

0.3 ns is what a fused cast saved per element against the eager one (2^20 elements, two threads; see bench/), 60 s what
about ten graphs take to build. Both numbers only decide how fast a run is: the bits are the same. `compile: auto` asks
likewise for twice what its graphs take to build; it takes repeated blocks, where a model has them, since one graph
serves them all.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from altgrad import __version__
from altgrad.data.dataset import Dataset
from altgrad.document import Document
from altgrad.measures.metric import headline
from altgrad.monitors import Context
from altgrad.nn import Processes, QuantizedLayer, weight_names
from altgrad.nn.policy import Decision
from altgrad.nn.processes import own_device, process_group
from altgrad.nn.slots import SLOTS, LayerPrecision, slot_text
from altgrad.optim import Optimizer
from altgrad.optim.storage import GridStorage
from altgrad.progress import progress
from altgrad.quantize.engine import missing_compiler
from altgrad.spec import LocatedError, MachineError
from altgrad.spec.annotations import Shape, alternatives, of_field, plain
from altgrad.store import Run, RunStore, Sink, run_id
from altgrad.store.checkout import revision
from altgrad.training.estimate import Estimate, estimate, shapes_only
from altgrad.training.initial import fitting_weights, leak_warning
from altgrad.training.loop import Outcome, train_run
from altgrad.training.regions import blocks_of, compile_seconds
from altgrad.training.restore import read_data, same_data
from altgrad.training.run import RunSpec
from altgrad.training.state import build_model, build_optimizer, build_roster
from altgrad.training.twin import Twin, find_twin
from altgrad.watching import MonitorSet

SAVED_PER_ELEMENT = 0.3e-9
WORTH_COMPILING = 60.0
GAINS = 2.0

Source = str | Path | Mapping[str, Any] | RunSpec | Document


@dataclass(frozen=True)
class Fitted:
    """A run's model and optimizer, without memory."""

    model: nn.Module
    optimizer: Optimizer

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

    model: as `shapes` gives it, where that is known already.
    """
    model = shapes(spec, dataset) if model is None else model
    if spec.compile == "blocks" and not blocks_of(model):
        raise LocatedError(("compile",), "this model repeats no block that has casts; use compile: model.")
    if spec.recompute == "blocks" and not blocks_of(model, plain=True):
        raise LocatedError(("recompute",), "this model repeats no block; leave recompute out.")
    with shapes_only(), _blamed_on("model"):
        optimizer = build_optimizer(spec, model)
        build_roster(spec, model, optimizer)
        spec.check_processes(processes)
    return Fitted(model, optimizer)


def shapes(spec: RunSpec, dataset: Dataset) -> nn.Module:
    """The run's quantised model on the meta device. LocatedError where it cannot be built."""
    with shapes_only(), _blamed_on("model"):
        return build_model(spec, dataset.vocabulary, dataset.outputs)


def check_start(spec: RunSpec, dataset: Dataset, fitted: Fitted, store: RunStore) -> Twin | None:
    """The run's twin, if it names one. LocatedError where that cannot serve, where the weights to begin from cannot be
    read or do not fit, and for monitors that lack what they ask for of the run or its twin.
    """
    with _blamed_on("twin"):
        twin = find_twin(spec, store, dataset)
    with _blamed_on("monitors"):
        context = Context(-(-dataset.epoch_batches // spec.accumulate), None if twin is None else twin.rows)
        with shapes_only():
            MonitorSet(spec.monitors, fitted.model, fitted.optimizer, context).close()
    if spec.init_from is not None:
        with _blamed_on("init_from"):
            fitting_weights(fitted.model, spec.model, spec.init_from)
    return twin


def resolve(spec: RunSpec, model: nn.Module, tokens: int, device: torch.device) -> tuple[RunSpec, str | None]:
    """The resolved spec, and a notice for people if it is not what was asked for.

    model: as the spec builds it, on any device. tokens: of one micro-batch.
    """
    threads = spec.threads or torch.get_num_threads()
    why = missing_compiler(device)
    engine, notice = spec.engine, None
    saved = spec.steps * spec.accumulate * elements_cast(model, tokens) * SAVED_PER_ELEMENT
    if engine == "auto":
        engine = "compiled" if saved > WORTH_COMPILING and why is None else "eager"
    elif engine == "compiled" and why is not None:
        engine, notice = "eager", f"engine: eager instead of compiled, because {why}"
    compile_ = spec.compile
    if compile_ == "auto":
        how: Literal["blocks", "model"] = "blocks" if blocks_of(model) else "model"
        can = why is None and spec.data.one_shape and spec.recompute == "none"
        compile_ = how if can and saved > GAINS * compile_seconds(model, how) else False
    return spec.model_copy(update={"threads": threads, "engine": engine, "compile": compile_}), notice


def elements_cast(model: nn.Module, tokens: int) -> int:
    """How many elements one forward and backward pass over so many tokens casts, each operand counted once."""
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, QuantizedLayer)]
    return sum(tokens * (rows + columns) + rows * columns for rows, columns in shapes)


@dataclass(frozen=True)
class Prepared:
    """A run that can be started: its resolved spec, where each part of it was written, its data, its place.

    warning: why the run's numbers may mean nothing, if there is reason to fear so. notify: hears what people should.
    """

    spec: RunSpec
    document: Document
    dataset: Dataset
    device: torch.device
    decisions: Sequence[Decision]
    fitted: Fitted
    """Model and optimizer without memory."""
    warning: str | None
    notify: Callable[[str], None]

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(p.numel() for p in self.fitted.model.parameters())

    @property
    def quantised(self) -> int:
        """How many of them enter a format, in a cast or in storage."""
        model, stored = self.fitted.model, self.fitted.stored
        weights = {
            model.get_submodule(d.name).weight
            for d in self.decisions
            if d.precision is not None and any(d.precision.slots[slot] for slot in SLOTS if slot[1] == "weight")
        }
        weights |= {p for name, p in model.named_parameters() if name in stored}
        return sum(weight.numel() for weight in weights if isinstance(weight, Tensor))

    @property
    def worse(self) -> dict[str, str]:
        """What the panel compares between layers, by `<monitor>/<quantity>`: the direction that is worse.

        Casts have a table of their own, which is range's.
        """
        told = {spec.kind: headline(spec.metrics) for spec in self.spec.monitors if spec.kind != "range"}
        return {f"{kind}/{metric.quantity}": metric.worse for kind, metric in told.items() if metric is not None}

    def run(self, runs: Path) -> Run:
        """The run's place in a store, whether or not it is there."""
        return RunStore(runs).run(self.spec.project, run_id(self.spec.name, self.spec.fingerprint(), self.spec.seed))

    def check_start(self, runs: Path) -> Twin | None:
        """The run's twin, if it names one. SpecError where the function of this name finds something wrong."""
        with self.placed():
            return check_start(self.spec, self.dataset, self.fitted, RunStore(runs))

    def casts(self) -> list[dict[str, Any]]:
        """Every Linear with its six slots, its storage, and the rule that decided it with its place, in words."""
        names, stored, found = weight_names(self.fitted.model), self.fitted.stored, []
        for decision in self.decisions:
            layer = decision.precision or LayerPrecision({})
            slots = {".".join(s): slot_text(layer.slots.get(s), layer.transforms.get(s[0])) for s in SLOTS}
            rule = "no rule matches"
            if decision.rule is not None:
                rule = f"rule {decision.rule} at {self.document.where(('precision', 'rules', decision.rule))}"
                place = self.spec.precision.rules[decision.rule].place
                rule += "" if place is None else f" ({place})"
            weight = names.get(decision.name, f"{decision.name}.weight")  # a tied head's is the embedding's
            storage = stored.get(weight, "master")
            found.append({"layer": decision.name, "slots": slots, "storage": storage, "rule": rule, "weight": weight})
        return found

    def estimate(self, twin: Twin | None) -> Estimate:
        """What the run would take. Once only."""
        return estimate(self.spec, self.dataset, self.fitted.model, self.fitted.optimizer, twin)

    def ensure(self, run: Run, beginning: Run | None = None) -> Run:
        """The run, created if it is new, with the logs and checkpoints of `beginning`.

        Raises SpecError if the weights it should start from do not fit, ValueError if it is there and was made with
        other data.
        """
        if run.exists:
            same_data(run, self.dataset)
            return run
        self.check_start(run.path.parent.parent)
        facts = {
            "fingerprint": self.spec.fingerprint(), "seed": self.spec.seed, "steps": self.spec.steps, "step": 0,
            "parameters": self.parameters, "quantised_parameters": self.quantised, "data": self.dataset.describe(),
            "references": dict(self.dataset.references), "scores": list(self.dataset.scores), "worse": self.worse,
            **({} if self.warning is None else {"warning": self.warning}),
            **({} if beginning is None else {"began_as": beginning.id}),
            "altgrad": __version__, **({} if revision() is None else {"commit": revision()}),
            "torch": str(torch.__version__), "python": platform.python_version(),
        }  # fmt: skip
        return run.create(self.spec.to_yaml(), facts, beginning)

    def train(
        self,
        runs: Path,
        resume: str = "auto",
        *,
        sinks: Callable[[Run], Sequence[Sink]] = lambda run: (),
        interrupted: Callable[[], bool] = lambda: False,
        until: int | None = None,
    ) -> Outcome:
        """Train the run, from its newest checkpoint on; as `train_run`, with all processes that torchrun started.

        resume: with `never` a run that is there is set aside and begun again. sinks: asked by the first process, once
        the run is there. Raises SpecError for what shows only now, and as `train_run` and `ensure`.
        """
        with process_group(self.device) as processes, self.placed():
            run = self.run(runs)
            if processes.is_first:
                if resume == "never" and run.exists:
                    self.notify(f"the earlier run is now {run.set_aside().path}")
                if not (run.exists and run.status == "completed"):
                    self.ensure(run)
            processes.words("the run is there")
            if run.status == "completed":
                keys = [f"validation/{key}" for key in ("loss", *self.dataset.scores)]
                last = {key: value for key, value in run.last(*keys).items() if key != "step"}
                return Outcome(run, "completed", self.spec.steps, last, already=True)
            return train_run(
                self.spec, run, self.dataset, device=self.device, sinks=sinks(run) if processes.is_first else (),
                interrupted=interrupted, until=until,
            )  # fmt: skip

    @contextmanager
    def placed(self) -> Iterator[None]:
        """In the block a LocatedError becomes a SpecError with file, line and column."""
        with _placed(self.document):
            yield


def prepare(
    source: Source,
    sets: Iterable[str] = (),
    *,
    device: str = "auto",
    exact: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Check everything that a run depends on. SpecError for the spec, MachineError for what the machine cannot do.

    sets: `path=value` changes of the spec, in order. exact: the spec must say all that the machine would else decide,
    and the machine must be able to do it.
    """
    processes, where = Processes.launched(), find_device(own_device(device))
    document = _document(source)
    spec = RunSpec.check(document, sets)
    with _placed(document):
        dataset = open_data(spec)
        progress("checking the spec against the model")
        fitted = fit(spec, dataset, processes)
    asked = spec
    spec, notice = resolve(spec, fitted.model, dataset.batch(0).inputs.numel(), where)
    if exact and spec != asked:
        why = notice or f"it leaves threads or engine to the machine (here {spec.threads} and {spec.engine})"
        if asked.compile != spec.compile:
            why = f"it leaves compile to the machine (here {str(spec.compile).lower()})"
        raise MachineError(f"{document.name}: --exact: this would be another run than the spec says: {why}.")
    warning = leak_warning(spec)
    for line in filter(None, (_left_out(dataset), notice, spec.warmup_notice, *spec.recipe_notices, warning)):
        notify(line)
    return Prepared(spec, document, dataset, where, spec.precision.decide(fitted.model), fitted, warning, notify)


def load_all() -> None:
    """Load what any run might: every kind of every family, and what torch loads when it is first used."""
    _load_kinds(RunSpec)
    smallest = RunSpec.parse(
        "{model: {kind: gpt, layers: 1, width: 2, heads: 1, context: 2}, data: text, optimizer: adamw, steps: 1}"
    )
    with torch.device("meta"):  # torch loads its compiler at the first random number there: 2 s of CPU
        build_model(smallest, 2, 2)


def _load_kinds(shape: type[Shape]) -> None:
    for info in shape.model_fields.values():
        for option in alternatives(of_field(info)):
            for inner in (option, *(each for item in option.items for each in alternatives(item))):
                if inner.shape is not None:
                    inner.shape.members()


def find_device(name: str) -> torch.device:
    """A device that is here; `auto` is a GPU if there is one. MachineError for any other."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("a device without memory trains nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        gpus = "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))
        raise MachineError(f"--device {name} is not here; this machine has cpu{gpus}.") from None
    return device


def _document(source: Source) -> Document:
    if isinstance(source, Document):
        return source
    if isinstance(source, RunSpec | Mapping):
        return Document.of(plain(source if isinstance(source, RunSpec) else dict(source)), "the spec")
    return Document.load(Path(source))


def _left_out(dataset: Dataset) -> str | None:
    """How many rows `bad_rows: skip` left out, and why."""
    prefix, facts = "skipped_", dataset.describe()
    counts = {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
    if not counts:
        return None
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in counts.items())
    return f"rows of {facts['source']} left out: {reasons}"


@contextmanager
def _placed(document: Document) -> Iterator[None]:
    try:
        yield
    except LocatedError as error:
        raise document.error(error.location, str(error)) from None


@contextmanager
def _blamed_on(part: str) -> Iterator[None]:
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
