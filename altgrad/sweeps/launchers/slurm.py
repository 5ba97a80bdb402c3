"""Workers as tasks of Slurm array jobs, through submitit.

submitit writes the batch script, pickles what each task does, and in the task listens for the signal that Slurm sends
before a time limit or a preemption. Ours then asks `altgrad train` to save, waits for it, and has the task requeued; it
goes on from its checkpoint under the same job id. What a task does is start the worker's command and wait, so nothing
of torch is pickled and one wheel of submitit serves any version of ours.

Jobs are asked about with `squeue`, not with `sacct`: that needs an accounting database, which many small clusters lack.
squeue forgets a job some minutes after it ends, so one that it does not list has ended; the store has what it came to.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from altgrad.sweeps.launchers.launcher import Count, Job, Launcher, LauncherSpec, State

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESV_DEL_HOLD"}
OVER = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED",
}  # fmt: skip
SAVING_SECONDS = 60


class SlurmSpec(LauncherSpec):
    """Slurm array jobs. `jobs` bounds the tasks of an array that run at once."""

    kind: ClassVar[str] = "slurm"
    partition: str | None = None
    """As sbatch takes it."""
    account: str | None = None
    """As sbatch takes it."""
    qos: str | None = None
    """As sbatch takes it."""
    minutes: Count = 240
    """Time limit of a task; one that reaches it saves, is requeued and goes on."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs for each run."""
    memory_gb: Count | None = None
    """Memory of a task; null: the cluster's default."""
    warning_seconds: Count = 120
    """How long before its limit a task is told (Slurm's --signal)."""
    array: Count = 500
    """Tasks in one array; Slurm's MaxArraySize is 1001 unless the cluster says otherwise."""
    setup: tuple[str, ...] = ()
    """Shell lines before the worker, such as `module load`."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further sbatch options by name, as `constraint: h100`."""

    def build(self, threads: int = 1) -> "Slurm":
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise ValueError("launcher slurm needs sbatch and squeue, which are not here; run it on a login node.")
        return Slurm(self)


class Slurm(Launcher):
    """Handles are Slurm's own: `<job>_<task>`."""

    poll_seconds = 2.0

    def __init__(self, spec: SlurmSpec) -> None:
        self.spec = spec

    def room(self, active: int) -> int:
        """Slurm queues; the array's own bound says how many run."""
        return self.spec.array

    def submit(self, jobs: Sequence[Job]) -> list[str]:
        """One array for all of them; OSError if sbatch refuses."""
        import submitit

        folder = jobs[0].log.parent / "slurm"
        executor = submitit.SlurmExecutor(folder=str(folder), max_num_timeout=1_000_000)
        executor.update_parameters(**self._parameters(max(job.threads for job in jobs)))
        tasks = [Task(job.command(), str(job.log), job.threads) for job in jobs]
        try:
            with executor.batch():
                submitted = [executor.submit(task) for task in tasks]
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, RuntimeError) as error:
            raise OSError(f"sbatch: {str(error).strip().splitlines()[-1]}") from None
        return [str(job.job_id) for job in submitted]

    def _parameters(self, threads: int) -> dict[str, Any]:
        spec = self.spec
        found: dict[str, Any] = {
            "job_name": "altgrad", "time": spec.minutes, "cpus_per_task": threads, "nodes": 1, "ntasks_per_node": 1,
            "signal_delay_s": spec.warning_seconds, "array_parallelism": spec.jobs or spec.array,
            "setup": list(spec.setup), "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **spec.extra},
        }  # fmt: skip
        chosen = {"partition": spec.partition, "account": spec.account, "qos": spec.qos}
        found |= {name: value for name, value in chosen.items() if value is not None}
        if spec.gpus:
            found["gpus_per_node"] = spec.gpus
        if spec.memory_gb:
            found["mem"] = f"{spec.memory_gb}GB"
        return found

    def poll(self, handles: Sequence[str]) -> Mapping[str, State]:
        """`unknown` while squeue does not answer."""
        if not handles:
            return {}
        ids = sorted({handle.partition("_")[0] for handle in handles})
        found: dict[str, State] = {}
        for start in range(0, len(ids), 100):
            command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
            done = subprocess.run(
                [*command, f"--jobs={','.join(ids[start : start + 100])}"], capture_output=True, text=True, check=False
            )
            if done.returncode and "Invalid job id" not in done.stderr:
                return dict.fromkeys(handles, "unknown")
            found |= dict(_states(done.stdout))
        return {handle: found.get(handle, "ended") for handle in handles}

    def cancel(self, handles: Sequence[str], *, kill: bool = False) -> None:
        """The batch shell passes SIGTERM on to the step; tasks that wait are simply withdrawn."""
        for start in range(0, len(handles), 100):
            some = handles[start : start + 100]
            if kill:
                subprocess.run(["scancel", *some], capture_output=True, check=False)
            else:
                subprocess.run(["scancel", "--state=PENDING", *some], capture_output=True, check=False)
                subprocess.run(["scancel", "--signal=INT", *some], capture_output=True, check=False)


def _states(listing: str) -> list[tuple[str, State]]:
    found: list[tuple[str, State]] = []
    for line in listing.splitlines():
        handle, _, state = line.strip().partition(" ")
        found.append((handle, "pending" if state in WAITING else "ended" if state in OVER else "running"))
    return found


def ignore_warnings() -> None:
    """Slurm warns every process of the step, the worker too, which would die of it; its task is the one to act."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class Task:
    """What one array task does: run the worker's command until it ends, and save in time. submitit pickles it."""

    def __init__(self, command: list[str], log: str, threads: int) -> None:
        self.command, self.log, self.threads = command, log, threads
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Start the worker and wait; its exit code."""
        threads = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with Path(self.log).open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, preexec_fn=ignore_warnings
            )
            signal.signal(signal.SIGINT, lambda number, frame: self.save())
            return self.process.wait()

    def save(self) -> None:
        """Ask the worker to save and stop, and wait for that; kill it if it takes too long.

        This runs in a signal handler, in the middle of `wait`, which holds Popen's own lock: so the kernel is asked.
        """
        if self.process is None:
            return
        pid, deadline = self.process.pid, time.monotonic() + SAVING_SECONDS
        with suppress(ProcessLookupError, ChildProcessError):  # it is gone and was waited for
            os.kill(pid, signal.SIGTERM)
            while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)

    def checkpoint(self) -> Any:
        """What submitit calls before a time limit or a preemption: save, then the same task once more."""
        import submitit

        self.save()
        return submitit.helpers.DelayedSubmission(Task(self.command, self.log, self.threads))
