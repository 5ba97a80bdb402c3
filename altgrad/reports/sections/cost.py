"""cost: the bits that each arm spends, and its speed here, which is that of emulated casts and not of hardware."""

import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.answer import mean_ratio
from altgrad.reports.arm_comparison import ComparedArm
from altgrad.reports.arms import OPERANDS
from altgrad.reports.bits import bits_text, operand_bits, stored_bits
from altgrad.reports.content import Block, Limit, Table
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section

MEDIAN, RATE = "time/median_tokens_per_second", "time/tokens_per_second"


class Cost(Section):
    """Bits and median tokens a second by arm."""

    kind: ClassVar[str] = "cost"
    title: ClassVar[str] = "Cost"
    question: ClassVar[str] = "How many bits does each arm spend, and how fast did it run here?"
    place: ClassVar[int] = 20

    def blocks(self, project: Project) -> list[Block]:
        found = project.comparison
        if found is None:
            return []
        rows = []
        for arm in found.arms.values():
            spec = arm.first.spec
            beside = mean_ratio(found, arm, tokens_per_second)
            rows.append(
                (
                    arm.name, *(bits_text(operand_bits(spec, operand)) for operand in OPERANDS),
                    bits_text(stored_bits(spec)), _speed(arm), "–" if math.isnan(beside) else f"{beside:.2f}",
                    _machine(arm.first.record),
                )
            )  # fmt: skip
        base = f"relative to {found.reference.name}"
        header = ("arm", "weight", "input", "gradient", "stored weight", "tokens/s", base, "machine")
        note = (
            "Bits of a number that enters a product, and of a weight between steps, shares of block scales included; "
            "32 and 16 are uncast. Tokens a second: the median of each run's median, then of runs; casts are emulated "
            "and monitors take time, so this is not representative of low-precision hardware."
        )
        return [
            Table("cost", "Bits and speed by arm", header, tuple(rows), frozenset({1, 2, 3, 4, 5, 6}), note),
            *([] if any(row[5] != "–" for row in rows) else [Limit("No run logged its speed.")]),
        ]


def _speed(arm: ComparedArm) -> str:
    values = [v for record in arm.records.values() if math.isfinite(v := tokens_per_second(record))]
    middle = float(np.median(values)) if values else math.nan
    return "–" if math.isnan(middle) else f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"


def _machine(record: RunRecord | None) -> str:
    if record is None:
        return "?"
    spec = record.spec
    compiled = {True: ", compiled", "model": ", compiled", "blocks": ", blocks compiled"}.get(spec.get("compile"), "")
    threads = f", {counted(spec['threads'], 'thread')}" if isinstance(spec.get("threads"), int) else ""
    return f"{record.meta.get('device', '?')}, {spec.get('engine', '?')}{compiled}{threads}"


def tokens_per_second(record: RunRecord) -> float:
    """The run's median, its own or that of what it logged; NaN where it logged nothing."""
    for key in (MEDIAN, RATE):
        found = record.series.get(key)
        if found is not None and len(found[1]):
            values = found[1][np.isfinite(found[1])]
            if len(values):
                return float(values[-1] if key == MEDIAN else np.median(values[len(values) // 10 :]))
    return math.nan
