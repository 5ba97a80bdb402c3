"""manifold versus standard: how the two trainings differ on the way, not only at the end [ANAL-03]."""

import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import counted, signed
from altgrad.reports.content import Axes, Axis, Block, Dash, Figure, Guide, Headline, Limit, Trace, tones
from altgrad.reports.curves import by_seed, mean_over_runs, paired_difference, smooth
from altgrad.reports.effects import Effect, FamilyOfFormats, main_family, short_name
from altgrad.reports.project import Project
from altgrad.reports.reading import LOSS, TRAIN_LOSS, RunRecord, Series
from altgrad.reports.section import Section

QUANTITIES = (
    ("stall", "stall_ratio", "stall ratio", "stalled / attempted (ratio)"),
    ("flips", "flip_rate", "flips", "codes changed / weights (ratio)"),
    ("flips", "sign_flip_rate", "sign flips", "signs changed / weights (ratio)"),
    ("updates", "effective_update_ratio", "effective update", "realised / requested (ratio)"),
)
DASHES: tuple[Dash, Dash] = ("dash", "solid")


class Dynamics(Section):
    """Paired loss difference over training, and stalls, flips and sign flips of both optimizers."""

    kind: ClassVar[str] = "dynamics"
    title: ClassVar[str] = "Manifold versus standard"
    question: ClassVar[str] = "When does the difference arise, and what do the weights do differently?"
    place: ClassVar[int] = 70
    metrics: ClassVar[tuple[str, ...]] = ("stall_ratio", "flip_rate", "sign_flip_rate", "effective_update_ratio")

    def blocks(self, project: Project) -> list[Block]:
        family = main_family(project)
        if family is None:
            return []
        blocks: list[Block] = [Headline(_sentence(family)), _difference(project, family)]
        panels = [p for quantity in QUANTITIES if (p := _panel(project, family, *quantity)) is not None]
        if panels:
            first, second = family.names
            caption = (
                f"Mean over parameters and seeds, one colour a format; dashed is {first}, solid {second}. "
                f"Sign flips that vanish under {second} are weights that can no longer cross zero."
            )
            blocks.append(
                Figure(
                    "dynamics",
                    "What the stored weights do",
                    caption,
                    tuple(panels),
                    columns=min(2, len(panels)),
                    height=250,
                )
            )
        else:
            blocks.append(Limit("Neither stall, flips nor updates was watched: only losses can be compared."))
        return blocks


def sides(
    project: Project, family: FamilyOfFormats, effect: Effect
) -> tuple[dict[int, RunRecord], dict[int, RunRecord]]:
    """Records by seed of the first and of the second optimizer, each at its lr*."""
    first, second = (
        by_seed([r for r in project.of(s.arm, family.condition, s.choice.rate) if r.seed in s.by_seed])
        for s in (effect.first, effect.second)
    )
    return first, second


def _sentence(family: FamilyOfFormats) -> str:
    found = max(family.intervals.items(), key=lambda item: abs(item[1].mean) if math.isfinite(item[1].mean) else -1)
    name, i = found
    return f"The largest difference at the end is in {name}: {signed(i.mean)} nats over {counted(i.n, 'pair')}."


def _difference(project: Project, family: FamilyOfFormats) -> Figure:
    colours = tones([effect.format for effect in family.effects])
    first, second = family.names
    unit = f"{first} − {short_name(second)} (nats)"
    panels = []
    for key, words in ((LOSS, "validation"), (TRAIN_LOSS, "training, smoothed")):
        marks: list[Trace | Guide] = [Guide(0.0, "y", "text", "solid")]
        for effect in family.effects:
            series = [
                smooth(s) if key == TRAIN_LOSS else s for s in paired_difference(*sides(project, family, effect), key)
            ]
            steps, mean, low, high = mean_over_runs(series)
            if len(steps):
                marks.append(Trace(steps, mean, effect.format, colours[effect.format], "solid", low, high, key == LOSS))
        if len(marks) > 1:
            panels.append(Axes(Axis("optimizer step"), Axis(unit), tuple(marks), words))
    caption = (
        "Paired by seed and data order, mean with its 95 % t interval (from 3 seeds on) at each step, not simultaneous "
        f"over steps. Above zero {second} is ahead."
    )
    if not panels:
        panels = [Axes(Axis("optimizer step"), Axis("nats"), (Guide(0.0, "y"),), "no losses in common")]
    return Figure(
        "dynamics-loss", "Loss difference over training", caption, tuple(panels), columns=len(panels), height=270
    )


def _panel(
    project: Project, family: FamilyOfFormats, monitor: str, quantity: str, title: str, unit: str
) -> Axes | None:
    colours = tones([effect.format for effect in family.effects])
    marks = []
    for effect in family.effects:
        names = map(short_name, family.names)
        for records, dash, name in zip(sides(project, family, effect), DASHES, names, strict=True):
            series = [s for record in records.values() if (s := site_mean(record, monitor, quantity)) is not None]
            steps, mean, _, _ = mean_over_runs(series)
            if len(steps) > 1:
                label = f"{effect.format} {name}"
                marks.append(Trace(steps, mean, label, colours[effect.format], dash))
    return Axes(Axis("optimizer step"), Axis(unit), tuple(marks), title) if marks else None


def site_mean(record: RunRecord, monitor: str, quantity: str) -> Series | None:
    """The mean over sites at each step; None where nothing was logged."""
    sited = [s for s in record.sited(monitor, quantity).values() if len(s[0])]
    if not sited:
        return None
    sums: dict[float, list[float]] = {}
    for steps, values in sited:
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            if math.isfinite(value):
                sums.setdefault(step, []).append(value)
    steps_ = np.array(sorted(sums))
    return steps_, np.array([sum(sums[s]) / len(sums[s]) for s in steps_.tolist()])
