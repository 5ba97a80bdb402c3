"""One run from the store as a Record: what it is, how it ended, and its numbers, thinned as they are read.

A run's metrics can be many megabytes, and a project has hundreds of runs: each file is read once, from first to last,
only the quantities asked for are kept, those that some section draws, and every series is thinned with its spikes.
Nothing a run's folder may hold stops a report: what is damaged is a line in `problems`, and what could be read before
it is used. Specs that differ in their seed alone are parsed once.
"""

import itertools
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad.document import Document, SpecError
from altgrad.reports.arms import Arm, arm_of, condition_of, rate_of, settings_of
from altgrad.store import Run
from altgrad.store.files import NON_FINITE, read_jsonl, spell_nonfinite
from altgrad.store.runs import EVENTS, LOGGED, METRICS
from altgrad.symptoms import Examination

LOSS, TRAIN_LOSS = "validation/loss", "train/loss"
PLAIN = ("train/", "validation/", "time/")
PLAIN_POINTS, SITED_POINTS = 600, 100  # by site: so many that no column of a heat map is left without a point
EVENTS_KEPT = 400
MOST = 1e60

UNKNOWN = Arm("?", "", "", "?")
_SEED_LINE = re.compile(r"(?m)^seed: (0|[1-9][0-9]{0,15})$")
Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values."""


@dataclass
class RunRecord:
    """A run as the report sees it. `loss`: the last validation loss, None if there is none.

    series: by metric key. events: the run's, then one for each symptom of it. problems: what could not be read. `spec`
    and `meta` are plain data, empty where damaged. run: where it stands in a store, if it was read from one.
    """

    id: str
    status: str = "?"
    whole: bool = True
    """Whether all its metrics could be read: what stands before a damaged line is drawn, and judged by nobody."""
    reason: str = ""
    step: int = 0
    seed: int = 0
    rate: float = math.nan
    arm: Arm = UNKNOWN
    condition: str = ""
    settings: str = field(default="", repr=False)
    """Its spec but for seed and rate; see `settings_of`."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    run: Run | None = field(default=None, repr=False, compare=False)

    @property
    def loss(self) -> float | None:
        """The last validation loss."""
        found = self.series.get(LOSS)
        return float(found[1][-1]) if found is not None and len(found[1]) else None

    @property
    def ended(self) -> bool:
        """Whether the run is a result: completed or diverged."""
        return self.status in ("completed", "diverged")

    @property
    def diverged(self) -> bool:
        """By its status, or by a last loss that is no number."""
        return self.status == "diverged" or (self.ended and self.loss is not None and not math.isfinite(self.loss))

    @property
    def ignorance(self) -> float:
        """The loss of knowing nothing: ln(vocabulary), else the loss before training; NaN where neither is known."""
        data = self.meta.get("data")
        vocabulary = data.get("vocabulary") if isinstance(data, Mapping) else None
        if isinstance(vocabulary, int | float) and vocabulary > 1:
            return math.log(vocabulary)
        found = self.series.get(LOSS)
        return float(found[1][0]) if found is not None and len(found[0]) and found[0][0] == 0 else math.nan

    @property
    def outcome(self) -> float:
        """The loss that enters statistics: the last one, or `ignorance` if it diverged.

        NaN without result or spec, and where metrics are damaged.
        """
        if not self.ended or not self.spec or not self.whole:
            return math.nan
        if self.diverged:
            return self.ignorance
        return math.nan if self.loss is None else self.loss

    def sited(self, monitor: str, quantity: str) -> dict[str, Series]:
        """Series of one monitor's quantity by site or parameter."""
        head, tail = f"{monitor}/", f"/{quantity}"
        return {
            key[len(head) : -len(tail)]: series
            for key, series in self.series.items()
            if key.startswith(head) and key.endswith(tail)
        }


def read(run: Run, metrics: Collection[str] = ("*",), *, events: bool = True) -> RunRecord:
    """The record of a run, whatever state its folder is in. metrics: the quantities by site to keep.

    events: whether those of the run and of its symptoms are read, which a comparison does not need.
    """
    record = RunRecord(run.id, run=run)
    meta: Mapping[str, Any] | None = None
    try:
        record.meta = meta = run.meta()
        record.status = run.status_by(meta)
    except (ValueError, OSError) as error:
        record.problems.append(_line(error))
    try:
        take_spec(record, *recorded_spec(run.spec_text(meta)))
    except (SpecError, ValueError, OSError) as error:
        record.problems.append(_line(error))
    record.reason = str(record.meta.get("reason", ""))
    collector = Collector(metrics, examine=events)
    try:
        for row in read_jsonl(run.path / METRICS, record.problems.append, whole=_logged(record, METRICS)):
            collector.add(row)
    except (ValueError, OSError) as error:
        record.problems.append(_line(error))
        record.whole = False
    record.series = collector.series()
    if events:
        try:
            for row in read_jsonl(run.path / EVENTS, record.problems.append, whole=_logged(record, EVENTS)):
                if len(record.events) < EVENTS_KEPT:
                    record.events.append(row)
        except (ValueError, OSError) as error:
            record.problems.append(_line(error))
        record.events += collector.symptoms()
    record.problems = [problem.replace(f"{run.path}/", "") for problem in record.problems]
    settle(record)
    return record


