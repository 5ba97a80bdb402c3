"""altgrad.compare: which of several arms is better, and how sure that is, for AltGrad's runs and anybody's.

Targets are runs and projects of the store, files of any training loop (`loss_files`), TensorBoard folders
(`event_files`) and W&B projects (`wandb_runs`). Whatever they come from, their runs are grouped into arms
(`compared_runs`) and judged by one rule (`altgrad.statistics.verdict`). One seed an arm is never a verdict: what is
given then is a band for these two curves (`altgrad.statistics.window`).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.arms import FREE
from altgrad.reports.compared_runs import (
    ComparedRun,
    arms_of,
    common_end,
    compared_record,
    reference_of,
    stored_series,
    values_of,
)
from altgrad.reports.comparison_page import write_page
from altgrad.reports.curves import Array, common_steps, mean_over_runs
from altgrad.reports.event_files import holds_events, read_event_files
from altgrad.reports.loss_files import SUFFIXES, Reading, read_loss_file, what_was_read
from altgrad.reports.reading import LOSS, TRAIN_LOSS, Series, read
from altgrad.reports.wandb_runs import read_wandb
from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import ArmVerdict, Comparison, judge
from altgrad.statistics.window import WindowBand, window_band
from altgrad.store import Run, RunStore
from altgrad.store.compare import differing_parts, in_words

if TYPE_CHECKING:
    import pandas

COLUMNS = ("arm", "runs", "mean", "difference", "low", "high", "n", "verdict", "pairs_needed")


class Stored(Protocol):
    """A run with its folder: a TrainedRun, a Run."""

    @property
    def path(self) -> Path:
        """Its folder."""
        ...


@dataclass(frozen=True)
class RunComparison:
    """The verdict on the arms of some runs, and what it rests on.

    differences: by path, the part of each arm's settings, in words, where the arms differ. windows: by arm, of those
    with one seed, the band of its curve less the reference's. notes: what was read, left out or taken for granted.
    """

    verdict: Comparison
    metric: str
    arms: Mapping[str, Sequence[ComparedRun]]
    differences: Mapping[str, Sequence[str]]
    windows: Mapping[str, WindowBand]
    notes: Sequence[str]

    @property
    def sentence(self) -> str:
        """The answer."""
        return self.verdict.sentence

    @property
    def exit_code(self) -> int:
        """For scripts: 0 every arm is better or equivalent, 6 some arm is worse, 7 none is and some verdict is open."""
        if any(arm.verdict == "worse" for arm in self.verdict.judged):
            return 6
        return 7 if any(arm.is_open for arm in self.verdict.judged) else 0

    @property
    def settings(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of what differs: a row an arm, the longest words last, or, of more, a row a setting."""
        parts = sorted(self.differences.items(), key=lambda each: max(map(len, each[1])))
        if len(parts) > len(self.arms):
            return ["setting", *self.arms], [[path, *words] for path, words in self.differences.items()]
        rows = [[arm, *(words[i] for _, words in parts)] for i, arm in enumerate(self.arms)]
        return ["arm", *(path for path, _ in parts)], rows

    def curve(self, arm: str) -> Series:
        """The mean over seeds by step."""
        steps, mean, _, _ = mean_over_runs([run.series for run in self.arms[arm]])
        return steps, mean

    def difference(self, arm: str) -> tuple[Array, Array, Array, Array]:
        """(steps, mean, low, high) of the arm's curve less the reference's, over the seeds of both."""
        base = {run.seed: run.series for run in self.arms[self.verdict.reference]}
        pairs = [_less(run.series, base[run.seed]) for run in self.arms[arm] if run.seed in base]
        return mean_over_runs([pair for pair in pairs if len(pair[0])])

    def write_page(self, path: Path) -> None:
        """All of it as one page, in place of what was there."""
        write_page(self, path)

    def frame(self) -> "pandas.DataFrame":
        """A row an arm, as `altgrad.compare` gives it."""
        import pandas

        rows = [self._row(arm) for arm in self.verdict.arms.values()]
        frame = pandas.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64", "pairs_needed": "Int64"})
        attributes = ("metric", "margin", "reference", "sentence", "differences", "notes")
        frame.attrs = {key: value for key, value in self.data().items() if key in attributes}
        return frame

    def data(self) -> dict[str, Any]:
        """All of it as plain data, for programs."""
        return {
            "sentence": self.sentence, "reference": self.verdict.reference, "metric": self.metric,
            "margin": self.verdict.margin, "exit_code": self.exit_code,
            "arms": [self._facts(name) for name in self.verdict.arms],
            "differences": {path: dict(zip(self.arms, words, strict=True)) for path, words in self.differences.items()},
            "notes": list(self.notes),
        }  # fmt: skip

    def _row(self, arm: ArmVerdict) -> dict[str, Any]:
        row: dict[str, Any] = {"arm": arm.arm, "runs": arm.runs, "mean": arm.mean, "verdict": arm.verdict}
        if arm.verdict != "reference":
            found, known = arm.interval, arm.interval.n > 1
            row |= {"difference": found.mean, "n": found.n}
            row |= {"low": found.low if known else math.nan, "high": found.high if known else math.nan}
            if arm.verdict == "undecided" and arm.more_seeds is not None:
                row["pairs_needed"] = found.n + arm.more_seeds
        return row

    def _facts(self, name: str) -> dict[str, Any]:
        arm = self.verdict.arms[name]
        found = self._row(arm) | {"diverged": arm.diverged, "seeds": sorted(run.seed or 0 for run in self.arms[name])}
        if arm.verdict == "reference":
            return found
        if arm.interval.n > 1:
            found |= {"bonferroni": {"low": arm.bonferroni.low, "high": arm.bonferroni.high,
                                     "verdict": arm.bonferroni_verdict}}  # fmt: skip
            found |= {"p_zero": arm.p_zero, "p_equivalent": arm.p_equivalent}
        found |= {"more_seeds": arm.more_seeds} if arm.is_open else {}
        if band := self.windows.get(name):
            found["window"] = {
                "metric": band.metric,
                "steps": [band.first, band.last],
                "mean": band.mean,
                "low": band.low,
                "high": band.high,
            }
        return found


