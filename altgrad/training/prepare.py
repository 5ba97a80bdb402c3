"""What must hold before a run may start, and the run that can be started: for `train`, `sweep` and everybody else.

A sweep that plans what no worker will train finds out hours later, so all ask here and in `altgrad.training.fitting`,
and nowhere else. `prepare` asks all of it for one run, from whatever a spec is written in. It and what it gives say
what is wrong as a SpecError, with the place where that part was written; what the machine cannot do is a MachineError.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from altgrad import __version__
from altgrad.data.dataset import Dataset
from altgrad.document import Document, Location
from altgrad.measures.metric import headline
from altgrad.nn import Processes, weight_names
from altgrad.nn.native import accumulator_of
from altgrad.nn.processes import own_device, process_group
from altgrad.nn.slots import SLOTS, LayerPrecision, slot_text
from altgrad.progress import progress
from altgrad.spec import LocatedError, MachineError
from altgrad.spec.annotations import Shape, alternatives, of_field, plain
from altgrad.store import Run, RunStore, Sink, run_id
from altgrad.store.checkout import revision
from altgrad.training.estimate import Estimate, estimate
from altgrad.training.fitting import Fitted, check_start, fit_phases, open_data, resolve
from altgrad.training.initial import leak_warning
from altgrad.training.loop import Outcome, train_run
from altgrad.training.restore import same_data
from altgrad.training.run import RunSpec
from altgrad.training.sharding import check_sharding
from altgrad.training.state import build_model
from altgrad.training.twin import Twin

Source = str | Path | Mapping[str, Any] | RunSpec | Document


@dataclass(frozen=True)
class Prepared:
    """A run that can be started: its resolved spec, where each part of it was written, its data, its place.

    warning: why the run's numbers may mean nothing, if there is reason to fear so. notify: hears what people should.
    sharded: each process keeps a part of the model.
    """

    spec: RunSpec
    document: Document
    dataset: Dataset
    device: torch.device
    phases: Sequence[Fitted]
    """Model and optimizer of each phase, without memory; a run without phases has one."""
    warning: str | None
    notify: Callable[[str], None]
    sharded: bool = False

    @property
    def fitted(self) -> Fitted:
        """Model and optimizer of the first phase."""
        return self.phases[0]

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(p.numel() for p in self.fitted.model.parameters())

    @property
    def quantised(self) -> int:
        """How many of them enter a format, in a cast or in storage, in one phase or another."""
        found: dict[str, int] = {}
        for fitted in self.phases:
            found |= fitted.quantised
        return sum(found.values())

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
            return check_start(self.spec, self.dataset, self.phases, RunStore(runs))

    def casts(self, phase: int = 0) -> list[dict[str, Any]]:
        """Every Linear with its six slots, its storage, and its rule, in words; then what else is cast, likewise."""
        fitted, policy = self.phases[phase], self.spec.precision.policies[phase]
        at: Location = ("precision", "phases", phase) if self.spec.precision.phases else ("precision",)
        names, stored, found = weight_names(fitted.model), fitted.stored, []

        def add(layer: str, number: int | None, slots: Mapping[str, str], weight: str) -> None:
            rule, storage = "no rule matches", stored.get(weight, "master")
            if number is not None:
                place = policy.rules[number].place
                rule = f"rule {number} at {self.document.where((*at, 'rules', number))}"
                rule += "" if place is None else f" ({place})"
            found.append({"layer": layer, "slots": slots, "storage": storage, "rule": rule, "weight": weight})

        for decision in fitted.decisions:
            layer = decision.precision or LayerPrecision({})
            slots = {".".join(slot): layer.text(slot) for slot in SLOTS}
            weight = names.get(decision.name, f"{decision.name}.weight")  # a tied head's is the embedding's
            add(decision.name, decision.rule, slots, weight)
        for target in fitted.targets:
            weight = f"{target.name}.weight" if target.sort == "weight" else ""
            add(target.name, target.rule, {name: slot_text(spec) for name, spec in target.slots.items()}, weight)
        return found

    def estimate(self, twin: Twin | None) -> Estimate:
        """What the run would take, in the phase that takes most. Once only."""
        found = []
        for number, fitted in enumerate(self.phases):
            with self.spec.in_phase(number) as spec:
                found.append(estimate(spec, self.dataset, fitted.model, fitted.optimizer, twin))
        return max(found, key=lambda each: each.total)

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
            **({"accumulator": accumulator_of(self.device)} if self.spec.engine == "native" else {}),
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
                    self.notify(f"the earlier run is archived as {run.set_aside().path}")
                if not (run.exists and run.status == "completed"):
                    self.ensure(run)
            processes.words("the run is there")
            if run.status == "completed":
                keys = [f"validation/{key}" for key in ("loss", *self.dataset.scores)]
                last = {key: value for key, value in run.last(*keys).items() if key != "step"}
                return Outcome(run, "completed", self.spec.steps, last, already=True)
            return train_run(
                self.spec, run, self.dataset, device=self.device, sinks=sinks(run) if processes.is_first else (),
                interrupted=interrupted, until=until, shard=self.sharded,
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
    shard: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Check everything that a run depends on. SpecError for the spec, MachineError for what the machine cannot do.

    sets: `path=value` changes of the spec, in order. exact: the spec must say all that the machine would else decide,
    and the machine must be able to do it. shard: the run is to be trained sharded, see `altgrad.training.sharding`.
    """
    processes, where = Processes.launched(), find_device(own_device(device))
    document = _document(source)
    spec = RunSpec.check(document, sets)
    with _placed(document):
        dataset = open_data(spec)
        progress("checking the spec against the model")
        phases = fit_phases(spec, dataset, processes)
    asked = spec
    spec, notice = resolve(spec, [each.model for each in phases], dataset.batch(0).inputs.numel(), where)
    if shard:
        with _placed(document):
            check_sharding(spec, processes, [each.model for each in phases])
    if exact and spec != asked:
        why = notice or f"it leaves threads or engine to the machine (here {spec.threads} and {spec.engine})"
        if asked.compile != spec.compile:
            why = f"it leaves compile to the machine (here {str(spec.compile).lower()})"
        raise MachineError(f"{document.name}: --exact: this would be another run than the spec says: {why}.")
    warning = leak_warning(spec)
    for line in filter(None, (_left_out(dataset), notice, spec.warmup_notice, *spec.recipe_notices, warning)):
        notify(line)
    return Prepared(spec, document, dataset, where, phases, warning, notify, shard)


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
        raise MachineError(f"--device {name} is not available; available devices: cpu{gpus}.") from None
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
