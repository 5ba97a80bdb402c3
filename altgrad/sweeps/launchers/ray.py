"""Workers as plain Ray tasks: each claims its cores and GPUs, runs the worker's command, and gives back its exit code.

Ray's own retries are off: what is tried again, and from where, is the driver's decision. A task lives as long as the
driver that made it, so a driver that comes back finds its old handles unknown here and goes by the heartbeats of the
workers, which may have outlived it. Anything of Ray's above tasks (Tune, Train) would bring a second memory of what was
done; the store is the one.
"""

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from altgrad.sweeps.launchers.launcher import Job, Launcher, LauncherSpec, State


class RaySpec(LauncherSpec):
    """Ray tasks, on a cluster or on this machine. `jobs` bounds how many are handed over at once."""

    kind: ClassVar[str] = "ray"
    address: str | None = None
    """Of a running cluster, or `auto`; null starts Ray on this machine alone."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs for each run; 0.5 lets two share one."""

    def build(self, threads: int = 1) -> "Ray":
        return Ray(self)


class Ray(Launcher):
    """Handles are `<ray job>/<task>`."""

    outlives = False

    def __init__(self, spec: RaySpec) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError('launcher ray needs ray, which is not installed: pip install "altgrad[ray]".') from None

        self.spec = spec
        self.ray: Any = ray
        self.mine = not ray.is_initialized()
        if self.mine:
            settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if spec.address is None:
                settings |= {"include_dashboard": False, "num_cpus": spec.jobs}
            self.ray.init(address=spec.address, **settings)
        self.session = self.ray.get_runtime_context().get_job_id()
        self.tasks: dict[str, Any] = {}
        self.number = 0

    def room(self, active: int) -> int:
        """Ray queues what does not fit."""
        return (self.spec.jobs or 1000) - active

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        handles = []
        for job in jobs:
            task = self.ray.remote(_perform).options(
                num_cpus=job.threads, num_gpus=self.spec.gpus, max_retries=0, name=job.run
            )
            self.number += 1
            handle = f"{self.session}/{self.number}"
            self.tasks[handle] = task.remote(job.command(), job.environment(), str(job.log), str(Path.cwd()))
            handles.append(handle)
        return handles

    def poll(self, handles: Sequence[str]) -> Mapping[str, State]:
        """Whether a task waits for room or runs is its heartbeat's to say."""
        own = [self.tasks[handle] for handle in handles if handle in self.tasks]
        ready = set(self.ray.wait(own, num_returns=len(own), timeout=0)[0]) if own else set()
        return {
            handle: "unknown" if handle not in self.tasks else "ended" if self.tasks[handle] in ready else "pending"
            for handle in handles
        }

    def cancel(self, handles: Sequence[str], *, kill: bool = False) -> None:
        """A task that is cancelled asks its worker to save."""
        for handle in handles:
            if handle in self.tasks:
                with suppress(Exception):  # a task that ended, or whose worker is gone
                    self.ray.cancel(self.tasks[handle], force=kill)

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def _perform(command: list[str], environment: dict[str, str], log: str, folder: str) -> int:
    """One worker, on whichever machine Ray chose; CUDA_VISIBLE_DEVICES is Ray's."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    merged = {**environment, **({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})}
    with open(log, "ab") as file:
        process = subprocess.Popen(command, env=merged, cwd=folder, stdout=file, stderr=file)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
