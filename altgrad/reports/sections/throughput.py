"""throughput: tokens a second by arm and device: what emulation costs here, which is not what hardware would."""

import math
from typing import ClassVar

import numpy as np

from altgrad.reports.content import Block, Headline, Limit, Table
from altgrad.reports.project import Project, arm_order
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section

MEDIAN, RATE = "time/median_tokens_per_second", "time/tokens_per_second"


class Throughput(Section):
    """Median tokens a second by arm, device, engine and threads."""

    kind: ClassVar[str] = "throughput"
    title: ClassVar[str] = "Throughput"
    question: ClassVar[str] = "How fast did it run?"
    place: ClassVar[int] = 120

    def blocks(self, project: Project) -> list[Block]:
        groups: dict[tuple[str, ...], list[float]] = {}
        for record in sorted(project.records, key=lambda r: arm_order(r.arm)):
            value = tokens_per_second(record)
            if math.isfinite(value):
                spec, meta = record.spec, record.meta
                engine = f"{spec.get('engine', '?')}{', whole model compiled' if spec.get('compile') else ''}"
                key: tuple[str, ...] = (
                    record.arm.place,
                    record.arm.method,
                    str(meta.get("device", "?")),
                    engine,
                    str(spec.get("threads", "?")),
                )
                groups.setdefault(key, []).append(value)
        if not groups:
            return [Limit("No run logged its speed.")]
        rows = []
        for key, values in groups.items():
            low, middle, high = np.quantile(values, [0, 0.5, 1])
            rows.append((*key, _number(middle), f"{_number(low)} to {_number(high)}", str(len(values))))
        header = ("stored in", "optimizer", "device", "engine", "threads", "tokens/s", "range over runs", "n")
        fastest = max(groups, key=lambda key: float(np.median(groups[key])))
        return [
            Headline(
                f"Fastest: {fastest[0]}, {fastest[1]}, {_number(float(np.median(groups[fastest])))} tokens/s "
                f"on {fastest[2]}."
            ),
            Table(
                "throughput",
                "Tokens a second",
                header,
                tuple(rows),
                frozenset({4, 5, 7}),
                "Medians of each run's median.",
            ),
            Limit(
                "Casts are emulated and monitors cost time: these are no speeds of low-precision hardware. "
                "Machines shared with others blur them."
            ),
        ]


def tokens_per_second(record: RunRecord) -> float:
    """The run's median, its own or that of what it logged; NaN where it logged nothing."""
    for key in (MEDIAN, RATE):
        found = record.series.get(key)
        if found is not None and len(found[1]):
            values = found[1][np.isfinite(found[1])]
            if len(values):
                return float(values[-1] if key == MEDIAN else np.median(values[len(values) // 10 :]))
    return math.nan


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
