"""One process at a time in a run.

The operating system's lock on `<run>/lock` decides, because the kernel releases it however its holder dies, SIGKILL and
out-of-memory included. Beside it, `<run>/lock.json` says who holds it: pid, host, when it started and a heartbeat
refreshed every few seconds. The record only informs: when the lock is free the record is stale, whatever it says.
(A pid file alone cannot tell a dead holder from a recycled pid, nor see processes of another host.)

A process that looks at a run's status must take the lock for a moment to know that it is free. So whoever wants to hold
it tries for a fraction of a second before it believes that it is taken.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from altgrad.store.files import ASIDE, seconds_since, utc_now, write_atomic

LOCK = "lock"
RECORD = "lock.json"
HEARTBEAT_SECONDS = 5.0
# A holder that missed this many seconds of heartbeats is presumed gone where the lock itself cannot be asked.
STALE_SECONDS = 6 * HEARTBEAT_SECONDS


@dataclass(frozen=True)
class Holder:
    """Who holds a run: process id, host name, and UTC stamps of when it took the lock and last showed life."""

    pid: int
    host: str
    started: str
    heartbeat: str

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat, at least 0."""
        return seconds_since(self.heartbeat)


class LockedError(RuntimeError):
    """Another process holds the run. `holder` is None where it has not said who it is."""

    def __init__(self, folder: Path, holder: Holder | None) -> None:
        self.holder = holder
        who = "another process"
        if holder is not None:
            who = f"pid {holder.pid} on host {holder.host} (last heartbeat {holder.heartbeat_age:.0f} s ago)"
        super().__init__(f"run {folder.name} is in use by {who}; wait for it to end, or stop that process first.")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run's lock without a record: for the moment in which a folder is renamed or removed.

    LockedError within half a second if another process (or this one) holds it; ValueError if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run: there is no such folder.")
    from filelock import FileLock, Timeout  # slow to import, and most commands lock nothing

    before = folder.stat().st_ino
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0.3, poll_interval=0.02)
    except Timeout:
        raise LockedError(folder, holder(folder)) from None
    try:
        # While we waited, the holder may have renamed the folder: our lock would then be on the one set aside.
        if not folder.is_dir() or folder.stat().st_ino != before:
            raise LockedError(folder, holder(folder))
        yield
    finally:
        lock.release()


@contextmanager
def hold(folder: Path) -> Iterator[Holder]:
    """Hold the run's lock with its record and heartbeat, until the block ends. Errors as `exclusive`.

    The heartbeat is a daemon thread; a disk that refuses it for a while does not stop the run.
    """
    with exclusive(folder):
        for left in folder.glob(f".*{ASIDE}"):  # of writers that died; while we hold the lock, nobody else writes
            left.unlink(missing_ok=True)
        now = utc_now()
        record = Holder(os.getpid(), socket.gethostname(), now, now)
        _write(folder, record)
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(folder, record, stop), name="altgrad-heartbeat", daemon=True)
        thread.start()
        try:
            yield record
        finally:
            stop.set()
            thread.join(HEARTBEAT_SECONDS)
            with suppress(OSError):
                (folder / RECORD).unlink(missing_ok=True)


def holder(folder: Path) -> Holder | None:
    """The record in the folder, alive or stale; None where there is none or it cannot be read."""
    try:
        return Holder(**json.loads((folder / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def is_held(folder: Path) -> bool:
    """Whether some process, this one included, holds the run.

    The lock is asked; where we may not open it (another user's run, a read-only disk) a fresh heartbeat is believed.
    """
    if not (folder / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK).acquire(timeout=0.05, poll_interval=0.01):
            return False
    except Timeout:
        return True
    except OSError:
        record = holder(folder)
        return record is not None and record.heartbeat_age < STALE_SECONDS


def _beat(folder: Path, record: Holder, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            _write(folder, replace(record, heartbeat=utc_now()))


def _write(folder: Path, record: Holder) -> None:
    write_atomic(folder / RECORD, json.dumps(asdict(record)).encode() + b"\n", durable=False)
