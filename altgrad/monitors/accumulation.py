"""accumulation: what a product loses in what it adds up in.

    relative_error     rms(emulated - exact) / rms(exact): exact is the float64 sum of the same cast operands
    truncated_share    terms of a chunk, not 0, that alignment to the chunk's largest exponent leaves nothing of

By `<layer>/<product>`, of every product that has an `accumulator`; there is nothing to say of others. The step is run
again, and of each product up to 32 rows and 32 columns are looked at, spread evenly. With Hopper's 13 bits the error of
random terms grows as the square root of k, the number of terms, and promotion every 128 keeps it at 2^-12 to 2^-13
(docs/ACCUMULATORS.md). An error beyond `largest` alarms.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

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
from altgrad.nn import QuantizedLayer, fresh_gradients
from altgrad.nn.accumulated import operand_values
from altgrad.quantize.accumulator import AccumulatorSpec, Factor, by_definition

SAMPLE = 32


class AccumulationSpec(MonitorSpec):
    """Error of each product that has an accumulator against float64, and the share of terms that alignment cuts off."""

    kind: ClassVar[str] = "accumulation"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "relative_error", "ratio", "of a product's sums against float64", "rms(y - y64) / rms(y64)", "higher",
            "above `largest`, twice in a row",
        ),
        Metric(
            "truncated_share", "ratio", "terms that alignment leaves nothing of", "#(t_i = 0) / #(a_i b_i != 0)",
            "higher",
        ),
    )  # fmt: skip
    every: Every = 100
    largest: Annotated[float, Field(gt=0, lt=1)] = 2.0**-6
    """The relative error above which a product alarms: that of an e4m3 cast is 2^-5."""

    def build(self, context: Context = NOTHING) -> "Accumulation":
        return Accumulation(self.largest)


class Accumulation(ReplayMonitor):
    """Both measures by product. On several processes the sums of all their samples decide, so all see the same."""

    alike: ClassVar[tuple[str, ...]] = ("relative_error", "truncated_share")

    def __init__(self, largest: float) -> None:
        self.largest, self.latch = largest, AlarmLatch(2)

    def measure(self, replay: Replay) -> dict[str, Found]:
        sums: dict[str, Tensor] = {}
        layers = {
            name: module
            for name, module in replay.model.named_modules()
            if isinstance(module, QuantizedLayer) and module.precision.accumulators
        }
        if not layers:
            return {}
        for name, layer in layers.items():
            layer.shown = partial(_look, sums, name, layer.precision.accumulators)
        try:
            fresh_gradients(replay.model, replay.losses)
        finally:
            for layer in layers.values():
                layer.shown = None
        replay.processes.add(list(sums.values()))
        return {
            site: {"relative_error": (total[0] / total[1]).sqrt(), "truncated_share": total[3] / total[2]}
            for site, total in sums.items()
        }

    def report(self, site: str, values: Values) -> Report:
        alarms = []
        if self.latch.see(site, values["relative_error"] > self.largest):
            sentence = "{site}: its sums are off by {value:.2%} of their rms; promote more often."
            alarms = [self.alarm(site, "relative_error", values["relative_error"], self.largest, sentence)]
        return Report(at(site, values), alarms)


def _look(
    sums: dict[str, Tensor], layer: str, accumulators: Mapping[Any, AccumulatorSpec], name: str,
    a: Factor, b: Factor, y: Tensor,
) -> None:  # fmt: skip
    """Add a sample of a product to the sums of its site: squared errors, squares, terms, terms cut off."""
    rows, columns = (_spread(len(each.units), each.units.device) for each in (a, b))
    x, w = _taken(a, rows), _taken(b, columns)
    exact = operand_values(x).double() @ operand_values(w).double().T
    lost: list[int] = []
    by_definition(x, w, accumulators[name], lost=lost)
    error = y[rows][:, columns].double() - exact
    counted = torch.tensor([sum(lost[::2]), sum(lost[1::2])], dtype=torch.float64, device=y.device)
    made = torch.cat([torch.stack([error.square().sum(), exact.square().sum()]), counted])
    site = f"{layer}/{name}"
    sums[site] = sums[site] + made if site in sums else made


def _spread(size: int, device: torch.device) -> Tensor:
    return torch.linspace(0, size - 1, min(SAMPLE, size), device=device).long()


def _taken(factor: Factor, rows: Tensor) -> Factor:
    """Some rows of an operand."""
    within, after = (
        part if part is None or part.ndim == 0 or len(part) == 1 else part[rows]
        for part in (factor.within, factor.after)
    )
    return factor._replace(units=factor.units[rows], within=within, after=after)
