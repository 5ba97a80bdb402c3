"""A matrix as a list of runs that can be started: validated, resolved, and each with its place in the store.

Validation goes as far as a run's own start does, by the same checks (`altgrad.training.prepare`): whatever `altgrad
train` refuses is refused here, before anything starts. Equal parts are checked once, so thousands of runs take seconds.

What a spec leaves to the machine is decided here, once, by the driver, and written into each run's spec: the engine of
the casts as for a single run, and the threads: **1** where the spec says nothing, since a sweep fills the machine with
runs side by side, and a number taken from the machine would make the results depend on where the sweep was started.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from altgrad.data.dataset import Dataset
from altgrad.document import ASSIGNED, Document, Location, SpecError
from altgrad.matrix import ARM, Matrix, MatrixPlace, runs_of
from altgrad.nn import ALONE
from altgrad.progress import progress
from altgrad.spec import LocatedError, did_you_mean
from altgrad.spec.selection import selects
from altgrad.store import RunStore, run_id
from altgrad.training import RunSpec
from altgrad.training.fitting import check_start, fit_phases, open_data, resolve, shapes
from altgrad.training.initial import leak_warning
from altgrad.training.restore import same_data

_INDIFFERENT = ("seed", "name", "project", "schedule", "steps", "clip_norm", "track", "log_every", "keep", "threads")
"""Parts of a run spec that its own validation has judged already, and which nothing else has to fit."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: where it stands in the matrix, its resolved spec, its id, and how large it is."""

    place: MatrixPlace
    spec: RunSpec
    id: str
    parameters: int

    @property
    def values(self) -> dict[str, Any]:
        """What `--only` picks by: id, project, name, arm, seed, set of seeds, and all that its cell sets, by path."""
        place, spec = self.place, self.spec
        known: dict[str, Any] = {"id": self.id, "project": spec.project, "name": spec.name}
        known |= {ARM: place.arm, "seed": place.seed, "set": place.seeds}
        return {**place.changes, **place.axes, **known}


@dataclass(frozen=True)
class Plan:
    """Runs of a matrix, in order. total: how many it has in all; notices are for people."""

    name: str
    matrix: Matrix
    runs: Sequence[PlannedRun]
    total: int
    notices: Sequence[str] = ()

    def only(self, patterns: Iterable[str]) -> "Plan":
        """The runs that match every pattern: `key=pattern` on a label, or a pattern on id or arm.

        Patterns as `altgrad.spec.selection` reads them; a key may be the end of a path (`lr=*` for `optimizer.lr=*`).
        ValueError for a key that no run has, or if nothing is left.
        """
        kept = self.runs
        for pattern in patterns:
            key, equals, _ = pattern.partition("=")
            known = list(dict.fromkeys(label for run in self.runs for label in run.values))
            if equals and "." not in key and not any(_is(label, key) for label in known):
                ends = [*known, *(label.rpartition(".")[2] for label in known)]
                raise ValueError(f"--only {pattern}: no run of {self.name} has '{key}'.{did_you_mean(key, ends)}")
            kept = [run for run in kept if _matches(run, pattern)]
            if not kept:
                raise ValueError(f"--only {pattern} leaves no run of {self.name}.")
        return replace(self, runs=kept)


def _matches(run: PlannedRun, pattern: str) -> bool:
    key, equals, value = pattern.partition("=")
    if not equals:
        return selects(pattern, run.id) or selects(pattern, run.place.arm)
    return any(selects(value, own) for label, own in run.values.items() if _is(label, key))


def _is(label: str, key: str) -> bool:
    return label == key or label.endswith(f".{key}")


def make_plan(
    path: Path,
    *,
    smoke: bool = False,
    sets: Iterable[str] = (),
    only: Iterable[str] = (),
    device: torch.device | str = "cpu",
    store: Path = Path("runs"),
) -> Plan:
    """Read a matrix and validate every run of it, as `altgrad train` would that run.

    only: patterns that runs are picked by (`Plan.only`). store: where its runs will be, and where a twin is looked for.
    Raises SpecError for the first run that does not fit.
    """
    document = Document.load(path)
    matrix = Matrix.check(document)
    if smoke:
        try:
            matrix = matrix.smoked()
        except ValueError as error:
            raise SpecError(str(path), str(error)) from None
    sets = list(sets)
    found = runs_of(matrix, path.parent, RunSpec, sets, document)
    fitting = _Fitting(torch.device(device), RunStore(store))
    planned: list[PlannedRun] = []
    for place, spec in found:
        progress("checking every run", len(planned), len(found))
        try:
            planned.append(fitting.fit(place, spec))
        except (ValueError, OSError) as error:
            assigned = _assigned(sets, error.location if isinstance(error, LocatedError) else (), str(error))
            raise SpecError(assigned or f"{path.name} with {place}"[:200], str(error)) from None
    name = re.sub(r"[^A-Za-z0-9_-]", "-", path.stem) + ("-smoke" if smoke else "")
    return Plan(name, matrix, planned, len(planned), tuple(fitting.notices)).only(only)


def _assigned(sets: Sequence[str], location: Location, message: str) -> str:
    """The assignment that a message about this location speaks of; empty for none."""
    document = Document(None, "")
    for each in sets:
        path = each.partition("=")[0].strip()
        document.values[tuple(int(part) if part.isdecimal() else part for part in path.split("."))] = ASSIGNED + each
    where = document.where(location, message=message)
    return where if where.startswith(ASSIGNED) else ""


@dataclass
class _Fitting:
    """Checks and resolves runs, each distinct part once."""

    device: torch.device
    store: RunStore
    notices: list[str] = field(default_factory=list)
    _data: dict[str, tuple[Dataset, int]] = field(default_factory=dict)
    _models: dict[str, nn.Module] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)

    def fit(self, place: MatrixPlace, spec: RunSpec) -> PlannedRun:
        """The run, resolved. ValueError or OSError where `altgrad train` would refuse it."""
        tree = spec.tree()
        data_key = json.dumps([tree["data"], spec.model.context])
        ready_key = json.dumps({key: value for key, value in tree.items() if key not in _INDIFFERENT})
        if data_key not in self._data:
            data = open_data(spec)
            self._data[data_key] = data, data.batch(0).inputs.numel()
        dataset, tokens = self._data[data_key]
        models = self._models_of(spec, tree, dataset)
        if ready_key not in self._ready or spec.twin is not None or spec.branch is not None:
            check_start(spec, dataset, fit_phases(spec, dataset, ALONE, models), self.store)
            self._ready.add(ready_key)
        given = spec.model_copy(update={"threads": spec.threads or 1})
        resolved, notice = resolve(given, models, tokens, self.device)
        name = run_id(resolved.name, resolved.fingerprint(), resolved.seed)
        if (known := self.store.run(resolved.project, name)).exists:
            same_data(known, dataset)
        for told in (notice, spec.warmup_notice, leak_warning(spec)):
            if told is not None and told not in self.notices:
                self.notices.append(told)
        return PlannedRun(place, resolved, name, sum(p.numel() for p in models[0].parameters()))

    def _models_of(self, spec: RunSpec, whole: dict[str, Any], dataset: Dataset) -> list[nn.Module]:
        """The model of each phase. whole: the spec's tree."""
        found = []
        for number in spec.phases:
            with spec.in_phase(number) as now:
                tree = whole if now is spec else now.tree()
                key = json.dumps([tree.get(part) for part in ("data", "model", "precision", "evaluate_with")])
                if key not in self._models:
                    self._models[key] = shapes(now, dataset)
                found.append(self._models[key])
        return found
