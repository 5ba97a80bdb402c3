"""altgrad.compare: which of several arms is better, and how sure that is, for AltGrad's runs and anybody's.

Targets are runs and projects of the store, files of any training loop (`loss_files`), TensorBoard folders
(`event_files`) and W&B projects (`wandb_runs`). Whatever they come from, their runs are grouped into arms and judged as
those of a report are (`arm_comparison`), by one rule (`altgrad.statistics.verdict`). One seed an arm is never a
verdict: what is given then is a band for these two curves (`altgrad.statistics.window`).
"""

import math
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from altgrad.numerals import counted
from altgrad.progress import progress
from altgrad.reports.arm_comparison import ArmComparison, Better, compare_arms
from altgrad.reports.compared_runs import ComparedRun, compared_record
from altgrad.reports.event_files import holds_events, read_event_files
from altgrad.reports.loss_files import SUFFIXES, Reading, read_loss_file, what_was_read
from altgrad.reports.reading import LOSS, read
from altgrad.reports.wandb_runs import read_wandb
from altgrad.spec import did_you_mean
from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import ArmVerdict
from altgrad.store import Run, RunStore

if TYPE_CHECKING:
    import pandas

COLUMNS = ("arm", "runs", "mean", "difference", "low", "high", "n", "verdict", "pairs_needed")


class Stored(Protocol):
    """A run with its folder: a TrainedRun, a Run."""

    @property
    def path(self) -> Path:
        """Its folder."""
        ...


def frame_of(found: ArmComparison) -> "pandas.DataFrame":
    """A row an arm, as `altgrad.compare` gives it."""
    import pandas

    facts = data_of(found)
    frame = pandas.DataFrame(facts["arms"], columns=list(COLUMNS)).astype({"n": "Int64", "pairs_needed": "Int64"})
    frame.attrs = {key: facts[key] for key in ("metric", "margin", "reference", "sentence", "differences", "notes")}
    return frame


def data_of(found: ArmComparison) -> dict[str, Any]:
    """All of it as plain data, for programs."""
    verdict = found.verdict
    return {
        "sentence": verdict.sentence, "reference": verdict.reference, "metric": found.metric, "margin": verdict.margin,
        "exit_code": found.exit_code, "arms": [_facts(found, arm) for arm in verdict.arms.values()],
        "differences": {path: dict(zip(found.arms, words, strict=True)) for path, words in found.differences.items()},
        "notes": list(found.notes),
    }  # fmt: skip


def _facts(found: ArmComparison, arm: ArmVerdict) -> dict[str, Any]:
    facts: dict[str, Any] = {"arm": arm.arm, "runs": arm.runs, "mean": arm.mean, "verdict": arm.verdict}
    more: dict[str, Any] = {"diverged": arm.diverged, "seeds": sorted(found.arms[arm.arm].seeds)}
    if arm.verdict == "reference":
        return facts | more
    interval, known = arm.interval, arm.interval.n > 1
    facts |= {"difference": interval.mean, "n": interval.n}
    facts |= {"low": interval.low if known else math.nan, "high": interval.high if known else math.nan}
    if arm.verdict == "undecided" and arm.more_seeds is not None:
        facts["pairs_needed"] = interval.n + arm.more_seeds
    if known:
        beside = arm.bonferroni
        more["bonferroni"] = {"low": beside.low, "high": beside.high, "verdict": arm.bonferroni_verdict}
        more |= {"p_zero": arm.p_zero, "p_equivalent": arm.p_equivalent}
    more |= {"more_seeds": arm.more_seeds} if arm.is_open else {}
    if band := found.windows.get(arm.arm):
        ends = {"mean": band.mean, "low": band.low, "high": band.high}
        more["window"] = {"metric": band.metric, "steps": [band.first, band.last], **ends}
    return facts | more


