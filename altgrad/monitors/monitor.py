"""The family of monitors: one file, one question.

A monitor's kind is a frozen spec; `build` gives the object that measures. What it looks at decides its sort:

    CastMonitor       every cast of the model, forward and backward, and weights and requests on the weight's grid
    GradientMonitor   the gradients of all parameters, after backward and before clipping
    MicroMonitor      the gradients of each micro-batch on its own
    ReplayMonitor     the step once more, in eager: what needs whole tensors or another forward pass
    UpdateMonitor     what the optimizer did to each parameter
    WeightMonitor     every parameter after the step

`measure` looks at device tensors and gives scalars, without a transfer to the host; what comes of it is fetched once.
`report` then runs on the host, on plain numbers. CastMonitors are traced into the graph of the model, so their results
are a fixed set, which is summed (or maximised) over the micro-batches of a step in place. Monitors cannot change a run:
they neither draw random numbers nor touch a weight, a gradient or a buffer of the model.

A class says how results of several processes become one: `sums` add up, of `maxima` the largest counts, and `alike` are
the same on every process, since weights and updates are. Its spec says in `metrics` what each number means, which
direction is worse and when it alarms. State that must survive a restart is plain JSON data and tensors, from `state`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from altgrad.measures.metric import Metric
from altgrad.monitors.alarm import Alarm, AlarmLatch
from altgrad.nn import ALONE, Processes
from altgrad.optim import Update
from altgrad.quantize import Cast, Grid
from altgrad.spec import Kind
from altgrad.symptoms import Phase, phase_of_site

Values = Mapping[str, float]
Every = Annotated[int, Field(ge=1, description="Steps between two observations; the first step is observed, too.")]
Found = dict[str, Tensor]


@dataclass(frozen=True)
class Report:
    """What a monitor has to say of one step.

    metrics: by `<site or parameter>/<quantity>`. notices: one line each. stop: why the run should end as
    diverged. skip: whether this step's update must not be applied.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    alarms: Sequence[Alarm] = ()
    stop: str | None = None
    skip: bool = False
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Context:
    """What a monitor may know of its run. epoch: optimizer steps that show every example once, if that is known.

    twin(keys): rows of the metrics of the run's twin, each with its `step`; None without one. seed: the run's.
    """

    epoch: int | None = None
    twin: Callable[[Iterable[str]], Iterable[Mapping[str, float]]] | None = None
    seed: int = 0


NO_CASTS: Mapping[str, Values] = MappingProxyType({})

NOTHING = Context()
"""The context of a monitor that knows nothing of its run."""


@dataclass(frozen=True)
class Replay:
    """A step that can be run again. Whoever runs it does so inside `altgrad.nn.unrecorded(model)`.

    gradients: what backward made of it, by parameter, before clipping. losses(): runs each micro-batch forward, in
    eager and in order, and gives their losses, which add up to the step's.
    """

    model: nn.Module
    gradients: Mapping[str, Tensor]
    losses: Callable[[], Iterator[Tensor]]
    processes: Processes = ALONE
    """Who runs it together: `losses` gives this process's micro-batches, `gradients` are those of all."""


@dataclass(frozen=True)
class Weight:
    """A parameter after the step, the grid on which it is stored or cast (None for neither), the float tensors of its
    shape that the optimizer keeps for it, and of those that are cast what rounding made of them (`state_losses`)."""

    name: str
    values: Tensor
    grid: Grid | None = None
    states: Mapping[str, Tensor] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


class Monitor:
    """What a monitor spec builds: one of the sorts below."""

    sums: ClassVar[tuple[str, ...]] = ()
    """Names of results (`*` for what varies) that add up over micro-batches and processes."""
    maxima: ClassVar[tuple[str, ...]] = ()
    """Names of results of which the largest counts."""
    alike: ClassVar[tuple[str, ...]] = ()
    """Names of results that are the same on every process."""
    phase: ClassVar[Phase] = "optimizer"
    """Which side of the step its alarms are about, where neither their quantity nor the operand at their site says."""
    phases: ClassVar[Mapping[str, Phase]] = {}
    """The same by quantity."""
    step = 0
    """The number of the step being looked at, from 1."""
    latch: AlarmLatch
    """What decides when its alarm is raised, where it has one."""

    def phase_of(self, site: str, quantity: str = "") -> Phase:
        """Which side of the step an alarm of this quantity, at this site, is about."""
        return self.phases.get(quantity) or phase_of_site(site) or self.phase

    def alarm(self, site: str, quantity: str, value: float, limit: float, sentence: str, **details: Any) -> Alarm:
        """An alarm of this step; see Alarm."""
        return Alarm(site, quantity, value, limit, self.phase_of(site, quantity), self.step, sentence, details)

    def report(self, site: str, values: Values) -> Report:
        """The step's results at one site or parameter; nothing for gradient monitors, which report all at once."""
        return Report()

    def close(self) -> Report:
        """What is to be said of the step as a whole, after the last site."""
        return Report()

    def state(self) -> dict[str, Any]:
        """What must survive a restart: plain JSON data, and tensors at the first level."""
        return self.latch.state() if hasattr(self, "latch") else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        if hasattr(self, "latch"):
            self.latch.restore(state)


