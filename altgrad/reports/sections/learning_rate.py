"""learning rate: loss against peak rate for every arm, where lr* lies, where runs diverge, and the p-dial."""

import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import rate_text, significant
from altgrad.reports.arms import MANIFOLD, STANDARD, Arm, arm_of, cast_text
from altgrad.reports.content import (
    FORMAT_TONES,
    Axes,
    Axis,
    Block,
    Dash,
    Dots,
    Figure,
    Headline,
    Limit,
    Paragraph,
    Table,
    Trace,
)
from altgrad.reports.effects import Side, side_of
from altgrad.reports.project import Project, arm_order
from altgrad.reports.rates import Losses, split_seeds
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section, bounds
from altgrad.statistics.intervals import t_interval

PANELS = 12
EDGES = {"": "inside", "low": "lowest", "high": "highest", "only": "single value"}
"""Where lr* lies among the rates that were run."""
DASHES: tuple[Dash, ...] = ("solid", "dash", "dashdot", "dot")


class LearningRate(Section):
    """Loss against learning rate, lr*, the edges of its grid, divergences, and loss against p."""

    kind: ClassVar[str] = "learning_rate"
    title: ClassVar[str] = "Learning rate"
    question: ClassVar[str] = "Is each arm judged at its own best learning rate?"
    place: ClassVar[int] = 40

    def blocks(self, project: Project) -> list[Block]:
        condition = project.main()
        arms = {arm: losses for arm, losses in project.arms(condition).items() if not arm.frozen}
        tuning = set(project.tuning_seeds or split_seeds(list(arms.values()))[0])
        blocks: list[Block] = []
        swept = {arm: losses for arm, losses in arms.items() if len(losses) > 1}
        sides = {
            arm: found[0] for arm, losses in arms.items() if (found := side_of(project, condition, arm, losses, tuning))
        }
        edges = [arm for arm, side in sides.items() if side.choice.edge in ("low", "high")]
        if not swept:
            return []
        blocks += [Headline(_sentence(len(arms), len(swept), len(edges))), _curves(project, condition, swept)]
        blocks.append(_table(project, condition, arms, sides))
        if len(project.conditions) > 1:
            blocks.append(Paragraph("Of the condition with most runs; the other conditions are in data.csv."))
        blocks += _dial(project, condition, arms, tuning)
        return blocks


def _sentence(arms: int, swept: int, edges: int) -> str:
    end = "no lr* is at the edge of its grid" if not edges else f"{edges} lr* are at the edge of their grid"
    return f"{swept} of {arms} arms were run at several learning rates; {end}."


def _curves(project: Project, condition: str, arms: dict[Arm, Losses]) -> Figure:
    places = list(dict.fromkeys(arm.place for arm in arms))[:PANELS]
    methods = sorted({arm.method for arm in arms}, key=lambda m: (m != "adamw", len(m), m))
    lost = {(r.arm, r.rate) for r in project.results(condition) if r.diverged}
    low, high = _span(arms, lost)
    ticks = tuple(sorted({r for losses in arms.values() for r in losses if r > 0}))
    panels = []
    for place in places:
        marks: list[Trace | Dots] = []
        for arm in (a for a in arms if a.place == place):
            look = methods.index(arm.method)
            tone, dash = FORMAT_TONES[look % len(FORMAT_TONES)], DASHES[look % len(DASHES)]
            rates = [r for r in sorted(arms[arm]) if r > 0]
            sound = [r for r in rates if (arm, r) not in lost]
            losses = [np.array(list(arms[arm][r].values())) for r in sound]
            mean, least, most = (np.array([f(v) for v in losses]) for f in (np.mean, np.min, np.max))
            marks.append(Trace(np.array(sound), mean, arm.method, tone, dash, least, most, markers=True))
            fell = np.array([r for r in rates if (arm, r) in lost])
            if len(fell):
                name = f"{arm.method}: some seed diverged"
                marks.append(Dots(fell, np.full(len(fell), high), name, tone, "x"))
        y = Axis("validation loss (nats)", limits=(low, high + 0.04 * (high - low)))
        panels.append(Axes(Axis("peak learning rate", log=True, ticks=ticks), y, tuple(marks), place))
    caption = (
        "Mean over seeds; the shade reaches from the best to the worst seed. A curve whose lowest point is inside has "
        "found its lr*. Crosses at the top are rates at which a seed diverged."
    )
    columns = min(2, len(panels))
    return Figure("learning-rate", "Loss against learning rate", caption, tuple(panels), columns=columns, height=250)