def _logged(record: RunRecord, name: str) -> int:
    """See Run.logged; 0 where meta.json is damaged."""
    sizes = record.meta.get(LOGGED)
    size = sizes.get(name) if isinstance(sizes, Mapping) else None
    return size if isinstance(size, int) else 0


@dataclass(frozen=True)
class _SpecFacts:
    """What a spec decides, whatever its seed."""

    arm: Arm
    condition: str
    settings: str
    rate: float

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "_SpecFacts":
        return cls(arm_of(spec), condition_of(spec), settings_of(spec, rate=False), rate_of(spec))


def take_spec(record: RunRecord, spec: Mapping[str, Any], facts: _SpecFacts | None = None) -> None:
    """Fill in what a spec decides. facts: what is known of it already."""
    facts = facts or _SpecFacts.of(spec)
    record.spec, record.arm, record.condition = spec, facts.arm, facts.condition
    record.settings, record.rate = facts.settings, facts.rate
    seed = spec.get("seed")
    record.seed = seed if isinstance(seed, int) else 0


def recorded_spec(text: str) -> tuple[Mapping[str, Any], _SpecFacts]:
    """A stored spec and what it decides. SpecError. Runs share the parts of a spec that they have in common."""
    if line := _SEED_LINE.search(text):
        spec, facts = _parsed(f"{text[: line.start()]}seed: 0{text[line.end() :]}")
        if spec.get("seed") == 0:  # else the line is a part of some text
            return spec | {"seed": int(line[1])}, facts
    return _parsed(text)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> tuple[dict[str, Any], _SpecFacts]:
    found = Document.recorded(text, "spec.yaml").data
    spec = found if isinstance(found, dict) else {}
    return spec, _SpecFacts.of(spec)


class Collector:
    """Rows in, thinned series and symptoms out: of losses, times, and the metrics whose last part is asked for."""

    def __init__(self, metrics: Collection[str], *, examine: bool = True) -> None:
        self._metrics = metrics
        self._examination = Examination() if examine else None
        self._wanted: dict[str, bool] = {"step": False}
        self._columns: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row; one without a step, and values that are no numbers, are passed over."""
        step = row.get("step")
        if not isinstance(step, int | float):
            return
        told = ((key, NON_FINITE.get(value) if isinstance(value, str) else value) for key, value in row.items())
        numbers = {key: _drawable(value) for key, value in told if isinstance(value, int | float)}
        if self._examination is not None and math.isfinite(numbers["step"]):
            self._examination.see(numbers)
        for key, value in numbers.items():
            wanted = self._wanted.get(key)
            if wanted is None:
                quantity = key.rpartition("/")[2]
                wanted = key.startswith(PLAIN) or any(fnmatchcase(quantity, each) for each in self._metrics)
                self._wanted[key] = wanted
            if wanted:
                steps, values = self._columns.setdefault(key, ([], []))
                steps.append(step)
                values.append(value)

    def symptoms(self) -> list[Mapping[str, Any]]:
        """What all rows show, thinned or not, as events."""
        if self._examination is None:
            return []
        return [spell_nonfinite(finding.event()) for finding in self._examination.findings()]

    def series(self) -> dict[str, Series]:
        """What came in so far."""
        found = {}
        for key, (steps, values) in self._columns.items():
            limit = PLAIN_POINTS if key.startswith(PLAIN) else SITED_POINTS
            found[key] = thin(np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64), limit)
        return found


def thin(steps: NDArray[np.float64], values: NDArray[np.float64], points: int) -> Series:
    """At most `points` (>= 8) of the series, in order; the series itself if it is short. NaN counts as a gap.

    The steps are cut into buckets of equal length and each keeps its smallest and its largest value, at the steps where
    they stood; first and last point stay, and so does the first non-finite value. A mean by bucket, the usual way,
    would hide exactly the one bad step that a report is read for.
    """
    n = len(values)
    if n <= points:
        return steps, values
    edges = np.linspace(0, n, (points - 4) // 2 + 1).astype(int)
    kept = {0, n - 1}
    for start, end in itertools.pairwise(edges):
        finite = np.flatnonzero(np.isfinite(values[start:end])) + start
        if len(finite):
            kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        kept.add(int(broken[0]))
    index = np.array(sorted(kept))
    return steps[index], values[index]


def _drawable(value: float) -> float:
    """The value; inf or 0 where no float32 would come: sums of squares and logarithmic axes end before doubles do."""
    size = abs(value)
    if size > MOST:
        return math.inf if value > 0 else -math.inf
    return 0.0 if size < 1 / MOST else value


def settle(record: RunRecord) -> None:
    """The last step, and what is odd about the run's own words."""
    steps = [series[0][-1] for key, series in record.series.items() if key.startswith(PLAIN) and len(series[0])]
    record.step = int(max(steps, default=record.meta.get("step") or 0))
    if record.status == "completed" and record.loss is None:
        record.problems.append("completed, but without any validation loss.")
    for key in (TRAIN_LOSS, LOSS):
        found = record.series.get(key)
        if found is not None and not np.isfinite(found[1]).all() and record.status != "diverged":
            record.problems.append(f"{key} is not finite at step {int(found[0][~np.isfinite(found[1])][0])}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
