"""The only memory between processes: runs as folders, checkpoints that verify, and where numbers go. Without torch."""

from altgrad.store.checkpoints import Checkpoint, CheckpointError, Checkpoints, Rejected
from altgrad.store.files import DamagedError, seconds_since, utc_now, write_atomic
from altgrad.store.lock import Holder, LockedError
from altgrad.store.runs import STATUSES, Run, RunStore, run_id
from altgrad.store.tracker import RunFiles, Sink, Tracker

__all__ = [
    "STATUSES",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "Holder",
    "LockedError",
    "Rejected",
    "Run",
    "RunFiles",
    "RunStore",
    "Sink",
    "Tracker",
    "run_id",
    "seconds_since",
    "utc_now",
    "write_atomic",
]
