"""whose geometry: does a format profit from *its* spacing, or would any stiffness field do as well?

B(S, f) = L(AdamW) - L(ManifoldAdamW with stiffness S), weights stored in f. `own` is f's own field; the controls are
another format's, a smooth one, a constant one, and f's own with its entries shuffled. A format benefits from its
geometry only where `own` beats them all (docs/SCIENCE.md).
"""

import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import signed
from altgrad.reports.arms import MANIFOLD, STANDARD, Arm
from altgrad.reports.content import Axes, Axis, Block, Figure, Headline, Heat, Limit, Paragraph, Table
from altgrad.reports.effects import Side, families, side_of
from altgrad.reports.project import Project, format_order
from altgrad.reports.section import Section, bounds
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import Interval, simultaneous

CONTROLS = ("smooth", "constant", "shuffled", "reshuffled")


class Geometry(Section):
    """B by the stiffness field that steps are measured in and the format that weights are stored in."""

    kind: ClassVar[str] = "geometry"
    title: ClassVar[str] = "Whose geometry"
    question: ClassVar[str] = "Is it the format's own spacing that helps, or would another stiffness field do as well?"
    place: ClassVar[int] = 27

    def blocks(self, project: Project) -> list[Block]:
        found = families(project)
        if project.pair[1] != MANIFOLD or not found:
            return []
        family = found[0]
        arms = project.arms(family.condition)
        columns: dict[str, dict[str, tuple[dict[int, float], Side]]] = {}
        for effect in family.effects:
            for arm, losses in arms.items():
                field_ = stiffness_field(arm)
                same = (arm.format, arm.storage, arm.casts) == (effect.format, family.storage, family.casts)
                if field_ is None or not same:
                    continue
                side = side_of(project, family.condition, arm, losses, set(family.tuning))
                if side is not None:
                    shared = effect.first.by_seed
                    pairs = {s: shared[s] - v for s, v in side[0].by_seed.items() if s in shared}
                    columns.setdefault(effect.format, {})[field_] = (pairs, side[0])
        fields = sorted({f for row in columns.values() for f in row}, key=_order)
        if not any(len(row) > 1 for row in columns.values()):
            return [
                Limit(
                    "Whose geometry it is: every ManifoldAdamW arm uses its format's own stiffness. It takes runs with "
                    "optimizer.stiffness smooth, shuffled, constant or another format's name."
                )
            ]
        paired = {(f, name): pairs for f, row in columns.items() for name, (pairs, _) in row.items()}
        intervals = simultaneous({f"{f}|{name}": pairs for (f, name), pairs in paired.items()})
        table = {key: intervals["|".join(key)] for key in paired}
        return [
            Headline(_sentence(paired, list(columns))),
            _figure(table, list(columns), fields),
            _table(table, list(columns), fields),
            Paragraph("Intervals are simultaneous over all cells of the table."),
        ]


def stiffness_field(arm: Arm) -> str | None:
    """own, a control or a format's name, for plain ManifoldAdamW arms; None for the others."""
    if arm.optimizer != MANIFOLD or arm.frozen:
        return None
    if not arm.variant:
        return "own"
    return arm.variant[2:] if arm.variant.startswith("S ") and "," not in arm.variant else None


def _order(name: str) -> tuple[object, ...]:
    return (name != "own", name not in CONTROLS, *(format_order(name) if name not in CONTROLS else (0, 0, name)))


def _sentence(paired: dict[tuple[str, str], dict[int, float]], formats: list[str]) -> str:
    """Own less each control, paired; a format counts where all those intervals together are above 0."""
    wins, tested = [], []
    for format_ in formats:
        own = paired.get((format_, "own"), {})
        others = {n: p for (f, n), p in paired.items() if f == format_ and n not in ("own", format_)}
        leads = {n: {s: own[s] - v for s, v in p.items() if s in own} for n, p in others.items()}
        leads = {n: p for n, p in leads.items() if p}
        if not leads:
            continue
        tested.append(format_)
        if all(i.n > 1 and i.low > 0 for i in simultaneous(leads).values()):
            wins.append(format_)
    if not tested:
        return "Own stiffness shares no seeds with any control, so nothing can be compared."
    if wins:
        return f"Own stiffness beats every control tested in {listed(wins, 'and')}."
    doubt = "a gain, if any, is not shown to be the format's own."
    return f"In none of {listed(tested, 'and')} does own stiffness beat every control tested: {doubt}"


def _figure(table: dict[tuple[str, str], Interval], formats: list[str], fields: list[str]) -> Figure:
    z = np.array([[table[f, s].mean if (f, s) in table else math.nan for s in fields] for f in formats])
    panel = Axes(
        Axis("stiffness field S that steps are measured in", categories=tuple(fields)),
        Axis("weights stored in", categories=tuple(formats), reverse=True),
        (Heat(fields, formats, z, "B (nats)", diverging=True, write=True),),
    )
    caption = (
        f"Loss saved against {STANDARD} in the same storage. If geometry mattered, the column own would be the "
        "strongest in each row; equal columns mean that the field does not matter. Empty cells were not run."
    )
    return Figure("geometry", "B by S-format and storage format", caption, (panel,), height=120 + 40 * len(formats))


def _table(table: dict[tuple[str, str], Interval], formats: list[str], fields: list[str]) -> Table:
    rows = [
        (
            f,
            *(
                f"{signed(c.mean)} {bounds(c, 3)} n {c.n}" if (c := table.get((f, s))) is not None else "–"
                for s in fields
            ),
        )
        for f in formats
    ]
    return Table(
        "geometry", "B (nats) by S-format (columns) and storage format (rows)", ("stored in", *fields), tuple(rows)
    )
