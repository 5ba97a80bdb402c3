"""What the second edition runs, in order of importance: study/PLAN.md in code.

A part is a list of runs that follows from study/parts/*.yaml and from rows that are in already. Matrices are fixed:
screen, masters, twins, sides, llama, llama_dial, none, sgd, controls. Six parts follow from results by a rule:

    edges      an arm whose lowest mean loss lies at an end of its rates runs the next eighth of a decade, on the seeds
               of its matrix, until neither end is lowest, at most FURTHEST times to either side
    confirm    when screen and its edges are in: of each format the best and the worst screened cell that is not even,
               p = 1 at kappa 2^-6 and 1, and AdamW, each at its lr* and an eighth to either side, on CONFIRM seeds:
               FIRST_STAGE pairs, then as many as their pooled sd asks for (`study.confirmed.pairs_of`)
    fresh      every confirmed cell at the rate that the first stage chose (`study.confirmed.lowest`), on the CONFIRM
               seeds after it: what `confirm` and `confound` have not run of that
    confound   {fixed with margin 1, tracked} x {adamw, manifold} at one rate each, on the same seeds
    cliff      the matrix, and the rates of nine eighths around an lr* that it lacks
    finetune   the matrix at rates a quarter of a decade apart, its ends as in `edges`; then every cell at its lr*, on
               FINETUNE seeds

Within a part runs are ordered by seed, then rate, then cell, so that whatever is in is balanced. A run that two parts
name is one run: rows are known by the spec's fingerprint.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from altgrad.matrix import Matrix, runs_of
from altgrad.training import RunSpec
from study import confirmed, rows
from study.cell import Cell, cell_of, format_of

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "parts"
EIGHTH = 10**0.125
ANCHOR = 2.0e-3
FURTHEST = 4
AROUND = 4
"""Eighths of a decade to either side of lr* over which the cost of a wrong rate is told."""
PILOT, SCREEN, CONFIRM = range(7700, 7708), range(2000, 2003), range(2100, 2124)
TUNING, FINETUNE = range(2200, 2202), range(2210, 2218)
GPU = range(2300, 2302)
QUARTER = 2
"""Eighths of a decade."""
STORED = ("e3m4f", "e4m3f", "e5m2f", "e7m0")
CONFOUND = {"e3m4f": (4.74e-3, 6.32e-3), "e4m3f": (4.74e-3, 6.32e-3), "e7m0": (4.74e-3, 20.0e-3)}
"""lr* of AdamW and of manifold under a fixed scale of margin 1, as the first edition tuned them (PRIMARY)."""
INITIAL = "runs/study-second-initial"
"""Where first weights are put (`study.initial`), from the folder that runs are started in."""
FIXED = {"scale": "fixed", "scaling": {"kind": "current", "margin": 1}}


@dataclass(frozen=True)
class Planned:
    """One run, and the part that it is first named in."""

    part: str
    spec: RunSpec
    fingerprint: str

    @classmethod
    def of(cls, part: str, spec: RunSpec) -> "Planned":
        """With its fingerprint, which takes a millisecond."""
        return cls(part, spec, spec.fingerprint())

    @property
    def title(self) -> str:
        """As its run's id."""
        return f"{self.spec.name}-{self.fingerprint[:8]}-s{self.spec.seed}"


class Waiting(Exception):
    """A part that follows from runs that are not in yet; says which."""


def plan(frame: pd.DataFrame, names: Iterable[str] | None = None) -> tuple[list[Planned], dict[str, str]]:
    """Every run that can be named now, in order, those that are in included; and by part what it waits for."""
    known: dict[str, Planned] = {}
    waits: dict[str, str] = {}
    for name in PARTS if names is None else names:
        try:
            found = {**PARTS, **OUTSIDE}[name](frame)
        except Waiting as reason:
            waits[name] = str(reason)
            continue
        for each in found:
            known.setdefault(each.fingerprint, each)
    return list(known.values()), waits


@cache
def runs_in(name: str) -> tuple[Planned, ...]:
    """The runs of a matrix in the order of the head of this file."""
    path = FOLDER / f"{name}.yaml"
    runs = [(place, spec) for place, spec in runs_of(Matrix.load(path), path.parent, RunSpec)]
    rates: dict[float, int] = {}
    for place, _ in runs:
        rates.setdefault(place.axes.get("optimizer.lr", 0.0), len(rates))
    if name == "spread":
        runs = [(place, changed(spec, init_from=f"{INITIAL}/spread-s{spec.seed}.safetensors")) for place, spec in runs]
    order = sorted(runs, key=lambda run: (run[0].seed, rates[run[0].axes.get("optimizer.lr", 0.0)]))
    return tuple(Planned.of(name, spec) for _, spec in order)


