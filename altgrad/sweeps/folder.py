"""What a sweep leaves in the store besides its runs: what was handed to an engine, and what came back.

    <store>/.sweeps/<sweep>/
        specs/<run id>.yaml    the resolved spec that the worker trains
        logs/<run id>.log      what the worker printed, attempt after attempt
        beats/<run id>.json    the worker's heartbeat, and in the end its exit code
        jobs/<run id>.json     which engine has it under which handle, or why it failed
        cancel                 present: the driver is asked to stop everything
        lock                   held by the one driver

None of it decides anything that the run's own folder says otherwise: with `.sweeps` deleted, the same command finds the
finished runs finished. It is there so that a driver that was killed does not hand the same run out twice.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from altgrad.store import utc_now, write_atomic
from altgrad.store.lock import hold, is_held
from altgrad.store.runs import check_name

SWEEPS = ".sweeps"


@dataclass(frozen=True)
class SweepRecord:
    """What is known of one run's job: its engine and handle, or the reason why it failed for good."""

    launcher: str = ""
    handle: str = ""
    submitted: str = ""
    meta_changed: int = 0
    """mtime (ns) of the run's meta.json when it was handed out: a status older than that is not this attempt's."""
    failed: str = ""


@dataclass(frozen=True)
class SweepFolder:
    """One sweep's folder; made when it is first written to. ValueError for a name that cannot be one."""

    store: Path
    name: str

    @property
    def path(self) -> Path:
        """`<store>/.sweeps/<name>`."""
        return self.store / SWEEPS / check_name(self.name, "sweep")

    def spec(self, run: str) -> Path:
        """Where the spec of that run id is."""
        return self._file("specs", run, "yaml")

    @property
    def logs(self) -> Path:
        """Where the workers' output is."""
        return self.path / "logs"

    def log(self, run: str) -> Path:
        """Where its worker's output is."""
        return self._file("logs", run, "log")

    def beat(self, run: str) -> Path:
        """Where its worker's heartbeat is."""
        return self._file("beats", run, "json")

    def make(self) -> "SweepFolder":
        """Make the folders; harmless when repeated."""
        for part in ("specs", "logs", "beats", "jobs"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        return self

    def record(self, run: str) -> SweepRecord | None:
        """The job of that run; None where there is none or it cannot be read."""
        try:
            return SweepRecord(**json.loads(self._file("jobs", run, "json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write_record(self, run: str, record: SweepRecord | None) -> None:
        """Keep a job, atomically, or forget it."""
        path = self._file("jobs", run, "json")
        if record is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, json.dumps(asdict(record)).encode() + b"\n", durable=False)

    def records(self) -> dict[str, SweepRecord]:
        """All jobs by run id."""
        found = {path.stem: self.record(path.stem) for path in sorted((self.path / "jobs").glob("*.json"))}
        return {run: record for run, record in found.items() if record is not None}

    def reason(self, run: str) -> str:
        """The last line a worker printed: for a run that left no word of its own."""
        with suppress(OSError):
            lines = self.log(run).read_text(errors="replace").split("\n")
            return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
        return ""

    def ask_to_cancel(self) -> None:
        """Tell the driver, wherever it runs, to stop everything."""
        write_atomic(self.path / "cancel", utc_now().encode() + b"\n", durable=False)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return (self.path / "cancel").exists()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one driver for the length of a block; LockedError within half a second if there is one already."""
        self.make()
        with hold(self.path):
            (self.path / "cancel").unlink(missing_ok=True)
            yield

    @property
    def is_driven(self) -> bool:
        """Whether a driver is at work."""
        return self.path.is_dir() and is_held(self.path)

    def _file(self, part: str, run: str, suffix: str) -> Path:
        return self.path / part / f"{check_name(run, 'run')}.{suffix}"
