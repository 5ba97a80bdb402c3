"""change_precision: other casts from the step after a monitor's alarm on, once and for the rest of the run.

    {kind: change_precision, on: [finite, range/saturation_rate], precision: {recipe: te_nvfp4, set: {forward: none}}}

A monitor says when: any alarm of one of these monitors, or of one of its quantities. What the run is from then on is
what `precision` says; all that both precisions say alike goes on to the bit, as at the end of a phase
(`altgrad.training.carry`). Changes at given steps are `precision.phases`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from altgrad.interventions.intervention import Action, Answer, Intervention, InterventionSpec, Subject
from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy
from altgrad.spec import LocatedError, did_you_mean


class ChangePrecisionSpec(InterventionSpec):
    """Train with other casts from the step after a monitor's alarm on, once."""

    kind: ClassVar[str] = "change_precision"
    changes_formats: ClassVar[bool] = True
    on: Annotated[tuple[str, ...], Field(min_length=1)] = ("finite",)
    """Whose alarms bring it about: monitors such as finite, or one quantity such as range/saturation_rate."""
    precision: PrecisionPolicy = PrecisionPolicy()
    """What is cast from then on; none for nothing."""
    not_before: Annotated[int, Field(ge=1)] = 1
    """The first step whose alarms count."""

    def build(self, subject: Subject) -> Intervention:
        known = MonitorSpec.kinds()
        for number, name in enumerate(self.on):
            kind, _, quantity = name.partition("/")
            if kind not in known:
                hint = did_you_mean(kind, known) or f" There are {', '.join(known)}."
                raise LocatedError(("on", number), f"'{name}' names no monitor.{hint}")
            if quantity and quantity not in {metric.quantity for metric in known[kind].metrics}:
                raise LocatedError(("on", number), f"{kind} has no quantity '{quantity}'.")
        return super().build(subject)

    def entered(self, state: Mapping[str, Any]) -> PrecisionPolicy | None:
        return self.precision if state.get("since") else None


class ChangePrecision(Intervention):
    """Waits for an alarm."""

    def __init__(self, spec: ChangePrecisionSpec, subject: Subject) -> None:
        self.spec, self.since = spec, 0

    def alarmed(self, alarms: Sequence[tuple[str, str]]) -> Answer:
        if self.since or self.step < self.spec.not_before:
            return Answer()
        cause = next((f"{kind}/{what}" for kind, what in alarms if {kind, f"{kind}/{what}"} & set(self.spec.on)), None)
        if cause is None:
            return Answer()
        self.since = self.step + 1
        message = f"precision changes from step {self.since} on, after an alarm of {cause}"
        return Answer(actions=[Action(message, {"since": self.since, "cause": cause})], enter=self.spec.precision)

    def state(self) -> dict[str, Any]:
        return {"since": self.since}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.since = int(state["since"])
