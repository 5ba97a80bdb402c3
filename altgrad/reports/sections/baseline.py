"""BF16 comparison: every loss beside frozen weights, FP32 and BF16, and the gap to BF16 by arm [METR-04]."""

import math
from typing import ClassVar

import numpy as np

from altgrad.numerals import signed, significant
from altgrad.reports.arms import Arm, optimizer_name
from altgrad.reports.content import Axes, Axis, Block, Dash, Figure, Guide, Headline, Limit, Table, Tone, Trace, tones
from altgrad.reports.curves import by_seed, main_arms, mean_over_runs
from altgrad.reports.project import Project
from altgrad.reports.reading import LOSS, TRAIN_LOSS, RunRecord
from altgrad.reports.section import Section, bounds
from altgrad.spec.ranking import badness
from altgrad.statistics.intervals import simultaneous

LINES = 14
BASE: dict[str, tuple[Tone, Dash]] = {"FP32": ("text", "solid"), "BF16": ("text", "dash")}


class Baseline(Section):
    """Loss curves with the baselines in each plot, and paired gaps to BF16 (else FP32)."""

    kind: ClassVar[str] = "baseline"
    title: ClassVar[str] = "BF16 comparison"
    question: ClassVar[str] = (
        "What does low precision cost against BF16 and FP32, and does training beat frozen weights?"
    )
    place: ClassVar[int] = 80

    def blocks(self, project: Project) -> list[Block]:
        arms = main_arms(project)
        if not arms:
            return [Limit("No run has a loss.")]
        blocks: list[Block] = []
        twins = _twins(arms)
        if twins is None:
            blocks.append(Headline("There is no BF16 or FP32 run to compare with."))
            blocks.append(Limit("Run the same spec with precision: none, storage: [] and compute: bfloat16."))
        else:
            name, records = twins
            blocks += _gaps(arms, name, records)
        blocks.append(_curves(arms, project.pair))
        missing = [n for n in ("FP32", "BF16") if not any(a.is_baseline and a.format == n for a in arms)]
        missing += [] if any(a.frozen for a in arms) else ["frozen-weight (optimizer.lr 0)"]
        if missing:
            blocks.append(Limit(f"Controls that were not run: {', '.join(missing)}."))
        if len(arms) > LINES:
            blocks.append(
                Limit(
                    f"The figure shows {LINES} of {len(arms)} arms: baselines and those of the main comparison first."
                )
            )
        return blocks


def _twins(arms: dict[Arm, list[RunRecord]]) -> tuple[str, list[RunRecord]] | None:
    for name in ("BF16", "FP32"):
        found = [
            r
            for arm, records in arms.items()
            if arm.is_baseline and arm.format == name and arm.optimizer == "adamw"
            for r in records
        ]
        if found:
            return name, found
    return None


def _gaps(arms: dict[Arm, list[RunRecord]], name: str, twins: list[RunRecord]) -> list[Block]:
    base = {r.seed: r.outcome for r in twins}
    paired: dict[str, dict[int, float]] = {}
    told: dict[str, Arm] = {}
    for arm, records in arms.items():
        if arm.is_baseline and arm.format == name and arm.optimizer == "adamw":
            continue
        pairs = {r.seed: r.outcome - base[r.seed] for r in records if r.seed in base}
        if pairs:
            paired[arm.label], told[arm.label] = pairs, arm
    if not paired:
        return [Headline(f"There are {name} runs, but none shares its seed with another arm.")]
    intervals = simultaneous(paired)
    rows = tuple(
        (told[label].place, told[label].method, signed(i.mean), bounds(i), str(i.n), significant(i.sd))
        for label, i in intervals.items()
    )
    low = {label: i for label, i in intervals.items() if not told[label].frozen and not told[label].is_baseline}
    blocks: list[Block] = []
    if low:
        label, i = min(low.items(), key=lambda item: badness(item[1].mean, "higher"))
        blocks.append(Headline(f"Closest to {name}: {label}, at {signed(i.mean)} nats from it, {bounds(i)}, n {i.n}."))
    note = (
        f"Arms at their lr*, paired by seed with the {name} run; intervals are simultaneous over the rows. "
        f"Positive: worse than {name}."
    )
    header = ("stored in", "optimizer", f"gap to {name} (nats)", "95 % interval", "n", "sd")
    return [*blocks, Table("baseline", f"Final validation loss above {name}", header, rows, frozenset({2, 4, 5}), note)]


def _curves(arms: dict[Arm, list[RunRecord]], pair: tuple[str, str]) -> Figure:
    shown = sorted(arms, key=lambda a: (not a.frozen and not a.is_baseline, bool(a.variant), len(a.casts)))[:LINES]
    colours = tones([a.place for a in shown if not a.is_baseline and not a.frozen])
    panels = []
    for key, words in ((LOSS, "validation"), (TRAIN_LOSS, "training")):
        marks: list[Trace | Guide] = []
        for arm in shown:
            series = [r.series[key] for r in arms[arm] if key in r.series]
            steps, mean, low, high = mean_over_runs(series)
            if not len(steps):
                continue
            tone, dash = _look(arm, colours, pair[0])
            marks.append(Trace(steps, mean, arm.label, tone, dash, *((low, high) if key == LOSS else (None, None))))
        if marks:
            panels.append(Axes(Axis("optimizer step"), Axis("loss (nats)"), tuple(marks), words))
    first, second = map(optimizer_name, pair)
    caption = (
        "Mean over seeds at each arm's lr*, validation with its 95 % t interval. Text-coloured lines are the "
        f"baselines: solid FP32, dashed BF16, dotted frozen weights. Formats: dashed {first}, solid {second}."
    )
    if not panels:
        panels = [Axes(Axis("optimizer step"), Axis("loss (nats)"), (Guide(math.nan, "y"),), "no losses")]
    return Figure("baseline", "Loss curves beside the baselines", caption, tuple(panels), columns=1, height=300)


def _look(arm: Arm, colours: dict[str, Tone], dashed: str) -> tuple[Tone, Dash]:
    if arm.frozen:
        return "grey", "dot"
    if arm.is_baseline:
        return BASE[arm.format]
    return colours[arm.place], "dash" if arm.optimizer == dashed else "solid" if not arm.variant else "dashdot"


def twin_of(record: RunRecord, arms: dict[Arm, list[RunRecord]]) -> RunRecord | None:
    """The BF16 (else FP32) run of the same seed."""
    twins = _twins(arms)
    return by_seed(twins[1]).get(record.seed) if twins else None


def last_value(series: tuple[np.ndarray, np.ndarray]) -> float:
    """The last finite value; NaN if there is none."""
    finite = series[1][np.isfinite(series[1])]
    return float(finite[-1]) if len(finite) else math.nan
