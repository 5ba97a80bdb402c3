"""Optimizers that request, parameter groups by name, schedules."""

from altgrad.optim.adamw import AdamW
from altgrad.optim.optimizer import Optimizer, OptimizerSpec, Request, Update, parameter_groups
from altgrad.optim.schedule import Schedule

__all__ = ["AdamW", "Optimizer", "OptimizerSpec", "Request", "Schedule", "Update", "parameter_groups"]
