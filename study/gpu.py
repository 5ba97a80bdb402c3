"""The GPU part of the study as FIRST.md asks for it: a few seeds at the sizes first proposed, so no verdicts."""

import math
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from altgrad.formats import FloatFormat
from altgrad.numerals import signed
from altgrad.reports.archive import load_archives
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import bounds
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import Interval, simultaneous
from study.results import FOLDER, LOSSES

Losses = dict[int, float]
"""Final validation loss by seed."""


class Gpu:
    """Project study-gpu."""

    def __init__(self) -> None:
        self.records = load_archives([FOLDER / "study-gpu.parquet"], tuning=()).records

    def runs(
        self, arm: str, steps: int, chosen: Callable[[RunRecord], bool] = lambda record: True
    ) -> dict[int, RunRecord]:
        """By seed, the runs of an arm of the matrix that has so many steps. ValueError if there are none, or two."""
        found = [r for r in self.records if r.id.startswith(f"{arm}-") and r.spec["steps"] == steps and chosen(r)]
        if not found or len({r.seed for r in found}) < len(found):
            raise ValueError(f"{arm}, {steps} steps: {len(found)} runs")
        return {record.seed: record for record in found}

    def losses(self, arm: str, steps: int) -> Losses:
        """Final validation loss by seed."""
        return {seed: record.outcome for seed, record in self.runs(arm, steps).items()}

    def mean(self, arm: str, steps: int) -> float:
        """Their mean over seeds."""
        return math.fsum(self.losses(arm, steps).values()) / len(self.losses(arm, steps))

    @cached_property
    def ratio(self) -> float:
        """The largest loss of E5M2 over that of BF16 with the same seed, after the long run."""
        ours, theirs = self.losses("e5m2_shadow", 2000), self.losses("bf16", 2000)
        return max(ours[seed] / theirs[seed] for seed in ours)

    @property
    def falls(self) -> str:
        """BF16's validation loss at each evaluation, seed 0."""
        record = self.runs("bf16", 2000)[0]
        return ", ".join(f"{value:.3f}" for value in record.series["validation/loss"][1])

    @property
    def cosines(self) -> Mapping[str, float]:
        """Least, and mean, cosine of a gradient with its reference, over parameters, looks and seeds."""
        values = np.concatenate(
            [
                series[1]
                for record in self.runs("e5m2_shadow", 2000).values()
                for key, series in record.series.items()
                if key.startswith("shadow/") and key.endswith("/cosine")
            ]
        )
        return {"least": float(values.min()), "mean": float(values.mean()), "count": float(len(values))}

    @cached_property
    def formats(self) -> dict[str, Losses]:
        """The short comparison: by format in all three operands, and `bf16`, loss by seed."""
        found: dict[str, Losses] = {"bf16": self.losses("bf16", 500)}
        for record in self.records:
            if record.id.startswith("formats-"):
                found.setdefault(_format(record), {})[record.seed] = record.outcome
        order = ["bf16", *(FloatFormat.parse(f"e{e}m{7 - e}f").name for e in range(8))]
        return dict(sorted(found.items(), key=lambda item: (*order, item[0]).index(item[0])))

    @cached_property
    def behind(self) -> dict[str, Interval]:
        """By format, L(format) - L(BF16), paired by seed, simultaneous over formats."""
        base = self.formats["bf16"]
        paired = {name: loss for name, loss in self.formats.items() if name != "bf16"}
        return simultaneous({name: {s: v - base[s] for s, v in loss.items()} for name, loss in paired.items()})

    def formats_table(self) -> str:
        """A format a row."""
        rows = [
            f"| {name} | {math.fsum(loss.values()) / len(loss):.4f} | "
            + (f"{signed(self.behind[name].mean)} | {bounds(self.behind[name], 3)}" if name in self.behind else "- | -")
            + f" | {len(loss)} |"
            for name, loss in self.formats.items()
        ]
        head = ["| all three operands in | loss | L - L(BF16) | 95 % interval | seeds |", "|---|--:|--:|---|--:|"]
        return "\n".join([*head, *rows])

    def identical(self, one: str, other: str) -> int:
        """How many pairs of seeds of two formats agree in every loss; an error if one does not."""
        mine, theirs = (
            self.runs("formats", 500, lambda record, name=name: _format(record) == name)  # type: ignore[misc]
            for name in (one, other)
        )
        for seed in mine:
            for key in LOSSES:
                assert mine[seed].series[key][1].tolist() == theirs[seed].series[key][1].tolist(), (seed, key)
        return len(mine)

    def benefits_table(self) -> str:
        """The A/B: a storage format a row, B of each seed."""
        sides: dict[str, dict[str, Losses]] = {"adamw": {}, "manifold": {}}
        for record in self.records:
            arm = record.id.split("-")[0]
            if arm in sides:
                sides[arm].setdefault(record.spec["storage"][0]["format"], {})[record.seed] = record.outcome
        rows = [
            f"| {name} | {ours[seed]:.4f} | {sides['manifold'][name][seed]:.4f} | "
            f"{signed(ours[seed] - sides['manifold'][name][seed])} |"
            for name, ours in sorted(sides["adamw"].items())
            for seed in ours
        ]
        return "\n".join(["| stored in | AdamW | manifold | B |", "|---|--:|--:|--:|", *rows])

    @property
    def parameters(self) -> str:
        """Of the model."""
        (count,) = {record.meta["parameters"] for record in self.records}
        return f"{count:,}"

    @property
    def facts(self) -> str:
        """Runs, commits, torch."""
        commits = sorted({f"`{r.meta['commit'][:7]}{r.meta['commit'][40:]}`" for r in self.records})
        torch = listed(sorted({r.meta["torch"] for r in self.records}), "and")
        return f"{len(self.records)} runs at {listed(commits, 'and')}, torch {torch}"


def _format(record: RunRecord) -> str:
    weight = record.spec["precision"]["rules"][0]["weight"]
    return str(weight["format"] if isinstance(weight, Mapping) else weight)