def fixed(name: str) -> Callable[[pd.DataFrame], Sequence[Planned]]:
    """The part that is one matrix."""
    return lambda frame: runs_in(name)


def at(spec: RunSpec, rate: float, seed: int) -> RunSpec:
    """The spec at another rate and seed. Copied, not checked again: neither can be wrong."""
    return spec.model_copy(update={"seed": seed, "optimizer": spec.optimizer.model_copy(update={"lr": rate})})


def changed(spec: RunSpec, **paths: Any) -> RunSpec:
    """The spec with these values; `optimizer__lr` is optimizer.lr."""
    tree = json.loads(json.dumps(spec.tree()))
    for path, value in paths.items():
        *way, last = path.split("__")
        place = tree
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = value
    return RunSpec.made_from(tree)


def beside(rate: float, steps: int) -> float:
    """The rate so many eighths of a decade away, to three digits; on the common lattice where the rate is on it."""
    place = 8 * math.log10(rate / ANCHOR)
    if abs(place - round(place)) < 0.02:
        return float(f"{ANCHOR * EIGHTH ** (round(place) + steps):.3g}")
    return float(f"{rate * EIGHTH**steps:.3g}")


def edges(frame: pd.DataFrame, names: Sequence[str] | None = None) -> list[Planned]:
    """What is run beyond the rates of these matrices, in every cell whose own runs are in."""
    return [
        Planned.of("edges", spec)
        for name in names or SWEPT
        for cell, own in cells_in(name).items()
        for spec in beyond(own, rates_run(frame, cell, own))
    ]


def beyond(own: Sequence[Planned], rates: Sequence[float]) -> list[RunSpec]:
    """The runs of a cell, on the seeds of its matrix, at those of these rates that its matrix does not have."""
    seeds, first = sorted({each.spec.seed for each in own}), [each.spec.optimizer.lr for each in own]
    further = [rate for rate in rates if not any(math.isclose(rate, one) for one in first)]
    return [at(own[0].spec, rate, seed) for rate in further for seed in seeds]


@cache
def cells_in(name: str) -> dict[Cell, list[Planned]]:
    """The runs of a matrix by cell."""
    cells: dict[Cell, list[Planned]] = {}
    for each in runs_in(name):
        cells.setdefault(cell_of(each.spec), []).append(each)
    return cells


def rates_run(frame: pd.DataFrame, cell: Cell, own: Sequence[Planned], step: int = 1) -> list[float]:
    """The rates among which a cell's lr* is chosen: those of its matrix, and what its ends made necessary so far.

    Rates that another part happens to run are not among them, so that an lr* that is settled stays. step: eighths of a
    decade between rates.
    """
    seeds = sorted({each.spec.seed for each in own})
    first = sorted({each.spec.optimizer.lr for each in own})
    rates = list(first)
    while True:
        means = rows.mean_losses(frame, cell, rates, seeds)
        if any(math.isnan(mean) for mean in means):
            return rates
        best = rates[means.index(min(means))]
        high, low = best == rates[-1], best == rates[0]
        further = sum(rate > first[-1] if high else rate < first[0] for rate in rates)
        if not (high or low) or further >= FURTHEST:
            return rates
        rates = sorted([*rates, beside(best, step if high else -step)])


def tuned(frame: pd.DataFrame) -> confirmed.Tuned:
    """lr* and screened loss of every cell of the screen. Waiting while runs of it, or of its edges, are missing."""
    needed = [*runs_in("screen"), *edges(frame, ["screen"])]
    have = set(frame["fingerprint"])
    if missing := sum(each.fingerprint not in have for each in needed):
        raise Waiting(f"{missing} runs of the screen and its edges")
    return {
        cell: confirmed.choose(frame, cell, rates_run(frame, cell, own), SCREEN)
        for cell, own in cells_in("screen").items()
    }


def confirm(frame: pd.DataFrame) -> list[Planned]:
    """See the head of this file."""
    found = tuned(frame)
    examples = {cell: own[0].spec for cell, own in cells_in("screen").items()}
    cells = {cell: rate for name in STORED for cell, rate in confirmed.cells_of(found, name).items()}
    wanted: list[tuple[int, int, RunSpec]] = []
    for name in STORED:
        own = {cell: rate for cell, rate in cells.items() if format_of(cell) == name}
        n = confirmed.pairs_of(frame, own, beside, CONFIRM)
        for step, place in enumerate((0, -1, 1)):
            for cell, rate in own.items():
                lr = beside(rate, place)
                wanted += [(number, step, at(examples[cell], lr, seed)) for number, seed in enumerate(CONFIRM[:n])]
    return [Planned.of("confirm", spec) for *_, spec in sorted(wanted, key=lambda each: each[:2])]


