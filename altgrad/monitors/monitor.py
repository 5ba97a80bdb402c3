"""The family of monitors: one file, one question.

A monitor's kind is a frozen spec; `build` gives the object that measures. There are two sorts, by what they look at:

    CastMonitor       every cast of the model, forward, backward and optimizer
    GradientMonitor   the gradients of all parameters, after backward and before clipping

`measure` is a pure function of device tensors with a fixed set of results and no transfer to the host; what comes of
it is summed (or maximised) over the micro-batches of a step, and fetched once. `report` then runs on the host, on plain
numbers. So monitors cannot change a run: they neither draw random numbers nor touch a weight.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.quantize import Cast
from altgrad.spec import Kind


@dataclass(frozen=True)
class Report:
    """What a monitor has to say of one step.

    metrics: by `<site or parameter>/<quantity>`. alarms: one line each. stop: why the run should end as diverged.
    skip: whether this step's update must not be applied.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    alarms: Sequence[str] = ()
    stop: str | None = None
    skip: bool = False


class Monitor:
    """What a monitor spec builds: a CastMonitor or a GradientMonitor."""

    def state(self) -> dict[str, Any]:
        """Plain JSON data that must survive a restart."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        return


class CastMonitor(Monitor, ABC):
    """Looks at casts."""

    sums: ClassVar[tuple[str, ...]] = ()
    """Names of results that add up over micro-batches and ranks."""
    maxima: ClassVar[tuple[str, ...]] = ()
    """Names of results of which the largest counts."""

    @abstractmethod
    def measure(self, cast: Cast) -> dict[str, Tensor]:
        """One scalar for each name in `sums` and `maxima`. Pure, fixed shape, no host transfer."""

    @abstractmethod
    def report(self, site: str, values: Mapping[str, float]) -> Report:
        """The step's results at one site."""


class GradientMonitor(Monitor, ABC):
    """Looks at gradients."""

    @abstractmethod
    def measure(self, loss: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
        """A 1-D tensor of fixed length. Pure, no host transfer."""

    @abstractmethod
    def report(self, parameters: Sequence[str], values: Sequence[float]) -> Report:
        """The step's results; `parameters` are the names `measure` saw, in order."""


class MonitorSpec(Kind, family="monitor", package="altgrad.monitors"):
    """What every monitor spec has: it measures at the first step and at every `every`-th."""

    every: Annotated[int, Field(ge=1)] = 10

    @abstractmethod
    def build(self) -> Monitor:
        """The object that measures."""
