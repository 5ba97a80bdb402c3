"""Where a project's runs are read from: the store, archives of earlier reports, or Weights & Biases."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from altgrad.progress import progress
from altgrad.reports.archive import load_archives
from altgrad.reports.arms import PAIR
from altgrad.reports.project import Project
from altgrad.reports.reading import read
from altgrad.reports.section import drawn_metrics
from altgrad.reports.wandb_runs import load_from_wandb
from altgrad.spec import did_you_mean
from altgrad.store import RunStore


def open_project(
    name: str | None,
    runs: str | Path = "runs",
    sources: Sequence[str | Path] = (),
    *,
    tuning: Collection[int] = (),
    pair: tuple[str, str] = PAIR,
    reference: str | None = None,
) -> Project:
    """A project by name (left out: the only one there is), or what sources hold: `wandb:ENTITY/PROJECT`, or archives.

    ValueError where there is none, and for a pair of optimizers that no run has.
    """
    if sources and name is not None:
        raise ValueError("--project and --from both name runs; give one of them.")
    if len(sources) == 1 and str(sources[0]).startswith("wandb:"):
        found = load_from_wandb(str(sources[0]), drawn_metrics(), tuning=tuning)
    elif sources:
        found = load_archives([Path(source) for source in sources], tuning=tuning)
    else:
        store = RunStore(Path(runs))
        if name is None:
            known = sorted({run.project for run in store.runs()})
            if len(known) != 1:
                raise ValueError(f"--project is needed; {runs} holds {', '.join(known[:8]) or 'no runs'}.")
            name = known[0]
        found = load_project(store, name, tuning=tuning)
    return replace(found, pair=pair if pair == PAIR else _checked(pair, found), reference=reference)


def load_project(store: RunStore, project: str, *, tuning: Collection[int] = ()) -> Project:
    """Read every run of a project. tuning: seeds whose runs chose learning rates. ValueError if it has none."""
    runs = list(store.runs(project))
    if not runs:
        known = sorted({run.project for run in store.runs()})
        hint = f"there are {', '.join(known[:8])}" if known else "`altgrad train` makes some"
        raise ValueError(f"project {project!r} has no runs in {store.root}; {hint}.")
    records, metrics = [], drawn_metrics()
    for number, run in enumerate(runs):
        progress("reading runs", number, len(runs))
        records.append(read(run, metrics))
    return Project(project, str(store.root), records, frozenset(tuning) or None)


def _checked(pair: tuple[str, str], project: Project) -> tuple[str, str]:
    known = sorted({record.arm.optimizer for record in project.records if record.spec})
    if len(set(pair)) != 2:
        raise ValueError(f"the pair is {','.join(pair)}; it takes two different optimizers, as adamw,madam.")
    for optimizer in pair:
        if optimizer not in known:
            hint = did_you_mean(optimizer, known) or f" There are {', '.join(known) or 'none'}."
            raise ValueError(f"no run of {project.name} has the optimizer '{optimizer}'.{hint}")
    return pair
