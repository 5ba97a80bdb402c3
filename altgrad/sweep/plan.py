"""A matrix as a list of runs that can be started: validated, resolved, and each with its place in the store.

Validation goes as far as a run's own start does, but for the weights themselves: the data is opened once, every model
is built on the meta device, every rule and group must decide something, every storage must go with its optimizer. Equal
parts are checked once, so thousands of runs take seconds.

What a spec leaves to the machine is decided here, once, by the driver, and written into each run's spec: the engine of
the casts as for a single run, and the threads: **1** where the spec says nothing, since a sweep fills the machine with
runs side by side, and a number taken from the machine would make the results depend on where the sweep was started.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.document import Document, SpecError
from altgrad.matrix import Matrix, Place, runs
from altgrad.spec import LocatedError, did_you_mean
from altgrad.store import run_id
from altgrad.training import RunSpec
from altgrad.training.resolution import resolve
from altgrad.training.state import build_model, build_optimizer


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: where it stands in the matrix, its resolved spec, its id, and how large it is."""

    place: Place
    spec: RunSpec
    id: str
    parameters: int

    @property
    def labels(self) -> dict[str, str]:
        """What `--only` picks by: besides those of its place, its id, project and name."""
        return {"id": self.id, "project": self.spec.project, "name": self.spec.name, **self.place.labels}


@dataclass(frozen=True)
class Plan:
    """All runs of a matrix, in order; notices are for people."""

    name: str
    matrix: Matrix
    runs: Sequence[Planned]
    notices: Sequence[str] = ()

    def only(self, patterns: Iterable[str]) -> "Plan":
        """The runs that match every pattern: `key=pattern` on a label, or a pattern on id or arm.

        Shell patterns; a key may be the end of a path (`lr=*` for `optimizer.lr=*`). ValueError for an unknown key,
        or if nothing is left.
        """
        kept = self.runs
        for pattern in patterns:
            kept = [run for run in kept if _matches(run, pattern)]
            if not kept:
                raise ValueError(f"--only {pattern} leaves no run of {self.name}.")
        return Plan(self.name, self.matrix, kept, self.notices)


def _matches(run: Planned, pattern: str) -> bool:
    key, equals, value = pattern.partition("=")
    labels = run.labels
    if not equals:
        return fnmatchcase(run.id, pattern) or fnmatchcase(run.place.arm, pattern)
    found = [own for label, own in labels.items() if label == key or label.endswith(f".{key}")]
    if not found and key not in run.place.changes and "." not in key:
        raise ValueError(f"--only {pattern}: '{key}' is no label of {run.id}.{did_you_mean(key, labels)}")
    return any(fnmatchcase(own, value) for own in found)


def make_plan(path: Path, *, smoke: bool = False, sets: Iterable[str] = (), device: torch.device | str = "cpu") -> Plan:
    """Read a matrix and validate every run of it. Raises SpecError, in one line, for the first that does not fit."""
    document = Document.load(path)
    matrix = Matrix.check(document)
    if smoke:
        try:
            matrix = matrix.smoked()
        except ValueError as error:
            raise SpecError(str(path), str(error)) from None
    found = runs(matrix, path.parent, RunSpec, sets)
    fitting = _Fitting(torch.device(device))
    planned: list[Planned] = []
    for place, spec in found:
        try:
            planned.append(fitting.fit(place, spec))
        except (LocatedError, ValueError, OSError) as error:
            raise SpecError(f"{path.name} with {place}"[:200], str(error)) from None
    name = re.sub(r"[^A-Za-z0-9_-]", "-", path.stem) + ("-smoke" if smoke else "")
    return Plan(name, matrix, planned, tuple(fitting.notices))


@dataclass
class _Fitting:
    """Checks and resolves runs, each distinct part once."""

    device: torch.device
    notices: list[str] = field(default_factory=list)
    _data: dict[str, tuple[Dataset, int]] = field(default_factory=dict)
    _models: dict[str, nn.Module] = field(default_factory=dict)
    _optimizers: set[str] = field(default_factory=set)

    def fit(self, place: Place, spec: RunSpec) -> Planned:
        """The run, resolved. LocatedError or ValueError where it does not fit."""
        model_key, optimizer_key = self._keys(spec)
        data_key = json.dumps([spec.data.tree(), spec.model.context])
        if data_key not in self._data:
            data = spec.data.build(spec.seed, spec.model.context)
            self._data[data_key] = data, data.batch(0).inputs.numel()
        dataset, tokens = self._data[data_key]
        if model_key not in self._models:
            with torch.device("meta"):
                self._models[model_key] = build_model(spec, dataset.vocabulary, dataset.outputs)
        model = self._models[model_key]
        if optimizer_key not in self._optimizers:
            with torch.device("meta"):
                build_optimizer(spec, model)
            self._optimizers.add(optimizer_key)
        given = spec.model_copy(update={"threads": spec.threads or 1})
        resolved, notice = resolve(given, model, tokens, self.device)
        if notice is not None and notice not in self.notices:
            self.notices.append(notice)
        name = run_id(resolved.name, resolved.fingerprint(), resolved.seed)
        return Planned(place, resolved, name, sum(p.numel() for p in model.parameters()))

    @staticmethod
    def _keys(spec: RunSpec) -> tuple[str, str]:
        """What decides the model's shape and casts; and, with that, its optimizer, rates aside."""
        model = json.dumps([spec.data.tree(), spec.model.tree(), spec.precision.tree()])
        optimizer = {key: value for key, value in spec.optimizer.tree().items() if key not in ("lr", "weight_decay")}
        return model, json.dumps([model, optimizer, [storage.tree() for storage in spec.storage]])
