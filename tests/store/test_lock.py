"""One process at a time in a run, whoever dies and whoever looks."""

import os
import signal
import socket
import time
from pathlib import Path

import filelock
import pytest

import altgrad.store.lock
from altgrad.store import LockedError, Run, RunStore
from altgrad.store.lock import RECORD, is_held

HOLDER = """
import sys, time
from pathlib import Path
from altgrad.store import Run
with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def make(store: RunStore, name: str, project: str = "demo", **meta: object) -> Run:
    return store.run(project, name).create("steps: 3\n", meta)


def test_a_second_process_is_refused_by_name_and_a_killed_one_holds_nothing(store: RunStore, python) -> None:
    run = make(store, "a")
    process = python(HOLDER, run.path)
    assert process.stdout.readline() == "held\n"
    said = rf"run a is in use by pid {process.pid} on host {socket.gethostname()} \(last heartbeat \d+ s ago\)"
    for refused in (run.lock().__enter__, run.set_aside, run.delete):
        with pytest.raises(LockedError, match=said) as caught:
            refused()
        assert caught.value.holder is not None
        assert caught.value.holder.pid == process.pid
    assert run.status == "running"

    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run.path / RECORD).exists()  # stale, and believed by nobody
    assert run.status == "dead"
    with run.lock() as holder:
        assert holder.pid == os.getpid()
    assert not (run.path / RECORD).exists()


def test_a_second_lock_in_the_same_process_is_refused(store: RunStore) -> None:
    run = make(store, "a")
    with run.lock(), pytest.raises(LockedError, match=f"pid {os.getpid()}"), run.lock():
        pass
    with run.lock():
        pass


def test_the_heartbeat_goes_on_beating(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(altgrad.store.lock, "HEARTBEAT_SECONDS", 0.005)
    run = make(store, "a")
    with run.lock() as first:
        while run.holder is None or run.holder.heartbeat == first.heartbeat:
            time.sleep(0.005)
        assert run.holder.started == first.started
    assert sorted(path.name for path in run.path.iterdir() if path.name != "lock") == ["meta.json", "spec.yaml"]


def test_many_who_look_do_not_keep_one_who_works_from_the_lock(store: RunStore, python) -> None:
    run = make(store, "a")
    (run.path / "lock").touch()
    script = """
import sys
from pathlib import Path
from altgrad.store.lock import is_held
print("looking", flush=True)
while True:
    is_held(Path(sys.argv[1]))
"""
    watcher = python(script, run.path)
    assert watcher.stdout.readline() == "looking\n"
    for _ in range(20):
        with run.lock():
            pass


def test_a_holder_that_cannot_be_asked_is_believed_while_its_heart_beats(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    run = make(store, "a")
    with run.lock():
        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        assert is_held(run.path)
        monkeypatch.setattr(altgrad.store.lock, "STALE_SECONDS", -1.0)
        assert not is_held(run.path)


def test_locking_what_is_no_run_is_a_plain_error(store: RunStore) -> None:
    with pytest.raises(ValueError, match="no such folder"), store.run("demo", "a").lock():
        pass
    assert not store.root.exists()