def compare(
    *targets: str | Path | Stored,
    runs: str | Path = "runs",
    metric: str = LOSS,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Literal["lower", "higher"] = "lower",
) -> "pandas.DataFrame":
    """A pandas DataFrame, one row an arm: its difference from the reference arm in `metric`, and the verdict.

    targets: trained runs, their ids or folders, a project for all its runs; a CSV, JSON or JSON-lines file, a folder of
    TensorBoard event files, or `wandb:ENTITY/PROJECT`, of any training loop. runs: the store that ids and projects are
    looked up in. reference: the name of an arm or the id of one of its runs; else the arm in which nothing is
    quantised, or the first. margin: a difference below it is of no practical size.

    Columns: arm; runs (results it has); mean; difference (arm less reference, over n seeds that both have), low and
    high (simultaneous over the rows, NaN below two seeds); n; verdict (better, worse, equivalent, direction only,
    undecided; `one seed`, `no seed in common`; `reference`); pairs_needed (seeds in all that a decision would take).
    A run that diverged enters as the loss of knowing nothing. `attrs` has the answer as a `sentence`, `reference`,
    `metric`, `margin`, `differences` (of the arms' specs) and `notes` (what was read).

    ValueError for a target that names nothing, or fewer than two arms.
    """
    return compare_runs(targets, runs=runs, metric=metric, reference=reference, margin=margin, better=better).frame()


