"""The family of launchers: an engine that can be handed work, asked about it, and told to stop it.

A worker is always the same command, `altgrad train <spec> --runs <store> --heartbeat <file> --exact --json`, and what
came of it is always read from the store. So a launcher is only this:

    submit(jobs) -> handles      hand over; a handle is a short text that another process can use tomorrow
    poll(handles) -> states      pending | running | ended | unknown
    cancel(handles)              SIGTERM, so that a run saves its state; whoever does not listen is killed

The contract, the same for all:

* Environment. A worker sees the variables that the driver had when it submitted, the driver's working directory, and
  OMP_NUM_THREADS and MKL_NUM_THREADS set to `Job.threads`. GPUs are handed out through CUDA_VISIBLE_DEVICES, by the
  launcher or the engine. Nothing of that is in the spec: threads and engine of the casts are, resolved by the driver.
* Threads. `Job.threads` CPU cores are claimed for each run, which the run then uses (`threads` of its spec).
* Log. Standard output and error of every attempt are appended to `Job.log`, whatever else the engine keeps.
* Exit codes are those of `altgrad train`, and are in the heartbeat file: 0 completed, 4 diverged, and 1, 2, 5 are a
  run's own fault, for which the same again would be the same; everything else (3, 75, 130, none at all) is the
  machine's, and the run is handed out again.
* A launcher is not believed about death alone: a heartbeat that stopped is a dead worker whatever `poll` says.
"""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from altgrad.spec import Kind

State = Literal["pending", "running", "ended", "unknown"]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Job:
    """One attempt at one run. All paths are absolute."""

    run: str
    """The run's id."""
    spec: Path
    store: Path
    beat: Path
    log: Path
    threads: int
    device: str = "auto"
    warm: bool = True
    """Whether a process that has torch loaded already may be forked for it: not for what compiles."""

    def arguments(self) -> list[str]:
        """What follows `altgrad`."""
        return [
            "train", str(self.spec), "--runs", str(self.store), "--heartbeat", str(self.beat),
            "--device", self.device, "--exact", "--json",
        ]  # fmt: skip

    def command(self) -> list[str]:
        """The whole command, with the driver's own interpreter."""
        return [sys.executable, "-m", "altgrad.cli.main", *self.arguments()]

    def environment(self) -> dict[str, str]:
        """The driver's variables with the threads of this run."""
        threads = str(self.threads)
        return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


class Launcher(ABC):
    """An engine in use. Made by `LauncherSpec.build`; `close` it when done."""

    poll_seconds: float = 0.2
    """How often it is worth asking."""
    outlives: bool = True
    """Whether workers go on when the driver leaves: then leaving does not stop them."""

    @abstractmethod
    def room(self, active: int) -> int:
        """How many more jobs it takes now, with so many in its hands."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> list[str]:
        """Hand over jobs; their handles, in the same order. OSError or RuntimeError if the engine refuses."""

    @abstractmethod
    def poll(self, handles: Sequence[str]) -> Mapping[str, State]:
        """State by handle; `unknown` for one this engine has no record of, which says nothing about the worker."""

    @abstractmethod
    def cancel(self, handles: Sequence[str], *, kill: bool = False) -> None:
        """Ask workers to save and stop, or with `kill` end them at once; those already gone are passed over."""

    def close(self) -> None:
        """Let go of the engine; jobs go on where they can."""
        return


class LauncherSpec(Kind, family="launcher", package="altgrad.sweeps.launchers"):
    """Where workers run, and how many at once."""

    jobs: Count | None = None
    """Runs at once; null: as many as there are GPUs, or cores for the threads of a run."""

    @abstractmethod
    def build(self, threads: int = 1) -> Launcher:
        """Take hold of the engine. ValueError, in one line, where it is not here. threads: the most that a run has."""
