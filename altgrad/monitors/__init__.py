"""Monitors: what a run's numerics look like, one file for each question."""

from altgrad.measures.metric import Metric, describing
from altgrad.monitors.alarm import Alarm
from altgrad.monitors.monitor import (
    CastMonitor,
    Context,
    GradientMonitor,
    MicroMonitor,
    Monitor,
    MonitorSpec,
    Replay,
    ReplayMonitor,
    Report,
    UpdateMonitor,
    Weight,
    WeightMonitor,
)  # fmt: skip

__all__ = [
    "Alarm",
    "CastMonitor",
    "Context",
    "GradientMonitor",
    "Metric",
    "MicroMonitor",
    "Monitor",
    "MonitorSpec",
    "Replay",
    "ReplayMonitor",
    "Report",
    "UpdateMonitor",
    "Weight",
    "WeightMonitor",
    "describing",
]  # fmt: skip
