"""Workers as processes of this machine.

Each worker leads a session of its own, so it outlives the driver: a driver that was killed finds it again by pid and
start time, which no later process can have both. GPUs are dealt out one to a run, or to `per_gpu` runs.

Starting Python and torch takes about 3 s of CPU, which for a run of seconds is most of it. So one process (`warm`)
loads torch once and is forked for every run; the child is then told what any worker is told, and trains the same bits.
Runs that compile, and runs on a GPU, start cold: neither a compiler's pool nor a CUDA context survives a fork.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch

from altgrad.sweeps.launchers.launcher import Count, Job, Launcher, LauncherSpec, State


class LocalSpec(LauncherSpec):
    """Processes of this machine, each with a GPU (or a share of one) or with its threads."""

    kind: ClassVar[str] = "local"
    per_gpu: Count = 1
    """Runs that share a GPU."""
    warm: bool = True
    """Fork workers from a process that has torch loaded, where a run allows it."""

    def build(self, threads: int = 1) -> "Local":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return Local(self, gpus, max(1, _cores() // threads))


class Local(Launcher):
    """Handles are `pid:start time@host#slot`."""

    def __init__(self, spec: LocalSpec, gpus: int, at_once: int = 1) -> None:
        self.spec = spec
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        self.gpus = [name for name in names for _ in range(spec.per_gpu)] if gpus else []
        self.jobs = spec.jobs or len(self.gpus) or at_once
        self.own: dict[int, subprocess.Popen[bytes]] = {}
        self.taken: dict[str, int] = {}
        self.server: subprocess.Popen[bytes] | None = None

    def room(self, active: int) -> int:
        return self.jobs - active

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> str:
        slot = next(slot for slot in range(len(self.taken) + 1) if slot not in self.taken.values())
        environment = job.environment()
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        cold = self.gpus or not (self.spec.warm and job.warm and hasattr(os, "fork"))
        pid = self._spawn(job, environment) if cold else self._fork(job, environment)
        handle = f"{pid}:{_started(pid)}@{socket.gethostname()}#{slot}"
        self.taken[handle] = slot
        return handle

    def _spawn(self, job: Job, environment: Mapping[str, str]) -> int:
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                job.command(), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.own[process.pid] = process
        return process.pid

    def _fork(self, job: Job, environment: Mapping[str, str]) -> int:
        """Ask the warm process for a child; start it if it is not there (or no longer)."""
        order = {
            "arguments": job.arguments(), "environment": dict(environment), "folder": os.getcwd(), "log": str(job.log)
        }  # fmt: skip
        for _ in range(2):
            if self.server is None or self.server.poll() is not None:
                self.server = subprocess.Popen(
                    [sys.executable, "-m", "altgrad.cli.worker"], env={**environment},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                )  # fmt: skip
            assert self.server.stdin is not None and self.server.stdout is not None
            with suppress(OSError, ValueError):
                self.server.stdin.write(json.dumps(order).encode() + b"\n")
                self.server.stdin.flush()
                if answer := self.server.stdout.readline():
                    return int(answer)
        return self._spawn(job, environment)

    def poll(self, handles: Sequence[str]) -> Mapping[str, State]:
        """A worker of another host is unknown here."""
        for pid, process in list(self.own.items()):
            if process.poll() is not None:
                del self.own[pid]
        found = {handle: self._state(handle) for handle in handles}
        # Also those of an earlier driver: their GPUs are taken too.
        self.taken = {handle: int(handle.rpartition("#")[2]) for handle, state in found.items() if state == "running"}
        return found

    def _state(self, handle: str) -> State:
        if not handle.partition("@")[2].startswith(f"{socket.gethostname()}#"):
            return "unknown"
        return "running" if _alive(handle) else "ended"

    def cancel(self, handles: Sequence[str], *, kill: bool = False) -> None:
        for handle in handles:
            if self._state(handle) == "running":
                with suppress(OSError):
                    os.kill(int(handle.partition(":")[0]), signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        """The warm process goes; its children stay, and so do workers that have not ended."""
        for process in self.own.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)  # one that has said how it ended is about to be gone; on a busy machine, in seconds
        if self.server is not None:
            for stream in (self.server.stdin, self.server.stdout):
                assert stream is not None
                with suppress(OSError):
                    stream.close()
            self.server.wait()
            self.server = None


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started(pid: int) -> str:
    """When the process began, in the kernel's ticks; empty where nobody says (no /proc, or no such process)."""
    fields = _stat(pid)
    return str(fields[19]) if fields else ""


def _alive(handle: str) -> bool:
    """Whether the very process of a handle is there and not a zombie."""
    pid, _, started = handle.partition("@")[0].partition(":")
    if Path("/proc/self/stat").exists():
        fields = _stat(int(pid))
        return bool(fields) and fields[0] != "Z" and str(fields[19]) == started
    with suppress(OSError):
        os.kill(int(pid), 0)
        return True
    return False


def _stat(pid: int) -> list[Any]:
    """Fields of /proc/<pid>/stat after the command's name: state first, start time the 20th."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
