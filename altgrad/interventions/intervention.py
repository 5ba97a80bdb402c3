"""The family of interventions: like monitors, but they may touch; and they say what they did.

An intervention's kind is a frozen spec; `build` gives the object that acts on a `Subject`, the model and its optimizer.
It is asked in each step,

    gradients    after backward and the monitors of gradients, before the gradients are clipped by their norm and used
    finish       after the update, when scales are committed and monitors have looked
    alarmed      right after, with the alarms of the step

and answers with what it did: `actions` for people (events.jsonl, the panel), numbers by `<site>/<quantity>`, and what
the loop must know. As long as one has no reason to act, a run is bit for bit the run without it. Reasons are looked at
on the host, so interventions cost a transfer where they look; they are off by default, and off in the study.

Whatever decides about later steps is state: plain JSON data and tensors, saved in the checkpoint, so a resumed run does
the same things at the same steps. An intervention that changes the *structure* of its subject (a format) must be able
to make it so again before tensors are loaded: `prepare`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from altgrad.measures.metric import Metric
from altgrad.nn import PrecisionPolicy
from altgrad.optim import Optimizer
from altgrad.spec import Kind


@dataclass(frozen=True)
class Subject:
    """What may be touched. compute: the type products run in, as a run spec names it. steps: of the run, if any."""

    model: nn.Module
    optimizer: Optimizer
    compute: str = "float32"
    steps: int | None = None


@dataclass(frozen=True)
class Moment:
    """A step between backward and the update.

    loss, norm: of all gradients, before any clipping. gradients: p.grad by parameter, to be changed in place if at all.
    losses(): runs each micro-batch forward again, in eager and in order. skipped: a monitor said that the update must
    not be applied.
    """

    loss: float
    norm: float
    gradients: Mapping[str, Tensor]
    losses: Callable[[], Iterator[Tensor]]
    skipped: bool = False


@dataclass(frozen=True)
class Action:
    """One thing done: a line for people and details as JSON data. `done` false: it was wanted and could not be."""

    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    done: bool = True


@dataclass(frozen=True)
class Answer:
    """What an intervention did, or wants, at one moment.

    metrics: by `<site>/<quantity>`. clipped: gradients were changed. skip: the update must not be applied. carry_on:
    the run is not to end on account of this step. recast: formats changed, so compiled graphs are out of date. enter:
    the precision of the steps to come.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    actions: Sequence[Action] = ()
    clipped: bool = False
    skip: bool = False
    carry_on: bool = False
    recast: bool = False
    enter: PrecisionPolicy | None = None


NOTHING_DONE = Answer()


class Intervention:
    """What an intervention spec builds."""

    step = 0
    """The number of the step, from 1."""

    def begin(self, step: int) -> None:
        """Open the step that will be number `step`."""
        self.step = step

    @property
    def watches_updates(self) -> bool:
        """Whether the optimizer should show its updates in this step."""
        return False

    def gradients(self, moment: Moment) -> Answer:
        """Act before the update."""
        return NOTHING_DONE

    def finish(self) -> Answer:
        """Act after the update."""
        return NOTHING_DONE

    def alarmed(self, alarms: Sequence[tuple[str, str]]) -> Answer:
        """Act on the alarms of the step, each as its monitor's kind and the quantity."""
        return NOTHING_DONE

    def state(self) -> dict[str, Any]:
        """What must survive a restart: plain JSON data, and tensors at the first level."""
        return {}

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Given the plain part of a state: bring the subject into the form that its saved tensors have."""
        return

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        return


class InterventionSpec(Kind, family="intervention", package="altgrad.interventions"):
    """What every intervention spec has."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What it reports."""
    changes_formats: ClassVar[bool] = False
    """Whether it can change the formats of casts and storage, which then are not what the spec says."""
    alike: ClassVar[bool] = False
    """Whether all it decides by is the same on every rank (weights, summed gradients); if not, it is for one rank."""

    @property
    def by_share(self) -> bool:
        """Whether it acts from a percentage of the run's steps on, so that runs of other lengths differ at one step."""
        return False

    def entered(self, state: Mapping[str, Any]) -> PrecisionPolicy | None:
        """The precision that an intervention of this state has brought about, if it has; see `Answer.enter`."""
        return None

    def build(self, subject: Subject) -> Intervention:
        """The object that acts. ValueError, in one line, for a subject on which it could never do anything."""
        made: Intervention = self.product()(self, subject)
        return made
