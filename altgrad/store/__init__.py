"""The only memory between processes: runs as folders, checkpoints that verify, and where numbers go. Without torch."""

from altgrad.store.files import DamagedError, seconds_since, utc_now, write_atomic
from altgrad.store.lock import Holder, LockedError
from altgrad.store.runs import STATUSES, Run, RunStore, run_id
from altgrad.store.snapshots import CheckpointError, Rejected, Snapshot, Snapshots
from altgrad.store.tracker import RunFiles, Sink, Tracker

__all__ = [
    "STATUSES",
    "CheckpointError",
    "DamagedError",
    "Holder",
    "LockedError",
    "Rejected",
    "Run",
    "RunFiles",
    "RunStore",
    "Sink",
    "Snapshot",
    "Snapshots",
    "Tracker",
    "run_id",
    "seconds_since",
    "utc_now",
    "write_atomic",
]