def confound(frame: pd.DataFrame) -> list[Planned]:
    """The clipped half at the first edition's rates, the tracked half at the screen's."""
    found = tuned(frame)
    examples = {cell: own[0].spec for cell, own in cells_in("screen").items()}
    pairs: list[tuple[RunSpec, RunSpec]] = []
    for name, rates in CONFOUND.items():
        adamw, manifold = confirmed.reference_of(found, name), confirmed.dial(found, name, 1.0, 2.0**-6)
        for cell, rate in zip((adamw, manifold), rates, strict=True):
            rule = {**examples[cell].tree()["storage"][0], **FIXED}
            clipped = changed(examples[cell], storage=[rule])
            pairs.append((at(examples[cell], found[cell].rate, 0), at(clipped, rate, 0)))
    return [
        Planned.of("confound", at(spec, spec.optimizer.lr, seed)) for seed in CONFIRM for pair in pairs for spec in pair
    ]


def cliff(frame: pd.DataFrame) -> list[Planned]:
    """Its matrix, and of every cell the rates of nine eighths around lr* that the matrix lacks, once lr* is known."""
    found = list(runs_in("cliff"))
    try:
        known = tuned(frame)
    except Waiting:
        return found
    for cell, own in cells_in("cliff").items():
        rates = [beside(known[cell].rate, step) for step in range(-AROUND, AROUND + 1)]
        found += [Planned.of("cliff", spec) for spec in beyond(own, rates)]
    return found


def fresh(frame: pd.DataFrame) -> list[Planned]:
    """See the head of this file. Waiting while a cell lacks runs of the first stage."""
    found = tuned(frame)
    examples = {cell: own[0].spec for cell, own in cells_in("screen").items()}
    first, after = CONFIRM[: confirmed.FIRST_STAGE], CONFIRM[confirmed.FIRST_STAGE :]
    cells = {cell: rate for name in STORED for cell, rate in confirmed.cells_of(found, name).items()}
    rates = {cell: confirmed.lowest(frame, cell, rate, beside, first) for cell, rate in cells.items()}
    if None in rates.values():
        raise Waiting("the first stage of confirm")
    specs = [at(examples[cell], rate, seed) for seed in after for cell, rate in rates.items() if rate is not None]
    return [Planned.of("fresh", spec) for spec in specs]


def finetune(frame: pd.DataFrame) -> list[Planned]:
    """See the head of this file: cells that are tuned are confirmed once all are."""
    cells = cells_in("finetune")
    rates = {cell: rates_run(frame, cell, own, QUARTER) for cell, own in cells.items()}
    found = list(runs_in("finetune"))
    found += [Planned.of("finetune", spec) for cell, own in cells.items() for spec in beyond(own, rates[cell])]
    have = set(frame["fingerprint"])
    if all(each.fingerprint in have for each in found):
        chosen = {cell: confirmed.choose(frame, cell, rates[cell], TUNING).rate for cell in cells}
        specs = [at(cells[cell][0].spec, rate, seed) for seed in FINETUNE for cell, rate in chosen.items()]
        found += [Planned.of("finetune", spec) for spec in specs]
    return found


OUTSIDE = {"pilot": fixed("pilot"), "gpu": fixed("gpu")}
"""Parts that are run only when they are named: the pilot, in no table, and what takes a GPU."""
SWEPT = ("screen", "masters", "sides", "none", "spread", "llama", "llama_dial", "sgd")
"""Matrices whose cells have an lr* of their own, so that edges follow."""
PARTS: Mapping[str, Callable[[pd.DataFrame], Sequence[Planned]]] = {
    "screen": fixed("screen"),
    "edges": edges,
    "masters": fixed("masters"),
    "twins": fixed("twins"),
    "confirm": confirm,
    "confound": confound,
    "fresh": fresh,
    "sides": fixed("sides"),
    "none": fixed("none"),
    "spread": fixed("spread"),
    "sgd": fixed("sgd"),
    "cliff": cliff,
    "controls": fixed("controls"),
    "llama": fixed("llama"),
    "llama_dial": fixed("llama_dial"),
    "finetune": finetune,
}
