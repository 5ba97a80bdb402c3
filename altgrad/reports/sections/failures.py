"""failure modes: where each format fails first: forward, backward, or in the optimizer [ANAL-02].

A run's alarms are in its events, and each monitor watches one side of the step. The phase of an alarm follows from who
raised it and of what: inputs and weights are forward, output gradients and whatever compares gradients backward,
requests and stored weights the optimizer. For every format, optimizer and phase: how many runs showed something, what
came first, at which step and at which site.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from altgrad.numerals import counted
from altgrad.reports.arms import Arm
from altgrad.reports.content import Block, Headline, Limit, Table
from altgrad.reports.project import Project, arm_order
from altgrad.reports.section import Section
from altgrad.spec.messages import listed

Phase = Literal["forward", "backward", "optimizer", "loss"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer", "loss")
BACKWARD = {"gradient", "shadow", "gsnr"}
FORWARD = {"dead"}
SITE = re.compile(r"[\w-]+(?:\.[\w-]+)+(?:/[\w.-]+)?|\b[\w-]+/(?:input|weight|grad_output|requested)\b")
SHOWN = 40


@dataclass(frozen=True)
class Symptom:
    """One alarm: when, where, what it was about."""

    phase: Phase
    step: int
    site: str
    message: str
    monitor: str


def symptoms(events: list[Mapping[str, Any]]) -> list[Symptom]:
    """The alarms among a run's events, in the order raised."""
    found = []
    for event in events:
        if event.get("event") != "alarm":
            continue
        message, monitor = str(event.get("message", "")), str(event.get("monitor", "?"))
        match = SITE.search(message)
        site = str(event.get("site") or (match[0].rstrip(".") if match else "?"))
        step = event.get("step")
        found.append(
            Symptom(
                phase_of(monitor, site, message),
                int(step) if isinstance(step, int | float) else 0,
                site,
                message,
                monitor,
            )
        )
    return found


def phase_of(monitor: str, site: str, message: str = "") -> Phase:
    """Which side of the step an alarm is about."""
    if monitor == "finite":
        return "loss" if "loss" in message else "backward"
    if "requested" in site:
        return "optimizer"
    if monitor in BACKWARD or "grad_output" in site:
        return "backward"
    if monitor in FORWARD or monitor in ("range", "amax"):
        return "forward"
    return "optimizer"


class Failures(Section):
    """First symptoms by format, optimizer and phase."""

    kind: ClassVar[str] = "failures"
    title: ClassVar[str] = "Failure modes"
    question: ClassVar[str] = "Where does each format fail first: forward, backward, or in the optimizer?"
    place: ClassVar[int] = 60

    def blocks(self, project: Project) -> list[Block]:
        runs: dict[Arm, int] = {}
        diverged: dict[Arm, int] = {}
        first: dict[tuple[Arm, Phase], list[Symptom]] = {}
        for record in project.records:
            if not record.spec:
                continue
            runs[record.arm] = runs.get(record.arm, 0) + 1
            diverged[record.arm] = diverged.get(record.arm, 0) + record.diverged
            seen: set[Phase] = set()
            for symptom in symptoms(record.events):
                if symptom.phase not in seen:
                    seen.add(symptom.phase)
                    first.setdefault((record.arm, symptom.phase), []).append(symptom)
        if not runs:
            return [Limit("No run could be read.")]
        rows = []
        for arm, phase in sorted(first, key=lambda key: (*arm_order(key[0]), PHASES.index(key[1]))):
            found = first[arm, phase]
            earliest = min(found, key=lambda s: s.step)
            rows.append(
                (
                    arm.place, arm.method, phase, f"{len(found)} of {runs[arm]}", f"{diverged[arm]} of {runs[arm]}",
                    str(earliest.step), earliest.site, earliest.message,
                )
            )  # fmt: skip
        if not rows:
            total = counted(sum(runs.values()), "run")
            return [
                Headline(f"No monitor raised an alarm in {total}; {counted(sum(diverged.values()), 'run')} diverged."),
                Limit("A monitor that was off cannot have seen anything: see which ones ran, under Runs."),
            ]
        header = (
            "stored in",
            "optimizer",
            "phase",
            "runs with it",
            "diverged",
            "first at step",
            "first bad site",
            "first symptom",
        )
        note = "The earliest over all runs of the arm, at every learning rate."
        if len(rows) > SHOWN:
            note += f" {len(rows) - SHOWN} more rows are in data.csv's runs."
        table = Table("failures", "First symptoms", header, tuple(rows[:SHOWN]), frozenset({5}), note)
        return [Headline(_sentence(first)), table]


def _sentence(first: dict[tuple[Arm, Phase], list[Symptom]]) -> str:
    counts = {phase: sum(len(v) for (_, p), v in first.items() if p == phase) for phase in PHASES}
    told = [
        f"{counted(n, 'run')} in {phase if phase != 'optimizer' else 'the optimizer'}"
        for phase, n in counts.items()
        if n
    ]
    return f"Alarms by the side of the step they are about: {listed(told, 'and')}."
