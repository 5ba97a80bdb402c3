"""Watching: what runs monitors, in our own loop, in anyone's, and in the Hugging Face Trainer."""

from altgrad.watching.loop import LoopWatch, watch
from altgrad.watching.monitor_set import MonitorSet

__all__ = ["LoopWatch", "MonitorSet", "watch"]
