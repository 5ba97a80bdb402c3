"""train_run(): a run as a function of its spec. The step can be read from top to bottom.

    forward, backward (per micro-batch)  ->  look at the gradients  ->  clip  ->  update  ->  commit the scales

Interventions are asked after each look: at the gradients, and at what the update did.

After step k everything about it is logged before anything is saved, so that a run taken back to a checkpoint writes the
same lines again. Work that may be interrupted comes first in the loop and remembers that it was done, so a run stopped
anywhere continues where it was.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from altgrad.data.dataset import Dataset
from altgrad.interventions import NOT_INTERVENED, Intervened, Moment
from altgrad.monitors import Metric, Replay, Report
from altgrad.nn import Processes, commit
from altgrad.progress import progress
from altgrad.spec import LocatedError
from altgrad.store import Checkpoints, Run, RunFiles, RunStore, Sink, Tracker
from altgrad.store.mirror import MirrorSink
from altgrad.training import checkpoint
from altgrad.training.carry import carry, evaluation_model
from altgrad.training.evaluate import evaluate
from altgrad.training.micro_batches import Gradients
from altgrad.training.regions import compile_seconds
from altgrad.training.restore import taken_up
from altgrad.training.run import RunSpec
from altgrad.training.sharding import clip_gradients, gradient_norm
from altgrad.training.state import EDITION, TrainState
from altgrad.training.twin import TWIN_KEYS, Twin, find_twin

Status = Literal["completed", "diverged", "interrupted"]
FIRST_EDITION = (
    "This run was started by AltGrad's first edition. From here on, casts keep infinities and Kahan storage rounds its "
    "compensation to nearest; CHANGELOG lists every number that can differ."
)

LOG_KEYS: tuple[Metric, ...] = (
    Metric("train/loss", "nats", "loss of the step, mean over its micro-batches", "mean NLL", "higher"),
    Metric("train/lr", "lr", "peak learning rate times the schedule", "lr * factor(step)"),
    Metric("train/gradient_norm", "gradient's own", "Euclidean norm, before clipping", "|g|", "higher"),
    Metric("train/tokens", "count", "tokens trained on so far, padding aside", "sum of tokens"),
    Metric("validation/loss", "nats", "of the weights that the forward uses", "sum NLL / targets, mean BCE", "higher"),
    Metric("validation/perplexity", "ratio", "of the same", "exp(loss)", "higher"),
    Metric("validation/bits_per_byte", "bits", "of the same, by byte of text", "NLL / (ln 2 * bytes)", "higher"),
    Metric("validation/f1_*", "ratio", "micro, macro; likewise precision, recall", "p > 0.5, 0/0 = 0", "lower"),
    Metric("validation/tuned_f1_*", "ratio", "micro, macro, at the best single threshold", "p > threshold", "lower"),
    Metric("validation/threshold", "ratio", "the one with the highest micro F1", "argmax F1"),
    Metric("validation/subset_accuracy", "ratio", "rows with exactly the right labels", "#(all equal) / rows", "lower"),
    Metric("validation/hamming_loss", "ratio", "wrong decisions", "#wrong / (rows * labels)", "higher"),
    Metric("validation/roc_auc_*", "ratio", "micro, macro over labels both there and not", "area", "lower"),
    Metric("validation/pr_auc_*", "ratio", "micro, macro over labels that are there", "average precision", "lower"),
    Metric("time/tokens_per_second", "1/s", "tokens over time since the last logged step", "tokens / s", "lower"),
    Metric("time/median_tokens_per_second", "1/s", "over the run, its first tenth left out", "median", "lower"),
    Metric("time/wall_seconds", "s", "since the run began, all sittings", "t"),
    *TWIN_KEYS,
)
"""What is logged here, beside monitors, by whole key; a data set may add further validation numbers."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its status, the number of finished steps, last validation numbers, and why if not completed."""

    run: Run
    status: Status
    step: int
    validation: dict[str, float]
    reason: str = ""
    already: bool = False
    """Whether it was completed before."""


