"""shadow: how true the gradient is, against the reference backward: same weights, same batch, casts off.

The step is run again, in eager, with every quantised layer as its plain class and in float32, and the gradient of the
step is compared to that, parameter by parameter (`altgrad.measures.fidelity`). It costs a step, so it comes at a slow
cadence; the weights are those that the forward used, stored in 8 bits if that is how they are stored. In a model
without casts, run in float32, both are the same, up to the order of sums in a compiled graph.

The alarm is for matrices: a bias in front of a normalisation has a gradient of rounding noise, and its cosine says so.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.measures import fidelity, fidelity_sums
from altgrad.measures.metric import Metric
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import (
    NOTHING,
    Context,
    Every,
    Found,
    MonitorSpec,
    Replay,
    ReplayMonitor,
    Report,
    Values,
    at,
)  # fmt: skip
from altgrad.nn import casts_off, fresh_gradients
from altgrad.optim import is_sharded, whole_tensor


class ShadowSpec(MonitorSpec):
    """Cosine, SQNR, bias, orthogonal noise and sign agreement of each gradient against the one with casts off."""

    kind: ClassVar[str] = "shadow"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "cosine", "ratio", "of the gradient and its reference", "<g8, g32> / (|g8| |g32|)", "lower",
            "below `cosine` for a tensor of two or more dimensions, twice in a row",
        ),
        Metric("sqnr_db", "dB", "reference over error; inf where equal", "10 log10(|g32|^2 / |g8 - g32|^2)", "lower"),
        Metric("bias_coefficient", "ratio", "part of the reference that is left", "a = <g8, g32> / |g32|^2", "lower"),
        Metric("orthogonal_noise", "ratio", "what is not along the reference", "|g8 - a g32| / |g32|", "higher"),
        Metric("sign_agreement", "ratio", "coordinates of equal sign", "#(same sign) / #(g32 != 0)", "lower"),
    )  # fmt: skip
    every: Every = 100
    cosine: Annotated[float, Field(gt=-1, lt=1)] = 0.5
    """The cosine (-1 to 1) below which a matrix alarms."""

    def build(self, context: Context = NOTHING) -> "Shadow":
        return Shadow(self.cosine)


class Shadow(ReplayMonitor):
    """Fidelity by parameter. On several processes both gradients are reduced first, so all see the same."""

    alike: ClassVar[tuple[str, ...]] = (
        "cosine", "sqnr_db", "bias_coefficient", "orthogonal_noise", "sign_agreement", "axes"
    )  # fmt: skip

    def __init__(self, cosine: float) -> None:
        self.cosine, self.latch = cosine, AlarmLatch(2)

    def measure(self, replay: Replay) -> dict[str, Found]:
        with casts_off(replay.model):
            reference = replayed_gradients(replay)
        found = {}
        for name, gradient in reference.items():
            if name in replay.gradients:
                found[name] = fidelity(fidelity_sums(whole_tensor(replay.gradients[name]), gradient))
                found[name]["axes"] = gradient.new_full((), gradient.ndim)
        return found

    def report(self, site: str, values: Values) -> Report:
        alarms = []
        if self.latch.see(site, values["axes"] > 1 and values["cosine"] < self.cosine):
            sentence = "{site}: the cosine of its gradient with the one without casts is {value:.2f}."
            alarms = [self.alarm(site, "cosine", values["cosine"], self.cosine, sentence)]
        return Report(at(site, {name: value for name, value in values.items() if name != "axes"}), alarms)


def replayed_gradients(replay: Replay) -> dict[str, Tensor]:
    """Gradients of the step run again, of all processes, by parameter; `.grad` stays what it was."""
    made = fresh_gradients(replay.model, replay.losses)
    total = {name: whole_tensor(g) for name, g in made.items()}
    replay.processes.add([total[name] for name, g in made.items() if not is_sharded(g)])  # those are sums already
    return total
