"""symptoms: where each arm fails first: forward, backward, or in the optimizer [ANAL-02].

Two things say so, and both name site and phase: the alarms that monitors raised while a run went, and the symptoms that
its metrics show (`altgrad.symptoms`, the list that `altgrad diagnose` and the panel read). For every format, optimizer
and phase: how many runs showed something, what came first, at which step and at which site.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from altgrad.numerals import counted
from altgrad.reports.content import Block, Headline, Limit, Table
from altgrad.reports.project import Project
from altgrad.reports.section import Section
from altgrad.spec.messages import listed
from altgrad.symptoms import PHASES, Phase

SHOWN = 40
Event = Mapping[str, Any]
LOOKED_AT: Mapping[str, Phase] = {
    "amax": "forward", "codes": "forward", "dead": "forward", "range": "forward",
    "finite": "backward", "gradient": "backward", "gsnr": "backward", "shadow": "backward",
}  # fmt: skip
"""What a monitor looks at, for alarms of the first edition, which do not say their phase; the others: the optimizer."""


def troubles(events: Iterable[Event]) -> Iterator[tuple[Phase, int, Event]]:
    """Alarms and symptoms among a run's events, with phase and step."""
    for event in events:
        if event.get("event") in ("alarm", "symptom"):
            step, phase = event.get("step"), event.get("phase")
            known = phase if phase in PHASES else LOOKED_AT.get(str(event.get("monitor")), "optimizer")
            yield known, int(step) if isinstance(step, int | float) else 0, event


class Failures(Section):
    """First alarms and symptoms by format, optimizer and phase."""

    kind: ClassVar[str] = "failures"
    title: ClassVar[str] = "Symptoms"
    question: ClassVar[str] = "Where does each arm fail first: forward, backward, or in the optimizer?"
    place: ClassVar[int] = 25

    def blocks(self, project: Project) -> list[Block]:
        runs: dict[str, int] = {}
        diverged: dict[str, int] = {}
        first: dict[tuple[str, Phase], list[tuple[int, Event]]] = {}
        for record in project.records:
            if not record.spec:
                continue
            arm = project.name_of(record)
            runs[arm] = runs.get(arm, 0) + 1
            diverged[arm] = diverged.get(arm, 0) + record.diverged
            earliest: dict[Phase, tuple[int, Event]] = {}
            for phase, step, event in troubles(record.events):
                if phase not in earliest or step < earliest[phase][0]:
                    earliest[phase] = step, event
            for phase, pair in earliest.items():
                first.setdefault((arm, phase), []).append(pair)
        if not runs:
            return []
        if not first:
            total = counted(sum(runs.values()), "run")
            ended = counted(sum(diverged.values()), "run")
            return [
                Limit(
                    f"Whether anything went wrong unseen: there is no alarm and no symptom in {total} ({ended} "
                    "diverged), but a monitor that was off cannot have seen anything."
                )
            ]
        rows = []
        order = list(dict.fromkeys(project.names.values()))
        for arm, phase in sorted(first, key=lambda key: (order.index(key[0]), PHASES.index(key[1]))):
            affected = first[arm, phase]
            step, event = min(affected, key=lambda each: each[0])
            rows.append(
                (
                    arm, phase, f"{len(affected)} of {runs[arm]}", f"{diverged[arm]} of {runs[arm]}",
                    str(step), str(event.get("site") or "–"), str(event.get("message", "")),
                )
            )  # fmt: skip
        header = (
            "arm", "phase", "runs with it", "diverged", "first at step", "first bad site",
            "first alarm or symptom",
        )  # fmt: skip
        note = "The earliest over all runs of the arm, at every learning rate."
        if len(rows) > SHOWN:
            note += f" {len(rows) - SHOWN} more rows are in data.csv's runs."
        table = Table("failures", "First alarms and symptoms", header, tuple(rows[:SHOWN]), frozenset({4}), note)
        counts = {phase: sum(len(v) for (_, p), v in first.items() if p == phase) for phase in PHASES}
        names = {"forward": "the forward pass", "backward": "the backward pass", "optimizer": "the optimizer"}
        told = [f"{names.get(phase, phase)} of {counted(n, 'run')}" for phase, n in counts.items() if n]
        return [Headline(f"Alarms or symptoms in {listed(told, 'and')}."), table]
