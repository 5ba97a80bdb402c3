"""ranks: does low precision make weight matrices lose directions that BF16 keeps?

Stable ranks fall a lot in healthy training, so what is drawn is their ratio to the BF16 (else FP32) run of the same
seed at the same step; below 1 the matrix has fewer directions than its twin's.
"""

import json
import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import significant
from altgrad.reports.arms import STANDARD, Arm
from altgrad.reports.content import Axes, Axis, Block, Dash, Figure, Guide, Headline, Limit, Table, Trace, tones
from altgrad.reports.curves import by_seed, mean_over_runs
from altgrad.reports.effects import main_arms
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord, Series
from altgrad.reports.section import Section, bounds
from altgrad.spec.ranking import badness
from altgrad.statistics.intervals import Interval, simultaneous

DROP = 0.8


class Ranks(Section):
    """Stable ranks against the twin's, over training and at the end."""

    kind: ClassVar[str] = "ranks"
    title: ClassVar[str] = "Ranks"
    question: ClassVar[str] = "Do weight matrices lose directions that BF16 keeps?"
    place: ClassVar[int] = 110
    metrics: ClassVar[tuple[str, ...]] = ("stable_rank",)

    def blocks(self, project: Project) -> list[Block]:
        arms = main_arms(project)
        low = {a: r for a, r in arms.items() if not a.is_baseline and not a.frozen and not a.variant}
        colours = tones([_numerics(records) for records in low.values()])
        marks: list[Trace | Guide] = [Guide(1.0, "y", "text", "solid"), Guide(DROP, "y", "red", "dash")]
        at_end: dict[str, dict[int, float]] = {}
        worst: dict[str, str] = {}
        twins = plain_twins(arms)
        for arm, records in low.items():
            series: list[Series] = []
            name = project.name_of(records[0])
            for record in records:
                twin = twins.get(record.seed)
                if twin is not None and (found := ratios(record, twin)):
                    series.append(mean_ratio(list(found.values())))
                    at_end.setdefault(name, {})[record.seed] = math.log(series[-1][1][-1])
                    site = max(found, key=lambda s: badness(float(found[s][1][-1]), "lower"))
                    worst[name] = f"{site} ({significant(float(found[site][1][-1]))})"
            steps, mean, bottom, top = mean_over_runs(series)
            if len(steps) > 1:
                dash: Dash = "dash" if arm.optimizer == project.pair[0] else "solid"
                marks.append(Trace(steps, mean, name, colours[_numerics(records)], dash, bottom, top))
        if not at_end:
            return _silence(low)
        intervals = simultaneous(at_end)
        rows = tuple(
            (label, significant(math.exp(i.mean)), _reach(i), str(i.n), worst[label])
            for label, i in intervals.items()
        )  # fmt: skip
        fallen = [label for label, i in intervals.items() if i.n > 1 and math.exp(i.high) < DROP]
        told = (
            f"Fell below {DROP:g} of the twin's: {', '.join(fallen)}."
            if fallen
            else f"No arm is shown to fall below {DROP:g} of its twin's stable rank."
        )
        caption = (
            "Geometric mean over matrices, mean over seeds with its 95 % t interval. The solid line is the twin "
            "itself, the dashed red one a fifth below it, where the rank alarm is raised."
        )
        panel = Axes(Axis("optimizer step"), Axis("stable rank / twin's (ratio)"), tuple(marks))
        header = ("arm", "stable rank / twin's at the end", "95 % interval", "n", "lowest matrix of the last seed")
        note = "Intervals are simultaneous over the rows, made on the logarithm."
        return [
            Headline(told),
            Figure("ranks", "Stable rank against the twin's", caption, (panel,), height=300),
            Table("ranks", "Stable ranks at the end", header, rows, frozenset({1, 3}), note),
        ]


def _numerics(records: list[RunRecord]) -> str:
    """The casts and storage of an arm, scalings and all: what arms of two optimizers have in common."""
    return json.dumps([records[0].spec.get(key) for key in ("compute", "precision", "storage")], default=str)


def _silence(low: dict[Arm, list[RunRecord]]) -> list[Block]:
    """What is lacking, where ranks were watched at all."""
    if not any(record.sited("rank", "stable_rank") for records in low.values() for record in records):
        return []
    return [Limit("Ranks are compared with those of a BF16 or FP32 run of the same seed, and there is none.")]


def plain_twins(arms: dict[Arm, list[RunRecord]]) -> dict[int, RunRecord]:
    """The BF16 (else FP32) runs by seed."""
    for name in ("BF16", "FP32"):
        plain = [arm for arm in arms if arm.is_baseline and arm.format == name and arm.optimizer == STANDARD]
        if found := [twin for arm in plain for twin in arms[arm]]:
            return by_seed(found)
    return {}


def _reach(found: Interval) -> str:
    """An interval of logarithms as one of ratios."""
    if found.n < 2:
        return bounds(found)
    return f"[{significant(math.exp(found.low))}, {significant(math.exp(found.high))}]"


def ratios(record: RunRecord, twin: RunRecord) -> dict[str, Series]:
    """Stable rank over the twin's by matrix, at the steps of both."""
    ours, theirs = record.sited("rank", "stable_rank"), twin.sited("rank", "stable_rank")
    found = {}
    for site, (steps, values) in ours.items():
        if site not in theirs or not len(steps):
            continue
        beside = np.interp(steps, *theirs[site], right=math.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = values / beside
        kept = np.isfinite(ratio) & (ratio > 0)
        if kept.any():
            found[site] = steps[kept], ratio[kept]
    return found


def mean_ratio(series: list[Series]) -> Series:
    """The geometric mean over matrices on the steps that they share."""
    steps, mean, _, _ = mean_over_runs([(s, np.log(v)) for s, v in series])
    return steps, np.exp(mean)
