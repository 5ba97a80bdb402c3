"""Training: what decides a run, what must survive it, and the loop."""

from altgrad.training.loop import Outcome, train_run
from altgrad.training.run import RunSpec

__all__ = ["Outcome", "RunSpec", "train_run"]