def compare(
    *targets: str | Path | Stored,
    runs: str | Path = "runs",
    metric: str = LOSS,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Better = "lower",
) -> "pandas.DataFrame":
    """A pandas DataFrame, one row an arm: its difference from the reference arm in `metric`, and the verdict.

    targets: trained runs, their ids or folders, a project for all its runs; a CSV, JSON or JSON-lines file, a folder of
    TensorBoard event files, or `wandb:ENTITY/PROJECT`, of any training loop. runs: the store that ids and projects are
    looked up in. reference: the name of an arm or the id of one of its runs; else the twin that runs name, or the least
    quantised arm. margin: a difference below it is of no practical size.

    Columns: arm; runs (results it has); mean; difference (arm less reference, over n seeds that both have), low and
    high (simultaneous over the rows, NaN below two seeds); n; verdict (better, worse, equivalent, direction only,
    undecided; `one seed`, `no seed in common`; `reference`); pairs_needed (seeds in all that a decision would take).
    A run that diverged enters as the loss of knowing nothing. `attrs` has the answer as a `sentence`, `reference`,
    `metric`, `margin`, `differences` (of the arms' specs) and `notes` (what was read).

    ValueError for a target that names nothing, or fewer than two arms.
    """
    found = compare_runs(targets, runs=runs, metric=metric, reference=reference, margin=margin, better=better)
    return frame_of(found)


def compare_runs(
    targets: Collection[str | Path | Stored],
    *,
    runs: str | Path = "runs",
    metric: str = LOSS,
    reference: str | None = None,
    margin: float = MARGIN,
    better: Better = "lower",
) -> ArmComparison:
    """`altgrad.compare`, with all that the verdict rests on."""
    found, notes, projects, left_out = _read_all(targets, RunStore(Path(runs)), metric)
    progress("judging arms")
    compared = compare_arms(
        found, metric, reference=reference, margin=margin, better=better, each_rate=projects == 0,
        by_project=projects > 1,
    ) if found else None  # fmt: skip
    if compared is None or len(compared.arms) < 2:
        told = "One run" if len(found) == 1 else f"{len(found)} runs{' that differ in their seed alone' * bool(found)}"
        more = f" Without a result yet: {counted(left_out, 'run')}." if left_out else ""
        raise ValueError(f"{told} cannot be compared; name a run of another arm, or a project with two.{more}")
    if not any(arm.runs for arm in compared.verdict.arms.values()):
        keys = {key for run in found if run.record for key in run.record.series}
        hint = did_you_mean(metric, keys) or " Completed and diverged runs have."
        raise ValueError(f"none of these runs has a result in {metric!r}.{hint}")
    if left_out:
        notes.append(f"{counted(left_out, 'run')} without a result left out.")
    return replace(compared, notes=[*notes, *compared.notes])


def _read_all(
    targets: Collection[str | Path | Stored], store: RunStore, metric: str
) -> tuple[list[ComparedRun], list[str], int, int]:
    """Every run with a result that is meant, once; what was read; how many targets are projects; how many runs have no
    result.
    """
    stored: dict[Path, Run] = {}
    readings: list[Reading] = []
    everyone = list(store.runs(set_aside=True))  # once: there may be thousands, and as many targets
    projects = {run.project for run in everyone}
    known = Counter(name for run in everyone for name in (run.id, f"{run.project}/{run.id}"))
    exact = {name: run for run in everyone for name in (run.id, f"{run.project}/{run.id}") if known[name] == 1}
    key = None if metric == LOSS else metric
    whole = 0
    for number, target in enumerate(targets):
        progress("reading what is compared", number, len(targets))
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
            found = exact.get(text) or (
                Run(Path(os.path.abspath(text))) if text and Run(path).exists else _find(store, text, path)
            )
            stored[found.path.resolve()] = found
    ours = []
    for number, run in enumerate(stored.values()):
        progress("reading runs", number, len(stored))
        ours.append(_of_store(run, metric))
    results = [run for run in ours if run is not None]
    everything = results + [run for each in readings for run in each.runs]
    return everything, what_was_read(readings), whole, len(ours) - len(results)


def _find(store: RunStore, text: str, path: Path) -> Run:
    """By the beginning of its id. ValueError where there is none, in the words of what is there instead."""
    try:
        return store.find(text)
    except ValueError:
        if path.is_file():
            raise ValueError(f"{text} cannot be read; a comparison reads {', '.join(SUFFIXES)}.") from None
        if path.is_dir():
            raise ValueError(f"{text} is not a run, and holds no event files up to two folders down.") from None
        raise


def _of_store(run: Run, metric: str) -> ComparedRun | None:
    """None for a run without spec or result, or whose metrics are damaged."""
    record = read(run, (metric.rpartition("/")[2],), events=False)
    if not (record.ended and record.spec and record.whole):
        return None
    return compared_record(record, metric)
