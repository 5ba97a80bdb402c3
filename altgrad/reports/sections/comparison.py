"""comparison: every arm beside the reference: their difference over training and at the end, and the verdict."""

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.answer import answer
from altgrad.reports.arm_comparison import ArmComparison
from altgrad.reports.content import (
    FORMAT_TONES,
    Axes,
    Axis,
    Band,
    Block,
    Dash,
    Figure,
    Guide,
    Limit,
    Paragraph,
    Table,
    Tone,
    Trace,
)
from altgrad.reports.curves import mean_over_runs, paired_difference, smooth
from altgrad.reports.project import Project
from altgrad.reports.reading import LOSS, TRAIN_LOSS, Series
from altgrad.reports.rows import Difference, columns_of, forest, rows_of
from altgrad.reports.section import Section
from altgrad.statistics.intervals import MARGIN
from altgrad.statistics.verdict import FEW

LINES, ROWS = 8, 60
DASHES: tuple[Dash, ...] = ("solid", "dash", "dashdot", "dot")
TONES: dict[str, Tone] = {"better": "green", "worse": "red", "equivalent": "blue"}
Look = Mapping[str, tuple[Tone, Dash]]


class Differences(Section):
    """Differences from the reference arm with simultaneous intervals, over training and at the end."""

    kind: ClassVar[str] = "comparison"
    title: ClassVar[str] = "Comparison"
    question: ClassVar[str] = "How does each arm differ from the reference arm?"
    place: ClassVar[int] = 10

    def blocks(self, project: Project) -> list[Block]:
        found = project.comparison
        if found is None:
            return [Limit(answer(project, None))]
        blocks: list[Block] = []
        if found.judged:
            blocks += [Paragraph(text) for text in (_based_on(found), *found.said_of_curves[:LINES])]
            look = _look(found)
            blocks += [figure for figure in (_over_steps(found, look), _at_the_end(found)) if figure is not None]
            blocks.append(_table(found))
            blocks += _reservations(found)
        else:
            blocks += [*_losses_alone(found), _table(found)]
        if found.others:
            blocks.append(Limit(f"{counted(found.others, 'result')} of other data: their losses are not comparable."))
        return blocks


def _based_on(found: ArmComparison) -> str:
    """What is compared, in a sentence or two."""
    judged = found.judged
    what = judged[0][0].name if len(judged) == 1 else counted(len(judged), "arm")
    several = sum(verdict.interval.n > 1 for _, verdict in judged) > 1
    together = " The 95 % intervals hold together for all arms." * several
    tuned = any(arm.is_tuned for arm in found.arms.values())
    rates = " Arms that were run at several learning rates are judged at their best." * tuned
    return (
        f"{what} compared with {found.reference.name}, by final validation loss, paired by seed; below zero is better, "
        f"and a difference of less than {MARGIN:g} nats counts as none.{together}{rates}"
    )


