"""What `altgrad train` does before anything is written: the spec, the data, the device, and the table of casts.

The model is built once on the meta device, which costs no memory: names and shapes are all it takes to decide every
rule and every parameter group, and to say what the run would do.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from altgrad import __version__, display
from altgrad.cli import console
from altgrad.cli.process_group import own_device, size
from altgrad.cli.progress import tokenising
from altgrad.data.dataset import Dataset
from altgrad.document import Document
from altgrad.measures.metric import headline
from altgrad.nn import Processes, weight_names
from altgrad.nn.policy import SLOTS, Decision
from altgrad.nn.policy import describe as in_words
from altgrad.optim import Optimizer
from altgrad.optim.storage import GridStorage
from altgrad.spec import LocatedError, SpecError
from altgrad.store import Run, RunStore, run_id
from altgrad.store.checkout import revision
from altgrad.training import RunSpec
from altgrad.training.estimate import Estimate, estimate
from altgrad.training.held_out import same_data
from altgrad.training.lineage import leak_warning
from altgrad.training.readiness import Fitted, check_start, fit, open_data
from altgrad.training.resolution import resolve
from altgrad.training.twin import Twin


@dataclass(frozen=True)
class Prepared:
    """A run that can be started: its resolved spec, where each part of it was written, its data, its place."""

    spec: RunSpec
    document: Document
    dataset: Dataset
    device: torch.device
    parameters: int
    decisions: Sequence[Decision]
    quantised: int
    """Parameters that enter a format."""
    stored: Mapping[str, str]
    """Parameters that are kept on a grid, by name: how, in words."""
    fitted: Fitted
    """Model and optimizer without memory."""
    warning: str | None = None
    """Why the run's numbers may mean nothing, if there is reason to fear so."""

    @property
    def worse(self) -> dict[str, str]:
        """What the panel compares between layers, by `<monitor>/<quantity>`: the direction that is worse.

        Casts have a table of their own, which is range's.
        """
        told = {spec.kind: headline(spec.metrics) for spec in self.spec.monitors if spec.kind != "range"}
        return {f"{kind}/{metric.quantity}": metric.worse for kind, metric in told.items() if metric is not None}

    def place(self, error: LocatedError) -> SpecError:
        """The error with file, line and column."""
        return self.document.error(error.location, str(error))

    def open_run(self, runs: Path, resume: str) -> Run:
        """The run's place in the store; with `resume` never, what was there is set aside."""
        run = RunStore(runs).run(self.spec.project, run_id(self.spec.name, self.spec.fingerprint(), self.spec.seed))
        if resume == "never" and run.exists:
            aside = run.set_aside()
            console.say(f"the earlier run is now {aside.path}")
        return run

    def check_start(self, runs: Path) -> Twin | None:
        """The run's twin. SpecError as `altgrad.training.readiness` says."""
        try:
            return check_start(self.spec, self.dataset, self.fitted, RunStore(runs))
        except LocatedError as error:
            raise self.place(error) from None

    def estimate(self, twin: Twin | None) -> Estimate:
        """What the run would take. Once only."""
        return estimate(self.spec, self.dataset, self.fitted.model, self.fitted.optimizer, twin)

    def ensure(self, run: Run) -> Run:
        """The run, created if it is new.

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
            "altgrad": __version__, **({} if revision() is None else {"commit": revision()}),
            "torch": str(torch.__version__), "python": platform.python_version(),
        }  # fmt: skip
        return run.create(self.spec.to_yaml(), facts)


def prepare(path: Path, sets: Sequence[str], device: str, exact: bool = False) -> Prepared:
    """Check everything a run depends on. On any fault prints one line and leaves: 2 for the spec, 3 for the machine.

    exact: the spec must say all that the machine would else decide, and the machine must be able to do it.
    """
    where = _device(own_device(device))
    try:
        document = Document.load(path)
        spec = RunSpec.check(document, sets)
        with tokenising():
            dataset = open_data(spec)
        fitted = fit(spec, dataset, Processes(0, size()))
    except SpecError as error:
        console.fail(error, 2)
    except LocatedError as error:
        console.fail(document.error(error.location, str(error)), 2)
    model, optimizer = fitted.model, fitted.optimizer
    decisions = spec.precision.decide(model)
    tokens = dataset.batch(0).inputs.numel()
    asked = spec
    spec, notice = resolve(spec, model, tokens, where)
    if exact and spec != asked:
        why = notice or f"it leaves threads or engine to the machine (here {spec.threads} and {spec.engine})"
        console.fail(f"{path}: --exact: this would be another run than the spec says: {why}.", 3)
    warning = leak_warning(spec)
    for line in filter(None, (_left_out(dataset), notice, warning) if console.first_process() else ()):
        console.say(line, sys.stderr)
    count = sum(p.numel() for p in model.parameters())
    stored = _stored(optimizer)
    quantised = _quantised(model, decisions, stored)
    return Prepared(spec, document, dataset, where, count, decisions, quantised, stored, fitted, warning)


def _left_out(dataset: Dataset) -> str | None:
    """How many rows `bad_rows: skip` left out, and why."""
    prefix, facts = "skipped_", dataset.describe()
    counts = {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
    if not counts:
        return None
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in counts.items())
    return f"rows of {facts['source']} left out: {reasons}"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("a device without memory trains nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        console.fail(f"--device {name} is not here; this machine has cpu{_gpus()}.", 3)
    return device


def _gpus() -> str:
    return "".join(f", cuda:{index}" for index in range(torch.cuda.device_count()))


def _stored(optimizer: Optimizer) -> dict[str, str]:
    found: dict[str, str] = {}
    for group, storage in zip(optimizer.param_groups, optimizer.storages, strict=True):
        if isinstance(storage, GridStorage):
            words = f"{storage.kind} {storage.format}" + (" tracked" if storage.scale == "tracked" else "")
            found |= dict.fromkeys((optimizer.names[p] for p in group["params"]), words)
    return found


def _quantised(model: nn.Module, decisions: Sequence[Decision], stored: Mapping[str, str]) -> int:
    weights = {
        model.get_submodule(d.name).weight
        for d in decisions
        if d.precision is not None and any(d.precision.slots[slot] for slot in SLOTS if slot[1] == "weight")
    }
    weights |= {p for name, p in model.named_parameters() if name in stored}
    return sum(weight.numel() for weight in weights if isinstance(weight, torch.Tensor))


def describe(prepared: Prepared, twin: Twin | None, as_json: bool) -> None:
    """The table of casts: every Linear, its six slots, its storage, and the line of the spec that decided it."""
    rows = [_row(prepared, decision) for decision in prepared.decisions]
    share = prepared.quantised / prepared.parameters
    found = prepared.estimate(twin)
    if as_json:
        facts = {"layers": rows, "parameters": prepared.parameters, "quantised_parameters": prepared.quantised}
        facts["stored"] = dict(prepared.stored)
        facts["estimate"] = found.facts()
        console.print_json(facts)
        return
    header = ["layer", "forward: input", "weight", "grad_input: grad_output", "weight", "grad_weight: grad_output"]
    header += ["input", "storage", "decided by"]
    table = [[row["layer"], *row["slots"].values(), row["storage"], row["rule"]] for row in rows]
    console.table(header, table)
    layers = {_weight(prepared, decision) for decision in prepared.decisions}
    for name in sorted(prepared.stored.keys() - layers):
        console.say(f"{name} is stored {prepared.stored[name]}")
    console.say(
        f"{prepared.parameters:,} parameters, {prepared.quantised:,} of them ({share:.1%}) enter a format; "
        f"{prepared.spec.steps} steps on {prepared.device}"
    )
    console.say(
        f"a step: {found.flops_per_step:.3g} FLOPs over {found.tokens_per_step:,} tokens, backward taken as two forward"
    )
    parts = ("weights", "gradients", "storage", "optimizer", "casts", "monitors")
    kept = ", ".join(f"{part} {in_bytes(getattr(found, part))}" for part in parts)
    console.say(f"bytes: {kept}; together {in_bytes(found.total)}, and activations")
    if found.codes:
        console.say(f"stored weights as codes: {in_bytes(found.codes)}")


def in_bytes(count: int) -> str:
    """A number of bytes with three figures and a decimal prefix: `28.2 GB`, `312 B`."""
    shown = display.count(count)
    return f"{shown} B" if shown[-1].isdigit() else f"{shown[:-1]} {shown[-1]}B"


def _weight(prepared: Prepared, decision: Decision) -> str:
    """The parameter's own name, which for a tied head is the embedding's."""
    return weight_names(prepared.fitted.model).get(decision.name, f"{decision.name}.weight")


def _row(prepared: Prepared, decision: Decision) -> dict[str, Any]:
    precision = decision.precision
    slots = {f"{product}.{operand}": "-" for product, operand in SLOTS}
    if precision is not None:
        slots = {f"{product}.{operand}": in_words(precision.slots[product, operand]) for product, operand in SLOTS}
    rule = "no rule matches"
    if decision.rule is not None:
        rule = f"rule {decision.rule} at {prepared.document.where(('precision', 'rules', decision.rule))}"
    return {
        "layer": decision.name,
        "slots": slots,
        "storage": prepared.stored.get(_weight(prepared, decision), "master"),
        "rule": rule,
    }
