"""sweet spot: which format suits which type of layer, as a set with simultaneous intervals [ANAL-01].

A layer's share in the final loss is not observable in runs that give every layer the same format. What is: how well
each layer's gradient survives (`shadow` cosine against the reference backward), or, where that was not watched, how
much of the requested update the stored weight makes (`updates` effective update ratio), or the stall ratio. The
criterion is averaged over the blocks of a type and the last quarter of a run, gives one value a seed, and formats are
compared with the best by Hsu's method within each type.
"""

import math
from typing import ClassVar

from altgrad.numerals import significant
from altgrad.reports.arms import Arm
from altgrad.reports.content import Block, Headline, Limit, Table
from altgrad.reports.effects import main_arms, main_family, mean_or_nan
from altgrad.reports.project import Project, by_site, format_order, layer_type
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section
from altgrad.spec.messages import listed
from altgrad.statistics.best import best_set
from altgrad.statistics.intervals import simultaneous

CRITERIA = (
    ("shadow", "cosine", 1, "cosine of the gradient with its reference; higher is better"),
    (
        "updates",
        "effective_update_ratio",
        1,
        "share of the requested update that the forward pass sees; higher is better",
    ),
    ("stall", "stall_ratio", -1, "stalled share of attempted updates; lower is better"),
)
NOISE = 1e-6


class SweetSpot(Section):
    """The formats that may be best for each type of layer, by a criterion that layers have of their own."""

    kind: ClassVar[str] = "sweet_spot"
    title: ClassVar[str] = "Sweet spot by layer type"
    question: ClassVar[str] = "Which format suits attention, which the MLP, which the head?"
    place: ClassVar[int] = 50
    metrics: ClassVar[tuple[str, ...]] = ("cosine", "effective_update_ratio", "stall_ratio")

    def blocks(self, project: Project) -> list[Block]:
        family = main_family(project)
        arms = main_arms(project)
        low = {a: r for a, r in arms.items() if not a.is_baseline and not a.frozen}
        if family is not None:
            low = {a: r for a, r in low.items() if (a.storage, a.casts) == (family.storage, family.casts)}
        methods = [m for m in project.pair if len({a.format for a in low if a.method == m}) > 1]
        for monitor, quantity, sign, words in CRITERIA:
            tables = [t for m in methods if (t := _table(low, m, monitor, quantity, sign, words)) is not None]
            if tables:
                limit = (
                    "A proxy: it orders formats by what each layer shows, not by the loss that a mixed policy would "
                    "reach."
                )
                told = Headline(f"Judged by the {words.split(';')[0]}.")
                return [told, *tables, Limit(limit)]
        return [Limit(_silence(low))] if methods else []


def _silence(arms: dict[Arm, list[RunRecord]]) -> str:
    """Why there is no table: nothing watched, or nothing that differs."""
    watched = [m for m, q, *_ in CRITERIA for records in arms.values() for r in records if by_site(r, m, q)]
    if not watched:
        return "Which format suits which layer: no shadow, updates or stall monitor watched these runs; one is needed."
    what = listed(sorted(set(watched)), "and")
    return f"Which format suits which layer: formats do not differ in any layer by what was watched ({what})."


def _table(
    arms: dict[Arm, list[RunRecord]], method: str, monitor: str, quantity: str, sign: int, words: str
) -> Table | None:
    inside = {a.format: records for a, records in arms.items() if a.method == method}
    formats = sorted(inside, key=format_order)
    values = {f: _by_type(inside[f], monitor, quantity) for f in formats}
    types = list(dict.fromkeys(t for by_type in values.values() for t in by_type))
    if _spread(values) < NOISE:
        return None  # watched, but of something that no cast enters: float noise is no ranking
    rows = []
    for each in types:
        found = {f: values[f][each] for f in formats if values[f].get(each)}
        if len(found) < 2:
            continue
        intervals = simultaneous(found)
        best = best_set({f: {seed: sign * v for seed, v in by_seed.items()} for f, by_seed in found.items()})
        cells = []
        for f in formats:
            i = intervals.get(f)
            half = "" if i is None or i.n < 2 else f" ± {significant(i.half_width, 2)}"
            cells.append("–" if i is None else f"{significant(i.mean)}{half} (n {i.n})")
        rows.append((each, listed(best, "and") if len(best) < len(found) else "no difference shown", *cells))
    if not rows:
        return None
    note = f"{words[0].upper()}{words[1:]}. ± is a 95 % interval, simultaneous over a row; may be best is Hsu's set."
    title = f"{method}: formats by layer type"
    return Table(
        f"sweet-spot-{method.replace('_', '-')}", title, ("layer type", "may be best", *formats), tuple(rows), note=note
    )


def _spread(values: dict[str, dict[str, dict[int, float]]]) -> float:
    """The widest gap between values of one layer type."""
    by_type: dict[str, list[float]] = {}
    for types in values.values():
        for each, by_seed in types.items():
            by_type.setdefault(each, []).extend(by_seed.values())
    return max((max(found) - min(found) for found in by_type.values() if found), default=0.0)


def _by_type(records: list[RunRecord], monitor: str, quantity: str) -> dict[str, dict[int, float]]:
    """Mean over the sites of a type, by seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for record in records:
        for site, value in by_site(record, monitor, quantity).items():
            if math.isfinite(value):
                found.setdefault(layer_type(site), {}).setdefault(record.seed, []).append(value)
    return {t: {seed: mean_or_nan(v) for seed, v in seeds.items()} for t, seeds in found.items()}