def _look(found: ArmComparison) -> Look:
    """A tone and a dash for each arm that is drawn: the reference, and of many arms those that differ least."""
    judged = [verdict for _, verdict in found.judged]
    sizes = {each.arm: abs(each.interval.mean) if each.interval.n else math.inf for each in judged}
    chosen = sorted(sizes, key=lambda name: sizes[name])[:LINES]
    names = [name for name in found.arms if name in chosen]
    tones = {
        name: (FORMAT_TONES[i % len(FORMAT_TONES)], DASHES[i // len(FORMAT_TONES) % len(DASHES)])
        for i, name in enumerate(names)
    }
    return {found.reference.name: ("text", "solid"), **tones}


def _over_steps(found: ArmComparison, look: Look) -> Figure | None:
    reference = found.reference
    base, outside = reference.records, ""
    fewest = min(len(arm.runs) for arm in found.arms.values())
    panels: list[Axes] = []
    for key, words in ((LOSS, "validation"), (TRAIN_LOSS, "training, smoothed")):
        marks: list[Trace | Guide | Band] = [Band(-MARGIN, MARGIN, "y", "margin"), Guide(0.0, "y", "text", "solid")]
        for name, (tone, dash) in look.items():
            if name == reference.name:
                continue
            series = [s for s in paired_difference(found.arms[name].records, base, key) if len(s[0])]
            steps, mean, low, high = _with_band([smooth(s) if key == TRAIN_LOSS else s for s in series])
            if len(steps) > 1:
                marks.append(Trace(steps, mean, name, tone, dash, low, high, len(steps) < 30))
        drawn = [mark for mark in marks if isinstance(mark, Trace)]
        if drawn:
            limits, outside = frame({mark.name: late(mark) for mark in drawn})
            y = Axis(f"loss − {reference.name}'s (nats)", limits=limits)
            panels.append(Axes(Axis("optimizer step"), y, tuple(marks), f"difference, {words}"))
    if losses := _losses(found, look):
        panels.append(losses)
    if not panels:
        return None
    band = {1: "", 2: " The shade spans both seeds."}.get(
        fewest, " The shade is a 95 % t interval over seeds at each step (both seeds' span where there are two)."
    )
    more = f" {LINES} of {len(found.arms) - 1} arms are drawn, those closest to it." * (len(found.arms) - 1 > LINES)
    what = f"Mean over seeds; {reference.name} is the line at 0, grey the margin of ± {MARGIN:g} nats."
    caption = what + band + more + outside
    title = f"Loss minus that of {reference.name}, over training"
    return Figure("comparison", title, caption, tuple(panels), columns=1, height=250)


def late(trace: Trace) -> tuple[float, float]:
    """The least and the largest value over the later three quarters of the steps: what differs at the start, when
    losses fall fast, would flatten all the rest."""
    after = trace.x >= trace.x[0] + (trace.x[-1] - trace.x[0]) / 4
    lines = [trace.y, *(edge for edge in (trace.low, trace.high) if edge is not None)]
    values = np.concatenate([line[after] for line in lines])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def frame(ends: Mapping[str, tuple[float, float]]) -> tuple[tuple[float, float], str]:
    """Limits of an axis for arms that reach from here to there, and, in a sentence, the arms that are left outside.

    An arm that is ten times as far from the reference as the middle one would hide how the others differ.
    """
    reaches = {name: max(abs(low), abs(high)) for name, (low, high) in ends.items()}
    most = max(10 * float(np.median(list(reaches.values()))), 20 * MARGIN)
    inside = {name: both for name, both in ends.items() if reaches[name] <= most}
    low = min([-2 * MARGIN, *(low for low, _ in inside.values())])
    high = max([2 * MARGIN, *(high for _, high in inside.values())])
    pad, outside = 0.06 * (high - low), [name for name in ends if name not in inside]
    return (low - pad, high + pad), f" Outside the frame: {', '.join(outside)}." if outside else ""


def _with_band(series: list[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `mean_over_runs`; of two runs both."""
    steps, mean, low, high = mean_over_runs(series)
    if len(series) == 2 and len(steps):
        both = np.stack([np.interp(steps, s, v, right=math.nan) for s, v in series])
        return steps, mean, both.min(0), both.max(0)
    return steps, mean, low, high


def _losses(found: ArmComparison, look: Look) -> Axes | None:
    marks = []
    for name, (tone, dash) in look.items():
        series = [r.series[LOSS] for r in found.arms[name].records.values() if LOSS in r.series]
        if not any(len(steps) > 1 for steps, _ in series):
            series = [smooth(r.series[TRAIN_LOSS]) for r in found.arms[name].records.values() if TRAIN_LOSS in r.series]
        steps, mean, low, high = _with_band(series)
        if len(steps) > 1:
            marks.append(Trace(steps, mean, name, tone, dash, low, high))
    return Axes(Axis("optimizer step"), Axis("loss (nats)"), tuple(marks), "the losses themselves") if marks else None


def _losses_alone(found: ArmComparison) -> list[Block]:
    """Curves where nothing is compared: of every run of a single arm, or of runs that diverged."""
    records = [record for arm in found.arms.values() for record in arm.records.values()][:LINES]
    panels = []
    for key, words in ((LOSS, "validation"), (TRAIN_LOSS, "training")):
        marks = []
        for index, record in enumerate(records):
            steps, values = record.series.get(key, (np.array([]), np.array([])))
            kept = np.isfinite(values)
            if kept.sum() > 1:
                tone, dash = FORMAT_TONES[index % len(FORMAT_TONES)], DASHES[index // len(FORMAT_TONES) % len(DASHES)]
                marks.append(Trace(steps[kept], values[kept], record.id, tone, dash))
        if marks:
            panels.append(Axes(Axis("optimizer step"), Axis("loss (nats)"), tuple(marks), words))
    if not panels:
        return []
    caption = f"{counted(len(records), 'run')}, as logged." + " The first of them." * (len(records) == LINES)
    return [Figure("comparison", "Losses", caption, tuple(panels), columns=1, height=250)]


def _at_the_end(found: ArmComparison) -> Figure | None:
    """Intervals by arm; None for a single arm, whose interval the first sentence has."""
    judged = [(arm, verdict) for arm, verdict in found.judged if verdict.interval.n][:ROWS]
    if len(judged) < 2:
        return None
    lines = [
        Difference(arm.name, verdict.interval, verdict.verdict, TONES.get(verdict.verdict, "grey"))
        for arm, verdict in judged
    ]
    limits, outside = frame({line.name: line.interval.finite_ends for line in lines})
    caption = (
        "Simultaneous 95 % intervals; left of the grey band is better, right of it worse, inside it equivalent."
        f"{outside}"
    )
    axis = f"final loss − {found.reference.name}'s (nats)"
    return forest("comparison-end", "Difference at the end", caption, axis, limits, lines)


def _table(found: ArmComparison) -> Table:
    several = bool(found.judged)
    told = ("difference", "95 % interval", "verdict", "n") if several else ()
    beside = ("Bonferroni's interval",) if len(found.judged) > 1 else ()
    spread = () if several else ("mean's 95 % interval",)
    known = ("mean", *spread, "casts", "storage", "optimizer", "lr", "diverged")
    names, rows = columns_of(rows_of(found), "arm", *told, *known, *beside)
    renamed = {"difference": "difference (nats)", "mean": "validation loss", "mean's 95 % interval": "95 % interval"}
    numeric = {names.index(name) for name in ("difference", "n", "mean", "lr") if name in names}
    note = "A diverged run enters as ln(vocabulary)."
    if "Bonferroni's interval" in names:
        note += f" Bonferroni's interval leans less on normality, which matters up to {FEW} seeds."
    title = f"Arms compared with {found.reference.name}" if several else "Arms"
    header = tuple(renamed.get(name, name) for name in names)
    return Table("comparison", title, header, tuple(rows), frozenset(numeric), note)


def _reservations(found: ArmComparison) -> list[Block]:
    blocks: list[Block] = []
    if found.reused:
        blocks.append(
            Limit(
                "Learning rates were chosen on the seeds that arms are judged by, so intervals are somewhat too "
                "narrow; confirmation seeds at the best rate would fix this (--tuning-seeds says which were which)."
            )
        )
    several = [arm for arm in found.arms.values() if arm.is_tuned]
    single = [arm.name for arm in found.arms.values() if not arm.is_tuned]
    if several and single and len(single) < len(found.arms):
        blocks.append(Limit(f"Run at a single learning rate, not known to be its best: {', '.join(single)}."))
    return blocks