class CastMonitor(Monitor, ABC):
    """Looks at casts."""

    phase: ClassVar[Phase] = "forward"

    @abstractmethod
    def measure(self, cast: Cast) -> Found:
        """One scalar for each name in `sums` and `maxima`. Pure, fixed shape, no host transfer."""


class GradientMonitor(Monitor, ABC):
    """Looks at gradients.

    of_casts: what it also asks of casts. It is measured where casts are watched anyway, and every time at those that
    let no infinity through, where the gradients would not show it.
    """

    phase: ClassVar[Phase] = "backward"
    of_casts: CastMonitor | None = None

    @abstractmethod
    def measure(self, gradient: Tensor) -> Found:
        """Scalars of one parameter's gradient, which may come flattened. Pure, fixed shape, no host transfer."""

    @abstractmethod
    def report_all(self, loss: float, found: Mapping[str, Values], casts: Mapping[str, Values] = NO_CASTS) -> Report:
        """The step's results: its loss, and what was measured, by parameter in the model's order.

        casts: what `of_casts` measured, by site.
        """

    def applies(self, loss: Tensor, found: Mapping[str, Tensor]) -> Tensor | bool | None:
        """Whether the update may be applied, as `report_all` is going to say by `skip`: a bool on the device.

        found: what was measured, [parameters] by name. None: `report_all` alone can say, so the update waits for it.
        """
        return None

    def explain(self, report: Report, replay: Replay) -> Report:
        """The report on a step that is not applied, with what running it again tells."""
        return report


class MicroMonitor(Monitor, ABC):
    """Looks at the gradients of each micro-batch on its own."""

    phase: ClassVar[Phase] = "backward"

    @abstractmethod
    def merge(self, processes: Processes) -> None:
        """Take in what the other processes have seen, before `measure`; every process does the same."""

    @abstractmethod
    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Take in one micro-batch's own gradients, which are lent for the call."""

    @abstractmethod
    def measure(self) -> dict[str, Found]:
        """Scalars by parameter; forgets the step."""

    def forget(self) -> None:
        """Forget the step."""
        self.measure()


class ReplayMonitor(Monitor, ABC):
    """Runs the step again."""

    phase: ClassVar[Phase] = "backward"

    @abstractmethod
    def measure(self, replay: Replay) -> dict[str, Found]:
        """Scalars by site or parameter."""


class UpdateMonitor(Monitor):
    """Looks at what an optimizer step did to each parameter: at all of it (`measure`), at a `sample`, or at both."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.measure is UpdateMonitor.measure and cls.sample is UpdateMonitor.sample:
            raise TypeError(f"{cls.__name__} looks at nothing; define measure, sample or both.")

    def start(self, update: Update) -> Found:
        """What is kept of a parameter from one look to the next, made at the first: tensors, by name."""
        return {}

    def measure(self, update: Update, kept: Found) -> Found:
        """Scalars of whole tensors; none where it has nothing to say of this parameter.

        kept: what `start` gave, to be changed in place. Else pure, and of fixed shape: what all monitors measure of
        a parameter may be one graph (`altgrad.watching.compiled_pass`), and tensors come flattened where one scale
        serves them.
        """
        return {}

    def sample(self, update: Update) -> Found:
        """Scalars of what is drawn from the tensors and sorted, which stays outside that graph."""
        return {}

    def absent(self, parameter: str) -> Report:
        """The report on a parameter that a step left out while others were updated."""
        return Report()


class WeightMonitor(Monitor, ABC):
    """Looks at parameters after a step."""

    of_states: ClassVar[bool] = False
    """Whether it asks what rounding made of states that are cast."""
    of_grids: ClassVar[bool] = True
    """Whether it asks for grids, whose scales may have to be found: a pass over every weight."""

    @abstractmethod
    def measure(self, weight: Weight) -> Found:
        """Scalars; none where it has nothing to say of this parameter."""


class MonitorSpec(Kind, family="monitor", package="altgrad.monitors"):
    """What every monitor spec has: it measures at the first step and at every `every`-th."""

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What it reports."""
    every: Every = 10

    @abstractmethod
    def build(self, context: Context = NOTHING) -> Monitor:
        """The object that measures. ValueError where the context lacks what the spec asks for."""


def at(site: str, values: Values) -> dict[str, float]:
    """The values as metrics of a site."""
    return {f"{site}/{name}": value for name, value in values.items()}
