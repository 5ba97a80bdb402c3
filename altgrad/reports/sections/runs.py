"""runs: what ran, what diverged, what is missing or broken, and what it all ran on."""

from collections import Counter
from typing import Any, ClassVar

from altgrad.numerals import counted, rate_text, significant
from altgrad.reports.arms import cast_text
from altgrad.reports.content import Block, Headline, Limit, Paragraph, Table
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord
from altgrad.reports.section import Section

SHOWN = 150


class Runs(Section):
    """Counts by arm, every run, broken ones, versions, and controls that must agree."""

    kind: ClassVar[str] = "runs"
    title: ClassVar[str] = "Runs"
    question: ClassVar[str] = "What is all of this based on?"
    place: ClassVar[int] = 130
    metrics: ClassVar[tuple[str, ...]] = (
        "zero_update_fraction", "effective_rank", "q50_spacing", "mean_offset", "aligned_share", "nonfinite_count",
        "realised_below_half", "requested_q50_ulp", "utilisation",
    )  # fmt: skip
    """Drawn by no section: they are kept for whoever works on data.parquet."""

    def blocks(self, project: Project) -> list[Block]:
        records = project.records
        states = Counter("diverged" if r.diverged else r.status for r in records)
        told = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
        blocks: list[Block] = [Headline(f"{counted(len(records), 'run')}: {told}.")]
        broken = [r for r in records if r.problems]
        if broken:
            rows = tuple((r.id, r.status, "; ".join(r.problems)) for r in broken[:SHOWN])
            blocks.append(Table("broken", "Runs with problems", ("run", "status", "what is wrong"), rows))
        unfinished = [r for r in records if not r.ended]
        if unfinished:
            names = ", ".join(f"{r.id} ({r.status} at step {r.step})" for r in unfinished[:12])
            more = f" and {len(unfinished) - 12} more" if len(unfinished) > 12 else ""
            blocks.append(Limit(f"Not finished, and in no statistic: {names}{more}."))
        if project.replaced:
            blocks.append(
                Limit(
                    f"{counted(len(project.replaced), 'run')} repeated another's arm, rate and seed; the newest counts."
                )
            )
        blocks += missing(project)
        blocks += same_grid(project)
        blocks.append(_arms(project))
        blocks.append(_versions(records))
        blocks.append(_all(project))
        return blocks


def missing(project: Project) -> list[Block]:
    """Holes: seeds that an arm lacks at a rate where most arms of its condition have them."""
    told = []
    for condition in project.conditions:
        arms = {a: losses for a, losses in project.arms(condition).items() if not a.frozen}
        have = {(arm, r): set(by_seed) for arm, losses in arms.items() for r, by_seed in losses.items()}
        for r in {r for _, r in have}:
            group = {arm: seeds for (arm, other), seeds in have.items() if other == r}
            usual = {
                s for s in set().union(*group.values()) if sum(s in seeds for seeds in group.values()) > len(group) / 2
            }
            told += [
                f"{project.names[condition, arm]} at {rate_text(r)}: "
                f"seed{'s' * (len(gone) > 1)} {', '.join(map(str, sorted(gone)))}"
                for arm, seeds in group.items() if seeds and (gone := usual - seeds)
            ]  # fmt: skip
    if not told:
        return []
    more = f"; and {len(told) - 12} more" if len(told) > 12 else ""
    return [Limit(f"Missing where most arms have them: {'; '.join(sorted(told)[:12])}{more}.")]


def same_grid(project: Project) -> list[Block]:
    """E0M7 and E1M6 are one grid (docs/SCIENCE.md, fact 1): their runs must agree to the last bit."""
    losses: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in project.results():
        if r.arm.format in ("e0m7", "e1m6") and r.arm.storage in ("stochastic", "nearest"):
            key = (r.condition, r.arm.with_(format="", detail=""), r.rate, r.seed)
            losses.setdefault(key, {})[r.arm.format] = r.outcome
    both = [by_format for by_format in losses.values() if len(by_format) == 2]
    unequal = sum(by_format["e0m7"] != by_format["e1m6"] for by_format in both)
    if not both:
        return []
    if unequal:
        return [
            Limit(
                f"Control failed: e0m7 and e1m6 are one grid, yet {unequal} of {counted(len(both), 'pair')} of "
                "runs differ."
            )
        ]
    return [Paragraph(f"Control: e0m7 and e1m6, one grid, agree exactly in {counted(len(both), 'pair')} of runs.")]


def _arms(project: Project) -> Table:
    groups: dict[str, list[RunRecord]] = {name: [] for name in project.names.values()}
    for r in project.records:
        groups.setdefault(project.name_of(r), []).append(r)
    rows = []
    for name, inside in groups.items():
        arm = inside[0].arm
        seeds = sorted({r.seed for r in inside})
        rows.append(
            (
                name, cast_text(inside[0].spec), arm.stored, arm.method, str(len(inside)),
                str(sum(r.status == "completed" and not r.diverged for r in inside)),
                str(sum(r.diverged for r in inside)),
                str(sum(not r.ended for r in inside)),
                _seeds(seeds),
            )
        )  # fmt: skip
    header = ("arm", "casts", "storage", "optimizer", "runs", "completed", "diverged", "unfinished", "seeds")
    return Table("arms", "Runs by arm", header, tuple(rows), frozenset({4, 5, 6, 7}))


def _seeds(seeds: list[int]) -> str:
    """`0, 1, 100 to 104`."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    told = [f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans]
    return ", ".join(told[:6]) + (", …" if len(told) > 6 else "")


def _versions(records: list[RunRecord]) -> Table:
    keys = ("altgrad", "commit", "torch", "python", "device")
    counts = Counter(tuple(str(r.meta.get(key, "–")) for key in keys) for r in records)
    rows = tuple((*versions, str(n)) for versions, n in counts.most_common(20))
    note = (
        "Runs of more than one version are compared all the same; a difference may be the version's."
        if len(counts) > 1
        else ""
    )
    return Table("versions", "Versions and devices", (*keys, "runs"), rows, frozenset({5}), note)


def _all(project: Project) -> Table:
    records = project.records
    rows = tuple(
        (
            r.id, "diverged" if r.diverged else r.status, project.name_of(r), rate_text(r.rate), str(r.seed),
            str(r.step), "–" if r.loss is None else significant(r.loss, 5), r.reason,
        )
        for r in records[:SHOWN]
    )  # fmt: skip
    note = f"{SHOWN} of {len(records)}; all are in data.csv." if len(records) > SHOWN else ""
    header = ("run", "status", "arm", "lr", "seed", "step", "validation loss", "reason")
    last = len(header) - (not any(row[-1] for row in rows))  # a reason, where some run has one
    return Table("runs", "Every run", header[:last], tuple(row[:last] for row in rows), frozenset({3, 4, 5, 6}), note)