def _span(arms: dict[Arm, Losses], lost: set[tuple[Arm, float]]) -> tuple[float, float]:
    """Limits for all panels alike, so that heights compare: the losses of rates at which nothing diverged."""
    found = [v for arm, losses in arms.items() for r, by_seed in losses.items() for v in by_seed.values()
             if (arm, r) not in lost and math.isfinite(v)]  # fmt: skip
    if not found:
        return 0.0, 1.0
    pad = 0.08 * (max(found) - min(found)) or 0.1
    return min(found) - pad, max(found) + pad


def _table(project: Project, condition: str, arms: dict[Arm, Losses], sides: dict[Arm, Side]) -> Table:
    rows = []
    for arm, losses in arms.items():
        runs = project.of(arm, condition)
        side = sides.get(arm)
        if side is None:
            continue
        found = t_interval(np.array(list(side.by_seed.values())))
        rows.append(
            (
                project.names[condition, arm], cast_text(runs[0].spec), arm.stored, arm.method,
                rate_text(side.choice.rate), EDGES[side.choice.edge],
                ", ".join(rate_text(r) for r in sorted(losses)), significant(found.mean, 5), bounds(found, sign=False),
                str(found.n), f"{sum(r.diverged for r in runs)} of {len(runs)}",
            )
        )  # fmt: skip
    header = (
        "arm", "casts", "storage", "optimizer", "lr*", "lr* in its grid", "rates run", "loss at lr*",
        "95 % t interval", "n", "diverged, all rates",
    )  # fmt: skip
    return Table("learning-rate", "Learning rates by arm", header, tuple(rows), frozenset({4, 7, 9}))


def _dial(project: Project, condition: str, arms: dict[Arm, Losses], tuning: set[int]) -> list[Block]:
    """Loss against p, AdamW at 0, each at its own lr*."""
    powers: dict[str, dict[float, np.ndarray]] = {}
    for arm, losses in sorted(arms.items(), key=lambda item: arm_order(item[0])):
        power = power_of(project.of(arm, condition)[0])
        side = side_of(project, condition, arm, losses, tuning)
        if power is not None and side is not None and not arm.is_baseline:
            powers.setdefault(arm.place, {})[power] = np.array(list(side[0].by_seed.values()))
    powers = {place: by_power for place, by_power in powers.items() if len(by_power) > 2}
    if not powers:
        return [Limit("The p-dial (from AdamW, p = 0, to whole spacings, p = 1) was not run at any p between.")]
    marks = []
    for index, (place, by_power) in enumerate(powers.items()):
        p = sorted(by_power)
        found = [t_interval(by_power[each]) for each in p]
        low, high = (np.array(ends) for ends in zip(*(i.finite_ends for i in found), strict=True))
        marks.append(
            Trace(
                np.array(p),
                np.array([i.mean for i in found]),
                place,
                FORMAT_TONES[index % len(FORMAT_TONES)],
                DASHES[index % len(DASHES)],
                low,
                high,
                True,
            )
        )
    panel = Axes(Axis("p (0: AdamW, 1: whole spacings)"), Axis("validation loss (nats)"), tuple(marks))
    caption = (
        "Mean and 95 % t interval over seeds at each arm's lr*. A valley inside would ask for part of the geometry."
    )
    return [Figure("p-dial", "Loss along the p-dial", caption, (panel,), height=280)]


def power_of(record: RunRecord) -> float | None:
    """p of a run whose optimizer differs from the plain ones in nothing else; None for others."""
    arm = record.arm
    if arm.optimizer == STANDARD or arm.variant == "off":
        return None if arm.frozen else 0.0
    if arm.optimizer != MANIFOLD:
        return None
    optimizer = record.spec["optimizer"]
    power = optimizer.get("power", 1.0)
    plain = arm_of({**record.spec, "optimizer": {**optimizer, "power": 1.0}})
    return float(power) if not plain.variant and isinstance(power, int | float) else None
