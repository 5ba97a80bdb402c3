"""why: what goes along with B over formats: where the smallest normal lies, stalls, gradient noise, frozen signs.

Geometry is beta / rms(w), beta the smallest normal value at the weight's scale: below it the grid is even, and a format
without weights there looks the same to every optimizer. rms(w) is not logged; it is estimated here from the histogram
of spacings (monitor `stiffness`), a binade [a, 2a) standing for its even spread, a^2 * 7/3, and what lies below
2 beta for 4/3 beta^2 (within 15 % on Gaussian weights). Everything else is the mean over parameters and the last
quarter of the run, AdamW's side.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from altgrad.metric_keys import split_bin
from altgrad.numerals import signed, significant
from altgrad.reports.content import Axes, Axis, Block, Dots, Figure, Guide, Headline, Heat, Limit, Table, tones
from altgrad.reports.effects import Effect, FamilyOfFormats, families, mean_or_nan
from altgrad.reports.project import Project, final, parsed
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section
from altgrad.statistics.distributions import rank_correlation

ENOUGH = 5


def smallest_normal_share(record: RunRecord) -> float:
    """beta / rms(w), the median over parameters at the end of the run; NaN without the stiffness monitor or E = 0.

    From histograms where there are any, else as it was measured.
    """
    fmt = parsed(record.arm.format)
    if fmt is None or fmt.exponent_bits == 0:
        return math.nan
    shares: dict[str, dict[int, float]] = {}
    for key, (_, values) in record.series.items():
        of, exponent, what = split_bin(key) or ("", 0, "")
        if of.startswith("stiffness/") and what == "share" and len(values) and math.isfinite(values[-1]):
            shares.setdefault(of, {})[exponent] = float(values[-1])
    beta_exponent = 1 - (fmt.bias or 0)
    ratios = []
    for by_exponent in shares.values():
        square = 0.0
        for exponent, share in by_exponent.items():
            a = exponent + fmt.mantissa_bits - beta_exponent  # the binade above beta, in powers of two
            square += share * (4.0**a * 7 / 3 if a > 0 else (4 / 3 if fmt.mantissa_bits else 7 / 3))
        if square > 0:
            ratios.append(1 / math.sqrt(square))
    ratios = ratios or [v[-1] for _, v in record.sited("stiffness", "beta_over_rms").values() if math.isfinite(v[-1])]
    return float(np.median(ratios)) if ratios else math.nan


REASONS: tuple[tuple[str, str, Callable[[RunRecord], float]], ...] = (
    ("beta / rms(w)", "smallest normal over rms weight (ratio)", smallest_normal_share),
    ("stall ratio", "stalls / attempted updates (ratio)", lambda r: final(r, "stall", "stall_ratio")),
    ("gradient SQNR", "gradient against its reference (dB)", lambda r: final(r, "shadow", "sqnr_db")),
    ("sign flips", "sign flips / weights in a step (ratio)", lambda r: final(r, "flips", "sign_flip_rate")),
)


class Why(Section):
    """B against what may explain it, and over the grid of exponent and mantissa bits."""

    kind: ClassVar[str] = "why"
    title: ClassVar[str] = "Why"
    question: ClassVar[str] = "What do the formats that benefit have in common?"
    place: ClassVar[int] = 30
    metrics: ClassVar[tuple[str, ...]] = ("stall_ratio", "sqnr_db", "sign_flip_rate", "binade_*_share")

    def blocks(self, project: Project) -> list[Block]:
        found = families(project)
        if not found:
            return []
        family = found[0]
        values = {
            effect.format: [mean_or_nan(_finite(project, family, effect, measure)) for _, _, measure in REASONS]
            for effect in family.effects
        }
        blocks: list[Block] = [Headline(_sentence(family, values)), _scatter(family, values), _table(family, values)]
        if grid := _grid(family):
            blocks.append(grid)
        if len(family.effects) < ENOUGH:
            blocks.append(Limit(f"{len(family.effects)} formats are too few to tell one explanation from another."))
        blocks += [
            Limit(f"No {name}: {need}.")
            for (name, _, _), need in zip(REASONS, _NEEDS, strict=True)
            if _empty(values, name)
        ]
        return blocks


_NEEDS = ("the stiffness monitor was off", "the stall monitor was off", "the shadow monitor was off or casts nothing",
          "the flips monitor was off")  # fmt: skip


def _empty(values: dict[str, list[float]], name: str) -> bool:
    index = [reason for reason, _, _ in REASONS].index(name)
    return not any(math.isfinite(row[index]) for row in values.values())


def _finite(
    project: Project, family: FamilyOfFormats, effect: Effect, measure: Callable[[RunRecord], float]
) -> list[float]:
    side = effect.first
    records = project.of(side.arm, family.condition, side.choice.rate)
    return [v for r in records if r.seed in side.by_seed and math.isfinite(v := measure(r))]


def _sentence(family: FamilyOfFormats, values: dict[str, list[float]]) -> str:
    strongest, told = 0.0, "No measured quantity correlates clearly with B."
    for index, (name, _, _) in enumerate(REASONS):
        x = np.array([row[index] for row in values.values()])
        y = np.array([family.intervals[f].mean for f in values])
        kept = np.isfinite(x) & np.isfinite(y)
        rho, p = rank_correlation(x[kept], y[kept])
        if math.isfinite(rho) and p < 0.05 and abs(rho) > strongest:
            strongest = abs(rho)
            told = (
                f"B correlates with {name} (Spearman {signed(rho, 2)}, p {significant(p, 2)}, {int(kept.sum())} "
                "formats); an association, not a cause."
            )
    return told


def _scatter(family: FamilyOfFormats, values: dict[str, list[float]]) -> Figure:
    colours = tones(list(values))
    panels = []
    for index, (name, unit, _) in enumerate(REASONS):
        marks: list[Dots | Guide] = [Guide(0.0, "y")]
        for format_, row in values.items():
            found = family.intervals[format_]
            if math.isfinite(row[index]) and math.isfinite(found.mean):
                low, high = (np.array([end]) for end in found.finite_ends)
                marks.append(
                    Dots(np.array([row[index]]), np.array([found.mean]), format_, colours[format_], low=low, high=high)
                )
        log = index in (0, 3) and all(row[index] > 0 for row in values.values() if math.isfinite(row[index]))
        if len(marks) > 1:
            panels.append(Axes(Axis(unit, log=log), Axis("B (nats)"), tuple(marks), name))
    caption = (
        "One point a format, with its simultaneous 95 % interval of B. An explanation would order the points along a "
        "line that the intervals do not blur."
    )
    if not panels:
        panels = [Axes(Axis("no monitor that could explain B was on"), Axis("B (nats)"), (Guide(0.0, "y"),))]
    return Figure(
        "why", "B against what may explain it", caption, tuple(panels), columns=min(2, len(panels)), height=260
    )


def _table(family: FamilyOfFormats, values: dict[str, list[float]]) -> Table:
    rows = [
        (f, signed(family.intervals[f].mean), str(family.intervals[f].n), *(significant(v) for v in row))
        for f, row in values.items()
    ]
    header = ("format", "B (nats)", "n", *(name for name, _, _ in REASONS))
    note = (
        "Means over parameters, the last quarter of the run and seeds. beta / rms(w) is an estimate from the "
        "spacing histogram, or as measured where a run has none."
    )
    title = f"What the formats look like under {family.names[0]}"
    return Table("why", title, header, tuple(rows), frozenset(range(1, 7)), note)


def _grid(family: FamilyOfFormats) -> Figure | None:
    """B over exponent and mantissa bits; None below two formats that have them."""
    places: dict[tuple[int, int], list[float]] = {}
    for name, found in family.intervals.items():
        if (fmt := parsed(name)) is not None:
            places.setdefault((fmt.exponent_bits, fmt.mantissa_bits), []).append(found.mean)
    if len(places) < 2:
        return None
    exponents = list(range(min(e for e, _ in places), max(e for e, _ in places) + 1))
    mantissas = list(range(min(m for _, m in places), max(m for _, m in places) + 1))
    z = np.array([[mean_or_nan(places.get((e, m), [])) for e in exponents] for m in mantissas])
    panel = Axes(
        Axis("exponent bits E", categories=tuple(map(str, exponents))),
        Axis("mantissa bits M", categories=tuple(map(str, mantissas))),
        (Heat([str(e) for e in exponents], [str(m) for m in mantissas], z, "B (nats)", diverging=True, write=True),),
    )
    caption = (
        "Along a row the resolution is the same and the range grows; along E + M = 7 both change, so a trend there "
        "alone says nothing about geometry. Formats of one E and M share a cell."
    )
    return Figure("why-grid", "B over exponent and mantissa bits", caption, (panel,), height=130 + 34 * len(mantissas))