def compare_runs(
    targets: Collection[str | Path | Stored],
    *,
    runs: str | Path = "runs",
    metric: str = LOSS,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Literal["lower", "higher"] = "lower",
) -> RunComparison:
    """`altgrad.compare`, with all that the verdict rests on."""
    found, notes, projects = _read_all(targets, RunStore(Path(runs)), metric)
    arms, told = arms_of(found, one_by_one=projects == 0, by_project=projects > 1)
    if len(arms) < 2:
        raise ValueError(f"{counted(len(found), 'run')}, alike in all but their seed; a comparison takes two arms.")
    chosen = reference_of(arms, reference)
    notes += told
    end = common_end(found, notes)
    values = {name: values_of(inside, end) for name, inside in arms.items()}
    if not any(map(len, values.values())):
        raise ValueError(f"none of these runs has a result in {metric}; completed and diverged runs have.")
    diverged = {name: [run.seed or 0 for run in inside if run.diverged] for name, inside in arms.items()}
    unit = "nats" if "loss" in metric else ""
    verdict = judge(values, chosen, margin=margin, better=better, diverged=diverged, unit=unit)
    firsts = [{k: v for k, v in inside[0].spec.items() if k not in FREE} for inside in arms.values()]
    parts = list(differing_parts(firsts)) if all(firsts) else []
    differences = {path: [in_words(part) for part in values] for path, values in parts}
    windows = {arm.arm: band for arm in verdict.judged if arm.verdict == "one seed"
               if (band := _band(arms[arm.arm], arms[chosen], metric))}  # fmt: skip
    return RunComparison(verdict, metric, arms, differences, windows, notes)


def _band(inside: Iterable[ComparedRun], base: Iterable[ComparedRun], metric: str) -> WindowBand | None:
    """Of the one pair of runs with a seed in common; of their training loss where the metric's curve is too short."""
    others = {run.seed: run for run in base}
    for run in inside:
        if other := others.get(run.seed):
            found = window_band(*_less(run.series, other.series), metric)
            if found is None and metric == LOSS and run.stored and other.stored:
                ours, theirs = (stored_series(each, TRAIN_LOSS) for each in (run.stored, other.stored))
                found = window_band(*_less(ours, theirs), TRAIN_LOSS)
            return found
    return None


def _less(ours: Series, theirs: Series) -> Series:
    """The difference of two curves on the steps that both reach; empty where one is."""
    if not (len(ours[0]) and len(theirs[0])):
        return np.array([]), np.array([])
    steps = common_steps([ours, theirs])
    steps = steps[(steps >= max(ours[0][0], theirs[0][0])) & (steps <= min(ours[0][-1], theirs[0][-1]))]
    return steps, np.interp(steps, *ours) - np.interp(steps, *theirs)


def _read_all(
    targets: Iterable[str | Path | Stored], store: RunStore, metric: str
) -> tuple[list[ComparedRun], list[str], int]:
    """Every run that is meant, once; what was read; how many targets are whole projects."""
    stored: dict[Path, Run] = {}
    readings: list[Reading] = []
    projects = {run.project for run in store.runs()}
    key = None if metric == LOSS else metric
    whole = 0
    for target in targets:
        text, path = str(target), Path(str(target))
        if not isinstance(target, str | Path):
            stored[target.path.resolve()] = Run(target.path)
        elif text.startswith("wandb:"):
            whole += 1
            readings.append(read_wandb(text, key))
        elif text in projects:
            whole += 1
            stored |= {run.path.resolve(): run for run in store.runs(text)}
        elif path.suffix in SUFFIXES:
            if not path.is_file():
                raise ValueError(f"there is no file {text}.")
            readings.append(read_loss_file(path, key))
        elif not (path / "spec.yaml").exists() and holds_events(path):
            readings.append(read_event_files(path, key))
        else:
            found = store.find(text)
            stored[found.path.resolve()] = found
    ours = [_of_store(run, metric) for run in stored.values()]
    known = [run for run in ours if run is not None]
    notes = what_was_read(readings)
    if len(known) < len(ours):
        notes.append(f"{counted(len(ours) - len(known), 'run')} without a result left out.")
    return known + [run for each in readings for run in each.runs], notes, whole


def _of_store(run: Run, metric: str) -> ComparedRun | None:
    """None for a run without spec or result, or whose metrics are damaged."""
    record = read(run, (metric.rpartition("/")[2],))
    if not (record.ended and record.spec and record.whole):
        return None
    return compared_record(record, metric, run)
