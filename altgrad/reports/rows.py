"""Differences as a reader sees them: one row an arm, whatever shows it (report, terminal, page), and one forest.

rows_of(comparison)       a row by column heading; who shows it picks the columns
forest(...)               intervals by name around 0, on the margin
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from altgrad.numerals import counted, number, rate_text, signed, significant
from altgrad.reports.arm_comparison import ArmComparison, ComparedArm
from altgrad.reports.arms import cast_text
from altgrad.reports.content import Axes, Axis, Band, Dots, Figure, Guide, Symbol, Tone
from altgrad.reports.section import bounds
from altgrad.statistics.intervals import MARGIN, Interval, t_interval
from altgrad.statistics.verdict import FEW, ArmVerdict

Row = Mapping[str, str]
SYMBOLS: dict[str, Symbol] = {
    "better": "circle", "worse": "square", "equivalent": "diamond",
    "benefit": "circle", "harm": "square", "no practical benefit": "diamond",
}  # fmt: skip
"""Of a verdict, that of a report's question about optimizers (`effects`) included."""


def rows_of(found: ArmComparison) -> list[Row]:
    """The arms, reference first. Bonferroni's interval stands where there are several arms of few seeds."""
    return [_row(arm, found.verdict.arms[name]) for name, arm in found.arms.items()]


def columns_of(rows: Sequence[Row], *names: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of those columns that some row has anything in."""
    kept = tuple(name for name in names if any(row.get(name, "") not in ("", "–") for row in rows))
    return kept, [tuple(row.get(name) or "–" for name in kept) for row in rows]


def _row(arm: ComparedArm, verdict: ArmVerdict) -> Row:
    values = np.array([value for value in arm.values().values() if math.isfinite(value)])
    spec, kind = arm.first.spec, arm.kind
    spread = bounds(t_interval(values), sign=False)
    row = {
        "arm": arm.name, "mean": "–" if math.isnan(verdict.mean) else number(verdict.mean, 5), "n": str(len(values)),
        "mean's 95 % interval": spread, "verdict": "reference", "casts": cast_text(spec),
        "storage": kind.stored, "optimizer": kind.method, "lr": rate_text(arm.rate),
        "diverged": f"{len(arm.diverged)} of {len(arm.runs)}",
    }  # fmt: skip
    if verdict.verdict == "reference":
        return row
    beside = 1 < verdict.interval.n <= FEW
    told = {"verdict": verdict_text(verdict), "Bonferroni's interval": bounds(verdict.bonferroni) if beside else "–"}
    return row | difference_cells(verdict.interval) | told


def difference_cells(found: Interval) -> dict[str, str]:
    """What an interval is in a row."""
    return {"difference": signed(found.mean), "95 % interval": bounds(found), "n": str(found.n),
            "sd": significant(found.sd)}  # fmt: skip


def verdict_text(arm: ArmVerdict) -> str:
    """The verdict, and what an open one would take: `undecided, about 9 more seeds`; one seed is never decided."""
    words = [str(arm.verdict)]
    if arm.verdict in ("one seed", "no seed in common"):
        words.insert(0, "undecided")
    if arm.is_open and arm.more_seeds:
        words.append(f"about {counted(arm.more_seeds, 'more seed')}")
    if arm.is_fragile:
        words.append("not by Bonferroni's interval")
    return ", ".join(words)


@dataclass(frozen=True)
class Difference:
    """One line of a forest: a difference by its name, what it is called, and the tone that says so."""

    name: str
    interval: Interval
    word: str
    tone: Tone


def forest(
    key: str, title: str, caption: str, axis: str, limits: tuple[float, float], lines: Sequence[Difference]
) -> Figure:
    """Intervals by name, in their order from the top, with zero and the margin behind them."""
    marks: list[Band | Guide | Dots] = [Band(-MARGIN, MARGIN, "x", "margin"), Guide(0.0, "x", "text", "solid")]
    for place, line in enumerate(lines):
        low, high = (np.array([end]) for end in line.interval.finite_ends)
        symbol = SYMBOLS.get(line.word.partition(",")[0], "triangle-up")
        at, height = np.array([line.interval.mean]), np.array([float(place)])
        marks.append(Dots(at, height, line.word, line.tone, symbol, low, high, "x"))
    labels = tuple(f"{line.name} (n\u00a0=\u00a0{line.interval.n})" for line in lines)
    panel = Axes(Axis(axis, limits=limits), Axis("", categories=labels, reverse=True), tuple(marks))
    return Figure(key, title, caption, (panel,), height=80 + 40 * len(lines))
