"""Roster: the interventions of a run, asked one after the other, in the order of the spec.

Their answers become one: metrics and actions by kind; an update is skipped if any of them says so, and a run goes on if
any of them wants that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from altgrad.interventions.intervention import Action, Answer, Intervention, InterventionSpec, Moment, Subject
from altgrad.nn import PrecisionPolicy


@dataclass(frozen=True)
class Intervened:
    """What all interventions of a run did at one moment; see Answer. Deeds come with the kind that did them."""

    metrics: Mapping[str, float]
    actions: Sequence[tuple[str, Action]]
    clipped: bool
    skip: bool
    carry_on: bool
    recast: bool
    enter: PrecisionPolicy | None = None

    def __add__(self, later: "Intervened") -> "Intervened":
        return Intervened(
            {**self.metrics, **later.metrics},
            [*self.actions, *later.actions],
            self.clipped or later.clipped,
            self.skip or later.skip,
            self.carry_on or later.carry_on,
            self.recast or later.recast,
            self.enter or later.enter,
        )


NOT_INTERVENED = Intervened({}, [], False, False, False, False)


class InterventionSet:
    """The interventions at work. One step goes: `begin`, backward, `gradients`, the update, `finish`."""

    def __init__(self, specs: Iterable[InterventionSpec], subject: Subject) -> None:
        self.subject = subject
        self.members: dict[str, Intervention] = {spec.kind: spec.build(subject) for spec in specs}

    def begin(self, step: int) -> None:
        """Open the step that will be number `step` (from 1), after monitors have."""
        for member in self.members.values():
            member.begin(step)
        if any(member.watches_updates for member in self.members.values()):
            self.subject.optimizer.watching = True

    def gradients(self, moment: Moment) -> Intervened:
        """Ask before the update; once one wants it skipped, the others know."""
        skipped = moment.skipped

        def ask(member: Intervention) -> Answer:
            nonlocal skipped
            answer = member.gradients(replace(moment, skipped=skipped))
            skipped = skipped or answer.skip
            return answer

        return self._joined(ask)

    def finish(self) -> Intervened:
        """Ask after the update."""
        return self._joined(lambda member: member.finish())

    def alarmed(self, alarms: Sequence[tuple[str, str]]) -> Intervened:
        """Tell them the step's alarms, each as its monitor's kind and the quantity."""
        return self._joined(lambda member: member.alarmed(alarms))

    def state(self) -> dict[str, dict[str, Any]]:
        """The state of each by kind: plain JSON data, and tensors at its first level."""
        return {kind: member.state() for kind, member in self.members.items()}

    def prepare(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Bring the subject into the form that saved tensors have; for the plain part of what `state` gave."""
        for kind, member in self.members.items():
            member.prepare(state[kind])

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what `state` gave."""
        for kind, member in self.members.items():
            member.restore(state[kind])

    def _joined(self, ask: Callable[[Intervention], Answer]) -> Intervened:
        whole = NOT_INTERVENED
        for kind, member in self.members.items():
            a = ask(member)
            metrics = {f"{kind}/{key}": value for key, value in a.metrics.items()}
            whole += Intervened(
                metrics, [(kind, d) for d in a.actions], a.clipped, a.skip, a.carry_on, a.recast, a.enter
            )
        return whole
