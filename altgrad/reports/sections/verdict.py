"""verdict: which format benefits from geometry-aware steps, and by how much, with the uncertainty of saying so."""

import math
from typing import ClassVar

from altgrad.numerals import counted, rate_text, signed
from altgrad.reports.arms import PAIR, optimizer_name
from altgrad.reports.content import Block, Figure, Limit, Paragraph, Table
from altgrad.reports.effects import FamilyOfFormats, families, short_name
from altgrad.reports.project import Project
from altgrad.reports.rows import Difference, difference_cells, forest
from altgrad.reports.section import Section, bounds
from altgrad.spec.messages import listed
from altgrad.statistics.intervals import MARGIN


class Verdicts(Section):
    """B by format with simultaneous intervals, five verdicts, and the set that may benefit most."""

    kind: ClassVar[str] = "verdict"
    title: ClassVar[str] = "Verdict"
    question: ClassVar[str] = "Which format benefits most, and by how much?"
    place: ClassVar[int] = 5

    def blocks(self, project: Project) -> list[Block]:
        found = families(project)
        if not found:
            return [] if project.pair == PAIR else [Limit(_lacking(project))]
        blocks: list[Block] = []
        for index, family in enumerate(found[:4]):
            blocks += _family(project, family, index)
        if len(found) > 4:
            blocks.append(Paragraph(f"{len(found) - 4} smaller comparisons are in data.csv alone."))
        return blocks


def sentence(family: FamilyOfFormats) -> str:
    """What a family of formats shows, in one sentence."""
    verdicts = family.verdicts
    steps = "Geometry-aware steps" if family.pair == PAIR else "Steps of {1} rather than {0}".format(*family.names)
    winners = [name for name, verdict in verdicts.items() if verdict == "benefit"]
    if winners:
        top = [name for name in family.best if name in winners]
        maybe = "possibly " if len(top) > 1 else ""
        most = f"; most of all {maybe}{listed(top, 'and')}" if top and len(verdicts) > 1 else ""
        sizes = [f"{name} (B {signed(i.mean)} {bounds(i)})" for name in winners[:3] for i in (family.intervals[name],)]
        where = listed(sizes if len(winners) < 4 else winners, "and")
        return f"{steps} lower the loss by at least {MARGIN:g} nats in {where}{most}."
    words = {
        "no practical benefit": f"make less than {MARGIN:g} nats of difference in",
        "harm": f"raise the loss by at least {MARGIN:g} nats in",
        "direction only": "have an effect of unknown practical size in",
        "undecided": "have an undecided effect in",
    }
    told = []
    for verdict, phrase in words.items():
        names = [name for name, each in verdicts.items() if each == verdict]
        if names:
            told.append(f"{phrase} {listed(names, 'and')}")
    return f"No format is shown to benefit: {steps[0].lower()}{steps[1:]} {'; they '.join(told)}."


def _lacking(project: Project) -> str:
    results = project.results()
    first, second = map(optimizer_name, project.pair)
    told = f"How {first} and {second} compare, format by format:"
    methods = sorted({record.arm.method for record in results if not record.arm.frozen})
    if not results:
        return f"{told} no run has completed or diverged with a loss."
    return (
        f"{told} it takes {first} and {second} runs of one format, alike in all else. There "
        f"{'is' if len(results) == 1 else 'are'} {counted(len(results), 'result')}, with {listed(methods, 'and')}."
    )


def _family(project: Project, family: FamilyOfFormats, index: int) -> list[Block]:
    words = project.conditions[family.condition]
    where = family.title + (f"; {words}" if words else "")
    kind = "the primary comparison" if family.is_primary else "secondary"
    blocks: list[Block] = [Paragraph(f"{where}: {sentence(family)}")] if index else []  # the first is the report's lead
    blocks += [_forest(family, index, where), _table(family, index, f"{where} ({kind})")]
    if len(family.effects) > 1:
        blocks.append(
            Paragraph(
                f"Benefits most, by comparison with the best (95 % together): {listed(family.best, 'and')}. "
                "The formats left out are not the best; any of these may be."
            )
        )
    return blocks + list(limits_of(family))


