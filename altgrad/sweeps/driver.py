"""The driver of a sweep: hands runs to a launcher, watches their heartbeats, and hands out again what died.

    waiting -> pending -> running -> completed | diverged | failed
                 ^                       |
                 +------ waiting <-------+  dead: killed, preempted, lost with its machine

What a run came to is read from the store; the driver keeps nothing that it could not find out again. So it may be
killed at any moment, and the same command goes on: finished runs are finished, those under way are found by their
handles or their heartbeats and watched, and the rest is handed out.

A worker is dead when its engine says that it ended without an exit code, or when its heartbeat has not changed for
`patience` seconds, whatever the engine says; it is then killed, if it can be, and the run handed out again, to go on
from its last checkpoint. A run may die as often as it likes while it gets further; `retries` counts the deaths since it
last did. `diverged` is a result and never tried again. That no run is trained twice at once is not the driver's promise
but the lock's, in the run's own folder.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from altgrad.store import Checkpoints, Run, RunStore, utc_now
from altgrad.store.files import write_atomic
from altgrad.store.heartbeat import Pulse
from altgrad.store.runs import META
from altgrad.sweeps.folder import SweepFolder, SweepRecord
from altgrad.sweeps.launchers.launcher import Job, Launcher, State
from altgrad.sweeps.plan import Plan, PlannedRun

PATIENCE_SECONDS = 25.0
FIRST_BEAT_SECONDS = 120.0
RETRIES = 3
LEAVING_SECONDS = 60.0
REFUSALS = 5
TrackState = Literal["waiting", "pending", "running", "completed", "diverged", "failed"]
DONE: tuple[TrackState, ...] = ("completed", "diverged", "failed")
OWN_FAULT = (1, 2, 5)
OVER = (0, 4, *OWN_FAULT)


@dataclass
class Track:
    """What the driver knows of one run."""

    planned: PlannedRun
    run: Run
    state: TrackState = "waiting"
    reason: str = ""
    handle: str = ""
    pulse: Pulse | None = None
    meta_changed: int = 0
    deaths: int = 0
    """Deaths since the run last got further."""
    died: int = 0
    """Deaths in all."""
    reached: int = -1
    """Step of the newest checkpoint at the last death."""
    not_before: float = 0.0
    since: float = 0.0

    @property
    def active(self) -> bool:
        """Whether some engine or process has it."""
        return self.state in ("pending", "running")


@dataclass
class Sweep:
    """Drives one plan to its end with one launcher. `tracks` and `news` may be looked at between rounds."""

    plan: Plan
    folder: SweepFolder
    launcher: Launcher
    launcher_kind: str
    device: str = "auto"
    retries: int = RETRIES
    patience: float = PATIENCE_SECONDS
    rerun_failed: bool = False
    clock: Callable[[], float] = time.monotonic
    tracks: list[Track] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    refusals: int = 0

    def run(self, look: Callable[["Sweep"], None], stopped: Callable[[], bool] = lambda: False) -> bool:
        """Until every run is done; False if it was stopped before. look: called after every round.

        Raises LockedError if another process drives this sweep.
        """
        with self.folder.lock():
            self.take_stock()
            look(self)
            while any(track.state not in DONE for track in self.tracks):
                if stopped() or self.folder.cancelled:
                    self.stop(look)
                    return False
                try:
                    self.round()
                    look(self)
                    if any(track.state not in DONE for track in self.tracks):
                        time.sleep(self.launcher.poll_seconds)
                except KeyboardInterrupt:  # in a notebook nobody asks by `stopped`
                    self.stop(look)
                    raise
        return True

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *_: object) -> None:
        self.launcher.close()

    def take_stock(self) -> None:
        """What the store says of every run, and which jobs an earlier driver left."""
        store = RunStore(self.folder.store)
        records = self.folder.records()
        for planned in self.plan.runs:
            track = Track(planned, store.run(planned.spec.project, planned.id))
            self.tracks.append(track)
            record = records.get(planned.id)
            self._place(track, record)
            if track.state == "failed" and self.rerun_failed:
                track.state, track.reason = "waiting", ""
                self.folder.write_record(planned.id, None)
            elif track.state in DONE:
                continue
            elif record is not None and record.handle and record.launcher == self.launcher_kind:
                self._adopt(track, record.handle, record.meta_changed)

    def _place(self, track: Track, record: SweepRecord | None) -> None:
        if record is not None and record.failed:
            track.state, track.reason = "failed", record.failed
        if not track.run.exists:
            return
        status = track.run.status
        if done := _done(status):
            track.state = done
            track.reason = str(track.run.meta().get("reason") or "")
        elif status == "running":
            self._adopt(track, "", 0)

    def _adopt(self, track: Track, handle: str, meta_changed: int) -> None:
        track.handle, track.meta_changed = handle, meta_changed
        track.pulse = Pulse(self.folder.beat(track.planned.id), self.clock)
        track.state, track.since = "running", self.clock()

    def round(self) -> None:
        """Look at every run that is out, and hand out what there is room for."""
        active = [track for track in self.tracks if track.active]
        states = self.launcher.poll([track.handle for track in active if track.handle])
        for track in active:
            self._look_at(track, states.get(track.handle, "unknown"))
        now = self.clock()
        waiting = [track for track in self.tracks if track.state == "waiting" and track.not_before <= now]
        room = self.launcher.room(sum(track.active for track in self.tracks))
        if waiting and room > 0:
            self._hand_out(waiting[:room])

    def _look_at(self, track: Track, state: State) -> None:
        assert track.pulse is not None
        silence = track.pulse.silence()
        if track.pulse.beaten and track.pulse.exit is None and track.state == "pending":
            track.state, track.since = "running", self.clock()
        elif state == "running" and track.state == "pending" and not track.since:
            track.since = self.clock()
        if not track.handle:  # somebody else's: neither engine nor heartbeat is ours
            if track.run.status != "running":
                self._conclude(track, None, "the process that had it is gone")
        elif state == "ended":
            # It may have written its last word between the look at the file and the engine's answer.
            track.pulse.silence()
            said = "" if track.pulse.beaten else self.folder.reason(track.planned.id)
            self._conclude(track, track.pulse.exit, "" if track.pulse.exit is not None else said or "it was killed")
        elif track.pulse.exit is not None:
            # An engine may have another turn in mind for what was merely interrupted; what is over is over.
            if state == "unknown" or track.pulse.exit in OVER:
                self._conclude(track, track.pulse.exit, "")
            elif state == "pending":
                track.state = "pending"
        elif track.pulse.beaten and silence > self.patience:
            self.launcher.cancel([track.handle], kill=True)
            self._conclude(track, None, f"no heartbeat for {silence:.0f} s")
        elif not track.pulse.beaten and track.since and self.clock() - track.since > FIRST_BEAT_SECONDS:
            self.launcher.cancel([track.handle], kill=True)
            self._conclude(track, None, f"no heartbeat within {FIRST_BEAT_SECONDS:.0f} s of its start")

    def _conclude(self, track: Track, code: int | None, why: str) -> None:
        """What came of an attempt: by its exit code, else by what the run's folder says since it was handed out."""
        run, reason = track.run, ""
        status = "dead"
        if run.exists:
            meta = run.meta()
            reason = str(meta.get("reason") or "")
            if code is not None or (run.path / META).stat().st_mtime_ns != track.meta_changed:
                status = str(meta.get("status"))
        track.handle, track.pulse, track.since = "", None, 0.0
        if (done := _done(status)) and done != "failed" and code in (None, 0, 4):
            track.state, track.reason = done, reason
            self.folder.write_record(track.planned.id, None)
        elif code in OWN_FAULT or (code is None and status == "failed"):
            said = self.folder.reason(track.planned.id) if code in (2, 5) or not reason else reason
            self._fail(track, said or f"exit code {code}")
        else:
            self._died(track, why or f"exit code {code}: {self.folder.reason(track.planned.id)}")

    def _died(self, track: Track, why: str) -> None:
        reached = max(Checkpoints(track.run.checkpoints.folder).steps(), default=-1)
        track.deaths = track.deaths + 1 if reached <= track.reached else 1
        track.died, track.reached = track.died + 1, max(reached, track.reached)
        if track.deaths > self.retries:
            self._fail(track, f"died {track.deaths} times without getting further; the last time: {why}")
            return
        track.state = "waiting"
        track.not_before = self.clock() + (0.0 if track.deaths == 1 else min(30.0, 2.0 ** (track.deaths - 2)))
        self.news.append(f"{track.planned.id} died ({why}); it will go on from {_from(reached)}")
        self.folder.write_record(track.planned.id, None)

    def _fail(self, track: Track, reason: str) -> None:
        track.state, track.reason = "failed", reason
        self.news.append(f"{track.planned.id} failed: {reason}")
        self.folder.write_record(track.planned.id, SweepRecord(failed=reason, submitted=utc_now()))

    def _hand_out(self, tracks: Sequence[Track]) -> None:
        jobs = [self._job(track) for track in tracks]
        for track, job in zip(tracks, jobs, strict=True):
            job.beat.unlink(missing_ok=True)
            meta = track.run.path / META
            track.meta_changed = meta.stat().st_mtime_ns if meta.exists() else 0
        try:
            handles = self.launcher.submit(jobs)
        except (OSError, RuntimeError) as error:
            self._refused(tracks, error)
            return
        self.refusals = 0
        for track, handle in zip(tracks, handles, strict=True):
            track.handle, track.state, track.since = handle, "pending", 0.0
            track.pulse = Pulse(self.folder.beat(track.planned.id), self.clock)
            record = SweepRecord(self.launcher_kind, handle, utc_now(), track.meta_changed)
            self.folder.write_record(track.planned.id, record)

    def _refused(self, tracks: Sequence[Track], error: Exception) -> None:
        """An engine that is full is asked again, longer and longer apart; one that takes nothing ends the sweep."""
        self.refusals += 1
        if self.refusals > REFUSALS and not any(track.active for track in self.tracks):
            raise error
        wait = 5.0 * 2 ** min(self.refusals, REFUSALS)
        self.news.append(f"{self.launcher_kind} refused ({str(error).splitlines()[0][:200]}); again in {wait:.0f} s")
        for track in tracks:
            track.not_before = self.clock() + wait

    def _job(self, track: Track) -> Job:
        spec, folder, run = track.planned.spec, self.folder, track.planned.id
        write_atomic(folder.spec(run), spec.to_yaml().encode(), durable=False)
        assert spec.threads is not None
        return Job(
            run,
            spec=folder.spec(run).absolute(),
            store=folder.store.absolute(),
            beat=folder.beat(run).absolute(),
            log=folder.log(run).absolute(),
            threads=spec.threads,
            device=self.device,
            warm=spec.engine == "eager" and not spec.compile,
        )

    def stop(self, look: Callable[["Sweep"], None], *, kill_after: float = LEAVING_SECONDS) -> None:
        """Ask every worker to save and stop, wait for it, and kill what does not listen."""
        begun = self.clock()
        handles = [track.handle for track in self.tracks if track.active and track.handle]
        self.launcher.cancel(handles)
        while handles and self.clock() - begun < kill_after:
            states = self.launcher.poll(handles)
            for track in self.tracks:
                if track.active and track.handle and states.get(track.handle) == "ended":
                    track.state, track.handle = "waiting", ""
                    self.folder.write_record(track.planned.id, None)
            handles = [track.handle for track in self.tracks if track.active and track.handle]
            look(self)
            time.sleep(self.launcher.poll_seconds)
        self.launcher.cancel(handles, kill=True)


def _done(status: str) -> TrackState | None:
    """The state of a run whose folder says so, if it is one that ends it."""
    return next((state for state in DONE if state == status), None)


def _from(step: int) -> str:
    return "its beginning" if step < 0 else f"step {step}"