def train_run(
    spec: RunSpec,
    run: Run,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    sinks: Sequence[Sink] = (),
    interrupted: Callable[[], bool] = lambda: False,
    until: int | None = None,
    shard: bool = False,
) -> Outcome:
    """Train `run` (already created in its store, with this resolved spec) from its newest checkpoint to the end.

    sinks: other places that metrics and events go to. interrupted: asked between steps and batches; when true, the
    state is saved and the run ends `interrupted`, as it does at step `until`. Raises LockedError if another process
    holds the run, CheckpointError if it has checkpoints but none that verifies, DamagedError if its logs lack what its
    checkpoint saw, LocatedError for a spec that does not fit the model or its twin.

    With a process group (torchrun) all its processes call this; the first alone writes. shard: see `check_sharding`.
    """
    assert spec.is_resolved and spec.threads is not None, "a run is trained from its resolved spec"
    processes, device = Processes.present(), torch.device(device)
    spec.check_processes(processes)
    torch.set_num_threads(spec.threads)
    _compute_deterministically(device)
    with run.lock() if processes.is_first else nullcontext():
        snapshots = Checkpoints(run.checkpoints.folder, spec.keep)
        processes.words("the run is locked")
        newest = snapshots.newest()
        twin = _twin(spec, run, dataset)
        progress("making the model" if newest is None else "reading the checkpoint")
        state = taken_up(run, spec, dataset, device, newest, twin, sharded=shard)
        if newest is not None:
            run.check_logs(state.logged)
        state.watch.processes = processes
        processes.words("the checkpoint is read")
        if not processes.is_first:
            return _Training(
                spec, run, dataset, state, twin, snapshots, None, Tracker(*sinks), interrupted, until
            ).carry_on()
        files = RunFiles(run)
        tracker = Tracker(files, *sinks, *(MirrorSink(each, run) for each in spec.track))
        try:
            # Without a checkpoint even step 0, the evaluation before training, is done again.
            files.rewind(state.step if newest is not None else -1)
            run.update_meta(status="running", logged={}, **_where(run, device, processes, shard))
            rejected = newest.rejected if newest is not None else ()
            passed = [f"{each.path.name} was passed over: {each.reason}." for each in rejected]
            for line in (*passed, *[FIRST_EDITION] * (state.edition < EDITION), *state.notices):
                tracker.event(state.step, "notice", line)
            begun = "resumed" if newest is not None else "started"
            off = f", off {spec.branch.run}" if newest is None and spec.branch is not None else ""
            tracker.event(state.step, begun, f"{begun} at step {state.step} of {spec.steps}{off}", device=str(device))
            return _Training(spec, run, dataset, state, twin, snapshots, files, tracker, interrupted, until).carry_on()
        except Exception as error:
            with suppress(OSError, ValueError):  # where the disk is full or the folder gone, that is what must be told
                run.update_meta(status="failed", reason=f"{type(error).__name__}: {error}")
            raise
        finally:
            tracker.close()


def _where(run: Run, device: torch.device, processes: Processes, shard: bool) -> dict[str, Any]:
    """Where a run happens, for its meta data: `sharded` too where that is or was so."""
    sharded = {"sharded": shard} if shard or run.meta().get("sharded") else {}
    return {"device": str(device), "ranks": processes.size, **sharded}


def _compute_deterministically(device: torch.device) -> None:
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would fill every new tensor with NaN first, one more kernel each; nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _twin(spec: RunSpec, run: Run, dataset: Dataset) -> Twin | None:
    try:
        return find_twin(spec, RunStore(run.path.parent.parent), dataset)
    except ValueError as error:
        raise LocatedError(("twin",), str(error)) from None


