"""A run as a Python object: `altgrad.train`, `altgrad.load_run`, and what they give.

    run = altgrad.train("spec.yaml", steps=30)         a path, a dict or a RunSpec
    run.metrics["train/loss"]                          a DataFrame
    run = run.resume(steps=60)

A run's folder is the only memory: a TrainedRun holds its path and reads what it is asked for, so two of them on one
run, and a run that goes on meanwhile, agree. Nothing prints here but progress, and nothing ends the program.
"""

import html
import json
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError
from torch import nn

from altgrad.document import Document
from altgrad.progress import heard_by
from altgrad.spec import MachineError
from altgrad.spec.annotations import plain
from altgrad.store import Run, RunStore
from altgrad.store.frames import metrics_frame, sites_frame
from altgrad.store.whole_folder import appearing_whole, require_vacant
from altgrad.training.evaluate import Evaluation, evaluate_run
from altgrad.training.prepare import Prepared, Source, prepare
from altgrad.training.progress import TrainingProgress
from altgrad.training.restore import restore, spec_of
from altgrad.training.run import RunSpec

if TYPE_CHECKING:
    import pandas

__all__ = ["TrainedRun", "load_run", "train"]

CHANGEABLE = ("steps", "checkpoint_every", "keep", "track")
"""What `resume` may change: nothing that has decided a number of the steps so far."""


