"""altgrad.compare: which of several runs or arms is better, and how sure that is.

Runs that agree in all but their seed are one arm. Each arm is compared with a reference arm by the differences of a
metric between runs of one seed: their mean, its simultaneous 95 % interval over the arms compared, and what the
interval decides (`altgrad.statistics.intervals`). One seed an arm is a difference, and never a verdict.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from altgrad.numerals import counted
from altgrad.reports.arms import differing, settings_of
from altgrad.reports.reading import LOSS, RunRecord, read
from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import judge
from altgrad.store import Run, RunStore

if TYPE_CHECKING:
    import pandas


class Stored(Protocol):
    """A run with its folder: a TrainedRun, a Run."""

    @property
    def path(self) -> Path:
        """Its folder."""
        ...


def compare(
    *targets: str | Path | Stored,
    runs: str | Path = "runs",
    metric: str = LOSS,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Literal["lower", "higher"] = "lower",
) -> "pandas.DataFrame":
    """A pandas DataFrame, one row an arm: its difference from the reference arm in `metric`, and the verdict.

    targets: trained runs, their ids or folders, or a project for all its runs. runs: the store that ids and projects
    are looked up in. reference: the name of an arm or the id of one of its runs; else the arm in which nothing is
    quantised, or the first. margin: a difference below it is of no practical size.

    Columns: arm; runs (results it has); mean; difference (arm less reference, over n seeds that both have), low and
    high (simultaneous over the rows, NaN below two seeds); n; verdict (better, worse, equivalent, direction only,
    undecided; `one seed`, `no seed in common`; `reference`); pairs_needed (seeds in all that a decision would take).
    A run that diverged enters as the loss of knowing nothing. `attrs` has metric, margin and reference.

    ValueError for a target that names nothing, or fewer than two arms.
    """
    import pandas

    records = [read(run, (metric.rpartition("/")[2],)) for run in _found(targets, RunStore(Path(runs)))]
    arms = _named([record for record in records if record.spec])
    if len(arms) < 2:
        raise ValueError(f"{counted(len(records), 'run')}, alike in all but their seed; a comparison takes two arms.")
    chosen = _reference(arms, reference)
    values = {name: _values(inside, metric) for name, inside in arms.items()}
    if not any(values.values()):
        raise ValueError(f"none of these runs has a result in {metric}; completed and diverged runs have.")
    found = judge(values, chosen, margin=margin, better=better, unit="nats" if metric == LOSS else "")
    rows = []
    for arm in found.arms.values():
        row: dict[str, Any] = {"arm": arm.arm, "runs": arm.runs, "mean": arm.mean, "verdict": arm.verdict}
        if arm.arm != chosen:
            known = arm.interval.n > 1
            row |= {"difference": arm.interval.mean, "low": arm.interval.low if known else math.nan}
            row |= {"high": arm.interval.high if known else math.nan, "n": arm.interval.n}
            if arm.verdict == "undecided" and arm.more_seeds is not None:
                row["pairs_needed"] = arm.interval.n + arm.more_seeds
        rows.append(row)
    columns = ["arm", "runs", "mean", "difference", "low", "high", "n", "verdict", "pairs_needed"]
    frame = pandas.DataFrame(rows, columns=columns).astype({"n": "Int64", "pairs_needed": "Int64"})
    frame.attrs = {"metric": metric, "margin": margin, "reference": chosen}
    return frame


def _found(targets: Iterable[str | Path | Stored], store: RunStore) -> list[Run]:
    """The runs that are meant, each once."""
    runs: dict[Path, Run] = {}
    projects = {run.project for run in store.runs()}
    for target in targets:
        if not isinstance(target, str | Path):
            several = [Run(target.path)]
        elif str(target) in projects:
            several = list(store.runs(str(target)))
        else:
            several = [store.find(str(target))]
        runs |= {run.path.resolve(): run for run in several}
    return list(runs.values())


def _named(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by arm: its name, or as much of what it is as tells it from the others."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(settings_of(record.spec), []).append(record)
    words = differing(groups)
    firsts = [inside[0] for inside in groups.values()]
    names = [str(record.spec.get("name") or record.id) for record in firsts]
    labels = [record.arm.label for record in firsts]
    told = [f"{name} ({words[settings]})" for name, settings in zip(names, groups, strict=True)]
    rates = [f"{label}, lr {record.rate:g}" for label, record in zip(labels, firsts, strict=True)]
    schemes = (names, labels, rates, told, [record.id for record in firsts])
    scheme = next(scheme for scheme in schemes if len(set(scheme)) == len(firsts))
    return dict(zip(scheme, groups.values(), strict=True))


def _reference(arms: dict[str, list[RunRecord]], wanted: str | None) -> str:
    if wanted is not None:
        for name, inside in arms.items():
            if wanted == name or any(wanted in (record.id, record.spec.get("name")) for record in inside):
                return name
        raise ValueError(f"the reference is {wanted!r}; the arms are {', '.join(arms)}.")
    baselines = {name: inside[0].arm.format for name, inside in arms.items() if inside[0].arm.is_baseline}
    return next((name for name in baselines if baselines[name] == "FP32"), next(iter(baselines or arms)))


def _values(records: Iterable[RunRecord], metric: str) -> dict[int, float]:
    """The last value by seed, of the newest run of each; a diverged run has one only in the loss."""
    found: dict[int, float] = {}
    for record in sorted(records, key=lambda r: str(r.meta.get("created", ""))):
        series = record.series.get(metric)
        if metric == LOSS:
            value = record.outcome
        else:
            value = float(series[1][-1]) if record.ended and series is not None and len(series[1]) else math.nan
        if math.isfinite(value):
            found[record.seed] = value
    return found