class _Training:
    """One sitting of a run."""

    def __init__(
        self,
        spec: RunSpec,
        run: Run,
        dataset: Dataset,
        state: TrainState,
        twin: Twin | None,
        snapshots: Checkpoints,
        files: RunFiles | None,
        tracker: Tracker,
        interrupted: Callable[[], bool],
        until: int | None,
    ) -> None:
        self.spec, self.run, self.dataset, self.state, self.twin = spec, run, dataset, state, twin
        self.snapshots, self.files, self.tracker = snapshots, files, tracker
        self.until, self.processes = until, state.watch.processes
        processes = self.processes
        # Whoever was asked to stop, all do, after the same step.
        self.interrupted = interrupted if processes.size == 1 else lambda: processes.any(interrupted())
        self.began = time.perf_counter() - state.seconds
        self.saved = max(snapshots.steps(), default=-1)
        self.interval = (0.0, 0)
        self.now = state.spec
        self.gradients = Gradients(self.now, dataset, state)
        self.doing = "compiling, then training" if spec.compile else "training"

    def carry_on(self) -> Outcome:
        """Steps, evaluations and checkpoints until the run completes, diverges or is interrupted."""
        state, spec = self.state, self.spec
        if state.step > self.saved and spec.branch is not None and self.saved < 0:
            self.save()  # from here on the run no longer needs the one that it branched from
        if spec.compile:
            seconds = round(compile_seconds(state.model, spec.compile))
            message = f"Compiling takes about {seconds} s before the first step, less where torch's cache has it."
            self.tracker.event(state.step, "notice", message, compiling=seconds)
        while True:
            state = self.state  # another one since the last step, where a phase has begun
            last = state.step >= spec.steps
            if (last or state.step % spec.evaluate_every == 0) and state.evaluated < state.step and not self.evaluate():
                return self.stop("interrupted", "stopped on request during evaluation")
            if last or (state.step > 0 and state.step % spec.checkpoint_every == 0):
                self.save()
            if last:
                return self.stop("completed", "")
            if self.interrupted() or (self.until is not None and state.step >= self.until):
                return self.stop("interrupted", "stopped on request")
            if reason := self.step():
                return self.stop("diverged", reason)

    def step(self) -> str | None:
        """One optimizer step. Returns why the run should end, if it should."""
        started, spec, number = time.perf_counter(), self.spec, self.state.step + 1
        if spec.phase_of(number) != spec.phase_of(self.state.step):
            self.enter_phase(number)
        state = self.state
        progress(self.doing, state.step, spec.steps)
        state.watch.begin(number)
        state.roster.begin(number)
        state.model.train()
        factor = spec.schedule.at(state.step, spec.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        loss = self.gradients.backward()
        named = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
        gradients = list(named.values())
        norm = gradient_norm(gradients)
        replay = Replay(state.model, named, self.gradients.replayed, self.processes)
        state.watch.look(loss, norm, named, replay)
        seen, acted, skipped = dict[str, Report](), NOT_INTERVENED, False
        if state.roster.members or not state.watch.defer():
            seen = state.watch.read()
            skipped = any(report.skip for report in seen.values())
            moment = Moment(state.watch.loss, state.watch.norm, named, self.gradients.replayed, skipped)
            acted = state.roster.gradients(moment)
        if not (skipped or acted.skip):
            norm = gradient_norm(gradients) if acted.clipped else norm
            if spec.clip_norm is not None:
                clip_gradients(state.model.parameters(), spec.clip_norm, norm)
            state.optimizer.step()
        state.optimizer.zero_grad()
        sums, maxima = state.watch.recorded()
        commit(state.model, self.processes, sums=sums, maxima=maxima)
        seen |= state.watch.finish()
        acted += state.roster.finish()
        acted += state.roster.alarmed([(kind, a.quantity) for kind, report in seen.items() for a in report.alarms])
        if acted.recast:
            self.gradients.recompile()

        state.step, self.doing = number, "training"
        self.interval = self.interval[0] + time.perf_counter() - started, self.interval[1] + self.gradients.tokens
        state.tokens += self.gradients.tokens
        self.log(state.watch.loss, state.watch.norm, spec.optimizer.lr * factor, seen, acted)
        if acted.enter is not None:
            self.enter(self.now.with_rules(acted.enter))
        return None if acted.carry_on else next((report.stop for report in seen.values() if report.stop), None)

    def enter_phase(self, number: int) -> None:
        """Go over to the phase that begins with step `number`."""
        phase = self.spec.phase_of(number)
        with self.spec.in_phase(phase) as now:
            self.enter(now)
        last = self.spec.precision.ends(self.spec.steps)[phase]
        message = f"phase {phase} of precision begins: steps {number} to {last}"
        # An event of the step that it begins with: a run taken back to the checkpoint before enters it again.
        self.tracker.event(number, "phase", message, phase=phase, until=last)

    def enter(self, now: RunSpec) -> None:
        """Go on by another spec from the next step on."""
        self.now, self.state = now, carry(self.state, now, self.dataset, twin=self.twin)
        self.gradients = Gradients(now, self.dataset, self.state)
        self.doing = "compiling, then training" if self.spec.compile else "training"

    def log(self, loss: float, norm: float, lr: float, seen: dict[str, Report], acted: Intervened) -> None:
        """Write down what the step gave: numbers at the logging cadence, monitors whenever they were due."""
        state, spec = self.state, self.spec
        values: dict[str, float] = {}
        if state.step % spec.log_every == 0 or state.step in (1, spec.steps):
            rate = self.interval[1] / self.interval[0]
            self.interval = (0.0, 0)
            values = {
                "train/loss": loss, "train/lr": lr, "train/gradient_norm": norm, "train/tokens": state.tokens,
                "time/tokens_per_second": rate, "time/wall_seconds": time.perf_counter() - self.began,
            }  # fmt: skip
            values |= self.beside(values)
        for kind, report in seen.items():
            values |= {f"{kind}/{key}": value for key, value in report.metrics.items()}
        values |= acted.metrics
        self.tracker.metrics(state.step, values)
        for kind, report in seen.items():
            for alarm in report.alarms:
                message = f"{alarm} The step was not applied." if report.skip else str(alarm)
                self.tracker.event(state.step, "alarm", message, monitor=kind, **alarm.fields())
            for notice in report.notices:
                self.tracker.event(state.step, "notice", notice, monitor=kind)
        for kind, action in acted.actions:
            event = "intervention" if action.done else "notice"
            self.tracker.event(state.step, event, action.message, intervention=kind, **action.details)

    def evaluate(self) -> bool:
        """Log the validation split's numbers; False if interrupted."""
        casts = self.spec.evaluate_with
        model = self.state.model if casts is None else evaluation_model(self.state, self.now, casts, self.dataset)
        with self.gradients.evaluation() if casts is None else nullcontext():
            found = evaluate(
                model, self.dataset, compute=self.spec.compute, limit=self.spec.evaluate_limit,
                interrupted=self.interrupted,
            )  # fmt: skip
        if found is None:
            return False
        self.state.evaluated = self.state.step
        values = {f"validation/{key}": value for key, value in found.items()}
        self.tracker.metrics(self.state.step, values | self.beside(values))
        self.saved = -1  # a checkpoint of this step, from a stop during the evaluation, would have it made again
        return True

    def beside(self, values: dict[str, float]) -> dict[str, float]:
        """How far these numbers are from the twin's."""
        return {} if self.twin is None else self.twin.differences(self.state.step, values)

    def save(self) -> None:
        """Have the first process write a checkpoint of the present step, unless there is one."""
        if self.saved == self.state.step:
            return
        if self.files is not None:
            progress("saving a checkpoint", self.state.step, self.spec.steps)
            self.files.sync()
            self.state.seconds, self.state.logged = time.perf_counter() - self.began, self.files.logged()
        checkpoint.save_together(self.state, self.snapshots, self.processes)
        self.saved = self.state.step
        self.tracker.event(self.state.step, "checkpoint", f"checkpoint saved (step {self.state.step})")

    def throughput(self) -> dict[str, float]:
        """Median tokens per second over the run, its first tenth left out: caches warm up there."""
        key = "time/tokens_per_second"
        rates = [row[key] for row in self.run.metrics([key])]
        return {"time/median_tokens_per_second": statistics.median(rates[len(rates) // 10 :])} if rates else {}

    def stop(self, status: Status, reason: str) -> Outcome:
        """Close the run. A diverged state is not saved: the last good checkpoint stays the newest."""
        state = self.state
        if status == "interrupted":
            self.save()
        if self.files is None:
            return Outcome(self.run, status, state.step, {}, reason)
        if status == "completed":
            self.tracker.metrics(state.step, self.throughput())
        self.tracker.event(state.step, "stopped", reason or f"completed {state.step} steps", status=status)
        self.files.sync()
        self.run.update_meta(status=status, step=state.step, reason=reason, logged=self.files.logged())
        keys = ("loss", *self.dataset.scores)
        found = self.run.last(*(f"validation/{key}" for key in keys))
        return Outcome(self.run, status, state.step, {k: v for k, v in found.items() if k != "step"}, reason)
