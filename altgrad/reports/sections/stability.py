"""stability: layer by time heat maps of what casts and stores lose; the worst value in each bucket stays visible."""

from typing import ClassVar

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.arms import Arm
from altgrad.reports.content import Axes, Axis, Block, Figure, Headline, Heat
from altgrad.reports.curves import heat
from altgrad.reports.effects import main_arms
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section

QUANTITIES = (
    ("range", "underflow_rate", "underflow", "non-zero values cast to 0 (ratio)"),
    ("range", "saturation_rate", "saturation", "values beyond the format's largest (ratio)"),
    ("stall", "stall_ratio", "stalls", "updates that changed no code (ratio)"),
    ("shadow", "cosine", "gradient cosine", "cosine with the reference gradient (ratio)"),
)
ARMS, SITES = 4, 24


class Stability(Section):
    """Underflow, saturation, stalls and gradient cosine by site over training."""

    kind: ClassVar[str] = "stability"
    title: ClassVar[str] = "Stability"
    question: ClassVar[str] = "Which layer loses what, and when?"
    place: ClassVar[int] = 90
    metrics: ClassVar[tuple[str, ...]] = ("underflow_rate", "saturation_rate", "stall_ratio", "cosine")

    def blocks(self, project: Project) -> list[Block]:
        arms = main_arms(project)
        low = {a: r for a, r in arms.items() if not a.is_baseline and not a.frozen}
        chosen = dict(sorted(low.items(), key=lambda item: len(item[0].variant))[:ARMS])
        blocks: list[Block] = []
        for monitor, quantity, title, unit in QUANTITIES:
            if figure := _figure(project, chosen, monitor, quantity, title, unit):
                blocks.append(figure)
        if not blocks:
            return []
        more = f"; {len(low) - ARMS} more are not drawn" if len(low) > ARMS else ""
        return [Headline(f"Layer by time for {counted(len(chosen), 'arm')}{more}."), *blocks]


def _figure(
    project: Project, arms: dict[Arm, list[RunRecord]], monitor: str, quantity: str, title: str, unit: str
) -> Figure | None:
    panels: list[Axes] = []
    found = {arm: heat(records, monitor, quantity, lowest=quantity == "cosine") for arm, records in arms.items()}
    values = np.concatenate([z[np.isfinite(z)] for _, _, z in found.values()]) if found else np.array([])
    if not len(values) or not values.any() or (quantity == "cosine" and values.min() > 1 - 1e-6):
        return None
    limits = (float(values.min()), float(values.max()) if values.max() > values.min() else float(values.min()) + 1)
    for arm, (steps, sites, z) in found.items():
        if not len(sites):
            continue
        kept = worst(sites, z, low_is_bad=quantity == "cosine")
        names = [short(sites[i]) for i in kept]
        mark = Heat(list(steps), names, z[kept], unit, limits=limits, scale=not panels)
        title_ = f"{project.name_of(arms[arm][0])} (n {len(arms[arm])})"
        panels.append(Axes(Axis("optimizer step"), Axis("", categories=tuple(names), reverse=True), (mark,), title_))
    if not panels:
        return None
    caption = (
        f"{unit[0].upper()}{unit[1:]}: the worst value in each span of steps, averaged over seeds. A row that "
        "sticks out is one layer, a column one moment."
        + (" The worst sites are shown." if any(len(s) > SITES for _, s, _ in found.values()) else "")
    )
    rows = max(len(p.y.categories) for p in panels)
    return Figure(
        f"stability-{quantity.replace('_', '-')}", title.capitalize(), caption, tuple(panels), height=60 + 15 * rows
    )


def worst(sites: list[str], z: np.ndarray, *, low_is_bad: bool = False, limit: int = SITES) -> list[int]:
    """Places of at most `limit` sites, the worst kept, in their own order."""
    if len(sites) <= limit:
        return list(range(len(sites)))
    filled = np.where(np.isfinite(z), z, np.inf if low_is_bad else -np.inf)
    score = -filled.min(1) if low_is_bad else filled.max(1)
    return sorted(np.argsort(-score, kind="stable")[:limit].tolist())


def short(site: str) -> str:
    """A site for an axis: without `.weight` and `blocks.`, its middle left out where it is long."""
    text = site.removesuffix(".weight").removeprefix("blocks.")
    return text if len(text) <= 32 else f"{text[:10]}…{text[-21:]}"