def _forest(family: FamilyOfFormats, index: int, where: str) -> Figure:
    best = family.best if len(family.effects) > 1 else []
    lines = [
        Difference(name, interval, f"{family.verdicts[name]}{', may be best' * (name in best)}",
                   "orange" if name in best else "blue")
        for name, interval in family.intervals.items()
    ]  # fmt: skip
    ends = [v for _, i in family.intervals.items() for v in (i.low, i.high, i.mean) if math.isfinite(v)]
    reach = max([MARGIN * 1.5, *(abs(v) * 1.1 for v in ends)])
    first, second = family.names
    helper = "geometry" if family.pair == PAIR else second
    caption = (
        f"Each line is a simultaneous 95 % interval of B = L({first}) − L({second}), paired by seed ({where}). "
        f"Right of the grey band {helper} helps by at least {MARGIN:g} nats, inside it the difference is of no "
        "practical use. Orange formats may be the ones that benefit most."
    )
    axis = f"B: loss saved by {helper} (nats)"
    return forest(f"verdict-{index}", "Benefit by format", caption, axis, (-reach, reach), lines)


def _table(family: FamilyOfFormats, index: int, where: str) -> Table:
    rows: list[tuple[str, ...]] = []
    columns = ("format", "difference", "95 % interval", "n", "sd", "lr", "diverged", "verdict", "seed pairs needed")
    for effect in family.effects:
        found, verdict = family.intervals[effect.format], family.verdicts[effect.format]
        asked = "–"
        if verdict in ("undecided", "direction only") and found.n > 1:
            needed = (
                family.pairs_needed(effect.format) if verdict == "undecided" else family.pairs_planned(effect.format)
            )
            asked = "> 10,000" if needed is None else f"≥ {max(needed, found.n + 1)}"
        row = difference_cells(found) | {
            "format": effect.format, "diverged": f"{effect.first.diverged}/{effect.first.runs}, "
            f"{effect.second.diverged}/{effect.second.runs}", "verdict": verdict, "seed pairs needed": asked,
            "lr": f"{rate_text(effect.first.choice.rate)} / {rate_text(effect.second.choice.rate)}",
        }  # fmt: skip
        rows.append(tuple(row[name] for name in columns))
    rates = "lr* " + " / ".join(map(short_name, family.names))
    renamed = {"difference": "B (nats)", "lr": rates, "diverged": "diverged at lr*"}
    header = tuple(renamed.get(name, name) for name in columns)
    note = "A diverged run enters as ln(vocabulary). sd is that of the paired differences."
    return Table(f"verdict-{index}", f"B by format: {where}", header, tuple(rows), frozenset({1, 3, 4}), note)


def limits_of(family: FamilyOfFormats) -> list[Limit]:
    """What to doubt about a family of formats."""
    limits = []
    if family.reused:
        limits.append(
            Limit(
                "The seeds that B is computed from also chose the learning rates, so intervals are somewhat too "
                "narrow. Confirmation seeds at lr* alone would fix this (--tuning-seeds says which were which)."
            )
        )
    sides = [(effect.format, side) for effect in family.effects for side in (effect.first, effect.second)]
    if all(side.choice.edge == "only" for _, side in sides):
        limits.append(Limit("Every arm was run at one learning rate: none is known to be its best."))
    elif edges := [f"{name} {s.arm.method} ({s.choice.edge})" for name, s in sides if s.choice.edge]:
        limits.append(Limit(f"lr* may not be the optimum, being at the edge of its grid: {', '.join(edges)}."))
    few = [name for name, found in family.intervals.items() if found.n < 5]
    if few:
        limits.append(Limit(f"Fewer than 5 pairs: {', '.join(few)}. Intervals then lean on normality."))
    for effect in family.effects:
        found = family.intervals[effect.format]
        if found.n > 1 and found.sd == 0:
            limits.append(
                Limit(f"{effect.format}: all paired differences are equal, so the two arms may be one and the same.")
            )
    if not family.is_primary:
        limits.append(Limit(f"This is not the primary comparison (stochastic weight storage alone): {family.title}."))
    return limits
