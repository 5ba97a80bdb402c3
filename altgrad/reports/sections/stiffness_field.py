"""stiffness field: how many weights see which spacing, over training [DIAG-01].

The histogram of spacing(w) by binade, averaged over parameters with equal weight and over seeds: one column a snapshot,
one row a spacing 2^k in grid units. The lowest row is the even, sub-normal part of the grid.
"""

import math
from typing import ClassVar

import numpy as np

from altgrad.metric_keys import split_bin
from altgrad.reports.arms import Arm
from altgrad.reports.content import Axes, Axis, Block, Figure, Headline, Heat, Limit
from altgrad.reports.effects import main_arms
from altgrad.reports.project import Project, parsed
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section
from altgrad.spec.messages import listed

ARMS, ROWS = 8, 14


class StiffnessField(Section):
    """The share of weights at each spacing, over training."""

    kind: ClassVar[str] = "stiffness_field"
    title: ClassVar[str] = "Stiffness field"
    question: ClassVar[str] = "How does the spacing that weights see change while they train?"
    place: ClassVar[int] = 100
    metrics: ClassVar[tuple[str, ...]] = ("binade_*_share",)

    def blocks(self, project: Project) -> list[Block]:
        arms = main_arms(project)
        top = 0.0
        drawn: list[tuple[Arm, str, list[float], list[int], np.ndarray]] = []
        moved: list[tuple[float, Arm]] = []
        for arm, records in sorted(arms.items(), key=lambda item: len(item[0].variant)):
            found = field_over_time(records)
            if found is None or len(drawn) >= ARMS:
                continue
            steps, exponents, z = found
            top = max(top, float(np.nanmax(z)))
            drawn.append((arm, f"{project.name_of(records[0])} (n {len(records)})", steps, exponents, z))
            drift = float(np.nansum(np.abs(z[:, -1] - z[:, 0])) / 2)
            if math.isfinite(drift):
                moved.append((drift, arm))
        panels = [_panel(*each, scale=not index, top=top) for index, each in enumerate(drawn)]
        if not panels:
            return []
        told = "How far the field moved is not known: not one of its first or last shares is finite."
        if moved:
            drift, arm = max(moved, key=lambda each: each[0])
            name = project.name_of(arms[arm][0])
            told = f"The field moved most in {name}: {100 * drift:.0f} % of its weights changed binade, net."
        still = [a.format for d, a in moved if d < 0.01]
        caption = (
            "Share of weights by the spacing at them, 2^k in grid units; the lowest row is the even part of the grid "
            "around zero. Weights that grow move up; a single row means that the format has no geometry here."
        )
        height = 90 + 16 * max(len(p.y.categories) for p in panels)
        figure = Figure(
            "stiffness-field", "Weights by spacing over training", caption, tuple(panels), min(2, len(panels)), height
        )
        blocks: list[Block] = [Headline(told), figure]
        if still:
            blocks.append(
                Limit(
                    f"Hardly moved at all (below 1 %): {listed(sorted(set(still)), 'and')}; lr* or the run's length "
                    "may be why."
                )
            )
        return blocks


def field_over_time(records: list[RunRecord]) -> tuple[list[float], list[int], np.ndarray] | None:
    """(steps, exponents k, share[k, step]), the mean over parameters and runs; None without the monitor."""
    sums: dict[tuple[int, float], float] = {}
    counts: dict[float, set[tuple[str, str]]] = {}
    for record in records:
        for key, (steps, values) in record.series.items():
            of, exponent, what = split_bin(key) or ("", 0, "")
            if of.startswith("stiffness/") and what == "share":
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    if math.isfinite(value):
                        sums[exponent, step] = sums.get((exponent, step), 0.0) + value
                        counts.setdefault(step, set()).add((record.id, of))
    if not sums:
        return None
    most = max(len(seen) for seen in counts.values())
    steps_ = sorted(step for step, seen in counts.items() if len(seen) == most)
    exponents = sorted({exponent for exponent, _ in sums}, reverse=True)
    z = np.array([[sums.get((e, s), 0.0) / len(counts[s]) for s in steps_] for e in exponents])
    return steps_, exponents, z


def _panel(
    arm: Arm, title: str, steps: list[float], exponents: list[int], z: np.ndarray, *, scale: bool, top: float
) -> Axes:
    fmt = parsed(arm.format)
    names = [f"2^{e}" for e in exponents]
    if len(names) > ROWS:  # what lies far below is a thin tail: one row for all of it
        z = np.vstack([z[: ROWS - 1], z[ROWS - 1 :].sum(0, keepdims=True)])
        names = [*names[: ROWS - 1], f"≤ {names[ROWS - 1]}"]
    elif fmt is not None and fmt.mantissa_bits and exponents[-1] == 1 - (fmt.bias or 0) - fmt.mantissa_bits:
        names[-1] = f"{names[-1]} (even)"
    heat = Heat(list(steps), names, z, "share of weights", limits=(0.0, top or 1.0), scale=scale)
    return Axes(Axis("optimizer step"), Axis("spacing", categories=tuple(names), reverse=True), (heat,), title)
