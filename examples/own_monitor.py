"""A monitor in your own file: the root mean square of every weight. CONTRIBUTING.md has one that specs know."""

from typing import ClassVar

import torch
from torch import nn

import altgrad
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, Context, Found, MonitorSpec, Report, Values, Weight, WeightMonitor, at


class SizeSpec(MonitorSpec):
    """The root mean square of each parameter."""

    kind: ClassVar[str] = "size"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("rms", "weight's own", "its size", "sqrt(mean w^2)"),)

    def build(self, context: Context = NOTHING) -> "Size":
        return Size()


class Size(WeightMonitor):
    alike: ClassVar[tuple[str, ...]] = ("rms",)  # every process has the same weights

    def measure(self, weight: Weight) -> Found:
        return {"rms": weight.values.square().mean().sqrt()}

    def report(self, site: str, values: Values) -> Report:
        return Report(at(site, values))


model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = altgrad.watch(model, optimizer, monitors=[SizeSpec(every=1)])
model(torch.randn(4, 8)).square().mean().backward()
optimizer.step()
print(watch.metrics)
