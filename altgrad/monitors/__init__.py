"""Monitors: what a run's numerics look like, one file for each question."""

from altgrad.monitors.monitor import CastMonitor, GradientMonitor, Monitor, MonitorSpec, Report
from altgrad.monitors.watch import Watch

__all__ = ["CastMonitor", "GradientMonitor", "Monitor", "MonitorSpec", "Report", "Watch"]
