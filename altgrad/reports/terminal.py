"""The verdict on one screen: a sentence, a row for each format with its interval drawn, and what to doubt."""

import math
from typing import Any

from altgrad.reports.effects import FamilyOfFormats, families
from altgrad.reports.project import Project
from altgrad.reports.section import bounds, counted, listed, signed
from altgrad.reports.sections.verdict import headline, limits_of
from altgrad.reports.verdicts import MARGIN

WIDTH = 33
ROWS = 12


def lines(project: Project) -> tuple[list[str], list[str]]:
    """What stands above the table, and what below it."""
    results = project.results()
    diverged = sum(r.diverged for r in project.records)
    broken = sum(bool(r.problems) for r in project.records)
    counts = [
        counted(len(project.records), "run"),
        counted(len(results), "result"),
        f"{diverged} diverged",
        f"{broken} broken or odd",
    ]
    head = [f"{project.name}: {', '.join(counts)}", headline(project)]
    found = families(project)
    foot = []
    if found:
        family = found[0]
        if len(family.effects) > 1:
            foot.append(f"benefits most (95 %): {listed(family.best)}")
        foot += [f"limit: {limit.text}" for limit in limits_of(family)[:3]]
    return head, foot


def rows(project: Project) -> tuple[list[str], list[list[str]]] | None:
    """Header and cells of the table; None without any comparison."""
    found = families(project)
    if not found:
        return None
    family = found[0]
    reach = _reach(family)
    header = ["format", "B, nats", "95 % interval", "n", f"-{reach:.3f}".ljust(WIDTH - 7) + f"+{reach:.3f}", "verdict"]
    cells = [
        [name, signed(i.mean), bounds(i), str(i.n), drawn(i.low, i.mean, i.high, reach), family.verdicts[name]]
        for name, i in list(family.intervals.items())[:ROWS]
    ]
    return header, cells


def drawn(low: float, mean: float, high: float, reach: float) -> str:
    """An interval on a line from -reach to reach: `.` the margin's ends, `|` zero, `o` the mean."""
    line = [" "] * WIDTH

    def place(value: float) -> int:
        return min(max(round((value / reach + 1) / 2 * (WIDTH - 1)), 0), WIDTH - 1)

    if math.isfinite(low) and math.isfinite(high):
        for column in range(place(low), place(high) + 1):
            line[column] = "-"
    for value, sign in ((-MARGIN, "."), (MARGIN, "."), (0.0, "|")):
        if line[place(value)] == " " or sign == "|":
            line[place(value)] = sign
    if math.isfinite(mean):
        line[place(mean)] = "o"
    return "".join(line)


def as_data(project: Project) -> dict[str, Any]:
    """The verdicts for programs."""
    return {
        "project": project.name,
        "headline": headline(project),
        "runs": len(project.records),
        "comparisons": [_family(family) for family in families(project)],
    }


def _family(family: FamilyOfFormats) -> dict[str, Any]:
    return {
        "storage": family.storage, "casts": family.casts, "declared": family.is_primary, "seeds_reused": family.reused,
        "best": family.best,
        "formats": [
            {
                "format": effect.format, "benefit": i.mean, "low": i.low, "high": i.high, "n": i.n, "sd": i.sd,
                "verdict": family.verdicts[effect.format], "pairs_needed": family.pairs_needed(effect.format),
                "lr": {"standard": effect.standard.choice.rate, "manifold": effect.manifold.choice.rate},
            }
            for effect in family.effects for i in (family.intervals[effect.format],)
        ],
    }  # fmt: skip


def _reach(family: FamilyOfFormats) -> float:
    ends = [abs(v) for i in family.intervals.values() for v in (i.low, i.high, i.mean) if math.isfinite(v)]
    return max([2 * MARGIN, *(1.05 * v for v in ends)])
