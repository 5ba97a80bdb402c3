"""One project of the study as FIRST.md asks for it: verdicts, tables and comparisons from its archives.

The statistics are the report's own, so a table here is the table there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from altgrad.numerals import signed
from altgrad.reports.archive import load_archives
from altgrad.reports.arms import Arm
from altgrad.reports.content import Table
from altgrad.reports.effects import Effect, FamilyOfFormats, Side, families, side_of
from altgrad.reports.markdown import markdown_table
from altgrad.reports.project import Project, final
from altgrad.reports.rates import ChosenRate, choose_rate
from altgrad.reports.reading import RunRecord
from altgrad.reports.report import chapters
from altgrad.reports.section import bounds
from altgrad.reports.sections.geometry import stiffness_field
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import Interval, simultaneous
from study.rates import TUNING

FOLDER = Path(__file__).resolve().parent / "results"
LOSSES = ("train/loss", "validation/loss")


class Results:
    """One project of the study, from every archive results/NAME*.parquet."""

    def __init__(self, name: str) -> None:
        paths = sorted(FOLDER.glob(f"{name}*.parquet"))
        if not paths:
            raise KeyError(f"study/results has no {name}*.parquet")
        self.project: Project = load_archives(paths, tuning=TUNING)

    @cached_property
    def family(self) -> FamilyOfFormats:
        """The comparison of AdamW and manifold, format by format."""
        return families(self.project)[0]

    @cached_property
    def _tables(self) -> dict[str, Table]:
        blocks = [block for chapter in chapters(self.project) for block in chapter.blocks]
        return {block.key: block for block in blocks if isinstance(block, Table)}

    def table(self, key: str) -> str:
        """A table of the report, by its key."""
        return "\n".join(markdown_table(self._tables[key]))

    def rates_table(self) -> str:
        """The report's table of learning rates with one column for how weights are kept, since nothing else is cast."""
        table = self._tables["learning-rate"]
        rows = tuple(({"float32": "FP32"}.get(kept, kept), *rest) for _, _, kept, *rest in table.rows)
        numeric = frozenset(column - 2 for column in table.numeric)
        header = ("stored in", *table.header[3:])
        return "\n".join(markdown_table(replace(table, header=header, rows=rows, numeric=numeric)))

    @property
    def runs(self) -> int:
        """How many there are, whatever became of them."""
        return len(self.project.records)

    @property
    def commits(self) -> str:
        """Of AltGrad, as the runs recorded them: seven digits each, `-dirty` where a tracked file was changed."""
        found = {str(record.meta.get("commit", "?")) for record in self.project.records}
        return listed(sorted(f"`{c[:7]}{c[40:]}`" for c in found), "and")

    @property
    def diverged(self) -> int:
        """How many of them diverged."""
        return sum(record.diverged for record in self.project.records)

    @property
    def best(self) -> str:
        """The formats that may benefit most."""
        return listed(self.family.best, "and")

    def with_verdict(self, verdict: str) -> str:
        """The formats of one verdict; `none` if there are none."""
        return listed([name for name, found in self.family.verdicts.items() if found == verdict], "and") or "none"

    def effect(self, format_: str) -> Effect:
        """The two sides of one format."""
        return next(effect for effect in self.family.effects if effect.format == format_)

    def benefit(self, format_: str) -> str:
        """B with its interval."""
        found = self.family.intervals[format_]
        return f"{signed(found.mean)} {bounds(found)}, n = {found.n}"

    def mean(self, format_: str, side: str) -> float:
        """Mean confirmed loss of one side of the pair, `first` or `second`."""
        by_seed: Mapping[int, float] = getattr(self.effect(format_), side).by_seed
        return math.fsum(by_seed.values()) / len(by_seed)

    def spread(self) -> tuple[float, float]:
        """The least and the largest standard deviation of paired differences over formats that are not all zero."""
        found = [i.sd for i in self.family.intervals.values() if i.sd > 0]
        return min(found), max(found)

    def alone(self, label: str) -> ChosenRate:
        """lr* and tuning loss of the arm that the report calls `label`."""
        arms = self.project.arms(self.family.condition)
        losses = next(losses for arm, losses in arms.items() if label in (arm.label, arm.format, arm.method))
        choice = choose_rate(losses, TUNING)
        assert choice is not None
        return choice

    def confirmed(self, label: str) -> float:
        """Mean loss, at lr* and on the seeds that did not choose it, of the arm without a partner of that name."""
        for arm, losses in self.project.arms(self.family.condition).items():
            if label in (arm.label, arm.format, arm.method):
                choice = choose_rate(losses, TUNING)
                assert choice is not None
                found = [loss for seed, loss in losses[choice.rate].items() if seed not in TUNING]
                return math.fsum(found) / len(found)
        raise KeyError(label)

    def late(self, format_: str, side: str, monitor: str, quantity: str) -> float:
        """A monitor's quantity over the last quarter, mean over parameters and runs of one side at its rate."""
        of: Effect = self.effect(format_)
        arm: Arm = getattr(of, side).arm
        rate: float = getattr(of, side).choice.rate
        records = self.project.of(arm, self.family.condition, rate)
        values = [final(record, monitor, quantity) for record in records]
        return math.fsum(values) / len(values)

    def tuning_table(self) -> str:
        """Mean loss of the tuning seeds by arm and learning rate."""
        arms = self.project.arms(self.family.condition)
        rates = sorted({rate for losses in arms.values() for rate in losses})
        rows = []
        for arm, losses in arms.items():
            cells = []
            for rate in rates:
                found = [loss for seed, loss in losses.get(rate, {}).items() if seed in self.family.tuning]
                cells.append(f"{math.fsum(found) / len(found):.4f}" if found else "-")
            rows.append(f"| {arm.format} | {arm.optimizer} | {' | '.join(cells)} |")
        head = f"| stored in | optimizer | {' | '.join(f'{rate:.3g}' for rate in rates)} |"
        return "\n".join([head, "|---|---" + "|--:" * len(rates) + "|", *rows])

    def score(self, format_: str, side: str, key: str) -> float:
        """Mean of the last value of a series, over the confirmed runs of one side."""
        found: Side = getattr(self.effect(format_), side)
        records = self.project.of(found.arm, self.family.condition, found.choice.rate)
        values = [float(record.series[key][1][-1]) for record in records if record.seed in found.by_seed]
        return math.fsum(values) / len(values)

    def changes(self, other: "Results") -> dict[str, Interval]:
        """By format, B here less B in another project: paired by seed, simultaneous over formats."""
        there = {effect.format: effect.pairs for effect in other.family.effects}
        return simultaneous(
            {
                effect.format: {
                    s: b - there[effect.format][s] for s, b in effect.pairs.items() if s in there[effect.format]
                }
                for effect in self.family.effects
            }
        )

    def changes_table(self, other: "Results") -> str:
        """`changes`, a format a row."""
        found = self.changes(other).items()
        rows = [f"| {name} | {signed(each.mean)} | {bounds(each)} | {each.n} |" for name, each in found]
        return "\n".join(["| format | B here less B there | 95 % interval | pairs |", "|---|--:|---|--:|", *rows])

    @cached_property
    def leads(self) -> dict[tuple[str, str], Interval]:
        """By format and stiffness field (a control's name, or another format's): L(that field) - L(own), simultaneous
        over all of them; positive where the format's own field is the better one. Pairs that are one run twice are 0.
        """
        arms = self.project.arms(self.family.condition)
        paired: dict[str, dict[int, float]] = {}
        for effect in self.family.effects:
            own = effect.second.by_seed
            for arm, losses in arms.items():
                field = stiffness_field(arm)
                if field in (None, "own") or arm.format != effect.format:
                    continue
                found = side_of(self.project, self.family.condition, arm, losses, set(self.family.tuning))
                assert found is not None
                paired[f"{effect.format}|{field}"] = {s: v - own[s] for s, v in found[0].by_seed.items() if s in own}
        return {(key.split("|")[0], key.split("|")[1]): each for key, each in simultaneous(paired).items()}

    def leads_table(self) -> str:
        """`leads` with formats as rows."""
        fields = list(dict.fromkeys(field for _, field in self.leads))
        rows = [
            "| " + " | ".join([effect.format, *(self.lead(effect.format, field) for field in fields)]) + " |"
            for effect in self.family.effects
        ]
        return "\n".join([f"| stored in | {' | '.join(fields)} |", "|---" * (len(fields) + 1) + "|", *rows])

    def under(self, format_: str, field: str) -> str:
        """B of a format when steps are measured in that field, with its interval of the report's table."""
        rows = next(table for key, table in self._tables.items() if key == "geometry")
        column = rows.header.index(field)
        return next(row[column] for row in rows.rows if row[0] == format_).rpartition(" n ")[0]

    def lead(self, format_: str, field: str) -> str:
        """One of `leads` with its interval."""
        found = self.leads[format_, field]
        return "the same runs" if found.sd == 0 == found.mean else f"{signed(found.mean)} {bounds(found, 3)}"

    @property
    def parameters(self) -> str:
        """Of the model, as its runs counted them."""
        (count,) = {record.meta["parameters"] for record in self.project.records}
        return f"{count:,}"

    def furthest_from_fp32(self, formats: Sequence[str]) -> float:
        """The largest distance of AdamW's loss from FP32's over formats, tuning seeds, both at FP32's rate."""
        alone = self.alone("FP32")
        arms = self.project.arms(self.family.condition)
        stored = [arms[self.effect(name).first.arm][alone.rate] for name in formats]
        return max(abs(math.fsum(loss[seed] for seed in TUNING) / len(TUNING) - alone.loss) for loss in stored)

    def pairs_alike(self, one: str, other: str) -> int:
        """How many pairs of runs, alike but for these two optimizers, agree in every loss; an error if any does not."""
        return self._alike(lambda r: (r.arm.optimizer, (r.arm.format, r.rate, r.seed)), one, other)

    def identical(self, one: str, other: str) -> int:
        """How many pairs of runs, alike but for these two formats, agree in every loss; an error if any does not."""
        return self._alike(lambda r: (r.arm.format, (r.arm.optimizer, r.rate, r.seed)), one, other)

    def again(self, other: "Results") -> int:
        """How many runs the two projects share (arm, rate and seed), every loss equal; an error if one is not."""
        mine, theirs = ({(r.arm, r.rate, r.seed): r for r in results.project.results()} for results in (self, other))
        shared = mine.keys() & theirs.keys()
        for run in shared:
            for key in LOSSES:
                one, two = (records[run].series[key][1].tolist() for records in (mine, theirs))
                assert one == two, f"{run} came to another {key}"
        return len(shared)

    def _alike(self, split: Callable[[RunRecord], tuple[str, object]], one: str, other: str) -> int:
        sides: dict[str, dict[object, RunRecord]] = {}
        for record in self.project.results():
            name, rest = split(record)
            sides.setdefault(name, {})[rest] = record
        shared = sides[one].keys() & sides[other].keys()
        for rest in shared:
            for key in LOSSES:
                mine, theirs = (sides[name][rest].series[key][1].tolist() for name in (one, other))
                assert mine == theirs, f"{one} and {other} differ in {key} at {rest}"
        return len(shared)