def train(
    source: Source,
    *,
    runs: str | Path = "runs",
    resume: Literal["auto", "never"] = "auto",
    device: str = "auto",
    progress: bool = True,
    exact: bool = False,
    shard: bool = False,
    until: int | None = None,
    set: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> "TrainedRun":
    """Train a run from its spec: the path of a YAML or JSON file, a dict or a RunSpec. As `altgrad train` on a shell.

    The same call continues a run that was stopped, and gives back one that is completed; `resume="never"` archives the
    existing run and starts over. until: stop there, with everything saved, as an interrupted run. exact: fail rather
    than fall back. shard: under torchrun, each process keeps a part of the model. overrides: fields of the spec,
    `steps=30`, `optimizer__lr=1e-3`; or by path, `set={"optimizer.lr": 1e-3}`. A run that diverges is a result, and is
    returned like any other.

    Raises SpecError (a ValueError, with file, line and column) for a spec that cannot be used, MachineError for what
    this machine cannot do, LockedError where another process trains the run. Ctrl-C saves the run, then raises
    KeyboardInterrupt; a second one stops at once. Notices are warnings of Python's.
    """
    changes = assignments({**(set or {}), **{name.replace("__", "."): value for name, value in overrides.items()}})
    with _shown(progress) as bar:
        prepared = prepare(source, changes, device=device, exact=exact, shard=shard, notify=_warn)
        return _trained(prepared, Path(runs), resume, until, bar)


def load_run(name: str | Path, runs: str | Path = "runs") -> "TrainedRun":
    """A run of a store, by id, the unique beginning of one, `project/id`, or path. ValueError if there is none."""
    return TrainedRun(RunStore(Path(runs)).find(str(name)))


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run in a store, however far it is."""

    run: Run

    @property
    def id(self) -> str:
        """The run's name: `<name>-<hash of the spec>-s<seed>`."""
        return self.run.id

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.run.path

    @property
    def status(self) -> str:
        """`completed`, `diverged`, `interrupted`, `failed`, `running`, or `dead` where its process was killed."""
        return self.run.status

    @property
    def reason(self) -> str:
        """Why it ended so; empty for a run that completed or runs."""
        return str(self.run.meta().get("reason", ""))

    @property
    def step(self) -> int:
        """Finished optimizer steps, as far as they were logged."""
        return int(self.run.last().get("step", 0))

    @property
    def spec(self) -> RunSpec:
        """The resolved spec that it was made with."""
        return spec_of(self.run)

    @property
    def metrics(self) -> "pandas.DataFrame":
        """Its numbers: one row a step, a column for `step` and for each metric."""
        return metrics_frame(self.run)

    def sites(self, monitor: str = "range") -> "pandas.DataFrame":
        """A monitor's numbers, tidy: columns step, site, quantity and value."""
        return sites_frame(self.run, monitor)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What happened, in order: step, event, time, message, and each kind's own details."""
        return list(self.run.events())

    def model(self, step: int | None = None, device: str = "cpu") -> nn.Module:
        """The quantised model at its newest checkpoint or that of `step`, in evaluation mode.

        ValueError where there is none, and where the data changed since.
        """
        restored = restore(self.run, self.run.newest_checkpoint() if step is None else step, device)
        restored.state.watch.close()
        return restored.model.eval()

    def evaluate(self, split: Literal["validation", "test"] = "test", device: str = "cpu") -> Evaluation:
        """The newest checkpoint on a split; what is tuned (a classifier's threshold) is tuned on validation."""
        return evaluate_run(self.run, split, device)

    def export(self, folder: str | Path) -> int:
        """Write the newest checkpoint of a run of kind `hf` or `llama` to a new folder, for Hugging Face's libraries.

        The folder appears when it is complete. Returns the checkpoint's step. ValueError for models that have no such
        form and for a folder in use; MachineError and OSError for a disk.
        """
        out = Path(folder)
        require_vacant(out)
        restored = restore(self.run, self.run.newest_checkpoint())
        try:
            with appearing_whole(out) as aside:
                restored.spec.model.export(restored.model, aside, getattr(restored.dataset, "classes", None))
        except SafetensorError as error:  # what its writer makes of a full disk
            raise MachineError(f"{out} cannot be written: {error}.") from None
        return restored.step

    def resume(
        self, *, until: int | None = None, device: str = "auto", progress: bool = True, **changes: Any
    ) -> "TrainedRun":
        """Go on with a run that was stopped; with `steps=60`, go on with one of fewer steps, also a completed one.

        A run of more steps is another run, with a folder and an id of its own, and it is the one that `train` with so
        many steps would give, to the bit. So it begins as a copy of this one only where the schedule gives both the
        same learning rates so far, as `schedule: constant` does. Cosine and wsd are spread over all steps: then it is
        trained from the beginning, with a warning. (To stop a run on its way and go on: `train(..., until=30)`.)

        Raises ValueError for changes of anything else than steps, checkpoint_every, keep and track, and as `train`.
        """
        if other := [name for name in changes if name not in CHANGEABLE]:
            raise ValueError(
                f"resume cannot change {', '.join(other)}, which decides what the steps so far were, only "
                f"{', '.join(CHANGEABLE)}; train a new run instead: altgrad.train(run.spec, {other[0]}=...)."
            )
        with _shown(progress) as bar:
            document = Document.parse(self.run.spec_text(), str(self.path / "spec.yaml"))
            prepared = prepare(document, assignments(changes), device=device, exact=True, notify=_warn)
            runs, new = self.path.parent.parent, prepared.run(self.path.parent.parent)
            if new.path.resolve() != self.path.resolve():
                if not changes:
                    raise ValueError(f"{self.path} is not where its spec belongs, {new.path}; move it there first.")
                self._begin(new, prepared)
            return _trained(prepared, runs, "auto", until, bar)

    def _begin(self, new: Run, prepared: Prepared) -> None:
        """Make the run of other steps, from this one's checkpoint where that is the same so far."""
        newest, old, now = self.run.checkpoints.newest(), self.spec, prepared.spec
        if new.exists or newest is None:
            return
        if now.steps < newest.step:
            raise ValueError(f"{self.id} has {newest.step} steps already; {now.steps} are fewer, train a new run.")
        shares = ["phases"] * old.precision.by_share + [each.kind for each in old.interventions if each.by_share]
        if shares:
            raise ValueError(
                f"{self.id} has {shares[0]} by a percentage, which is at other steps in a run of {now.steps}; give "
                "them in steps, or train a new run."
            )
        if any(old.schedule.at(s, old.steps) != now.schedule.at(s, now.steps) for s in range(newest.step)):
            _warn(
                f"schedule {now.schedule.kind} spreads over all steps: the first {newest.step} of {now.steps} have "
                f"other learning rates than those of {self.id}, so {new.id} is trained from the beginning."
            )
            return
        prepared.ensure(new, self.run)

    def __repr__(self) -> str:
        return f"<TrainedRun {self.run.project}/{self.id}: {', '.join(map(' '.join, self._facts()))}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self._facts())
        return f"<b>{html.escape(f'{self.run.project}/{self.id}')}</b><table>{rows}</table>"

    def _facts(self) -> Sequence[tuple[str, str]]:
        meta = self.run.meta()
        keys = ["train/loss", *(f"validation/{key}" for key in ("loss", *meta.get("scores", ())))]
        numbers = self.run.last(*keys)
        reason = f" ({self.reason})" if self.reason else ""
        facts = [("status", f"{self.status}{reason}"), ("step", f"{self.step} of {meta.get('steps', '?')}")]
        return [*facts, *((key, f"{numbers[key]:.4g}") for key in keys if key in numbers)]


def assignments(changes: Mapping[str, Any]) -> list[str]:
    """Values by dotted path as `--set` writes them."""
    return [f"{path}={json.dumps(plain(value))}" for path, value in changes.items()]


@contextmanager
def _shown(wanted: bool) -> Iterator[TrainingProgress | None]:
    """In the block it is shown how far the work is."""
    if not wanted:
        yield None
        return
    bar = TrainingProgress()
    try:
        with heard_by(bar.hear):
            yield bar
    finally:
        bar.close()


def _trained(
    prepared: Prepared, runs: Path, resume: str, until: int | None, bar: TrainingProgress | None
) -> TrainedRun:
    def sinks(run: Run) -> list[TrainingProgress]:
        if bar is None:
            return []
        bar.begin(run.id, prepared.spec.steps)
        return [bar]

    with stop_politely(signal.SIGINT) as request:
        outcome = prepared.train(
            runs, resume, sinks=sinks, interrupted=lambda: request.signal is not None, until=until
        )  # fmt: skip
    if request.signal is not None:
        raise KeyboardInterrupt
    return TrainedRun(outcome.run)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=4)


@dataclass
class StopRequest:
    """The signal that asked the run to stop, if one did."""

    signal: int | None = None


@contextmanager
def stop_politely(*signals: signal.Signals) -> Iterator[StopRequest]:
    """In the block these signals ask a run to save and end between two steps; a second Ctrl-C ends it at once.

    Outside the main thread, which alone may take signals, none is heard.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    heard = signals if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
