"""Kind `wandb`: a run at Weights & Biases, online or in a folder for `wandb sync`.

The run's id there is its id here, and W&B's own step is the number of the row in metrics.jsonl: W&B says how many rows
it has under that id, and those are not sent again. Equal ids are equal specs, and a resumed or repeated run writes the
same lines again, so what is left out is what W&B has. (To overwrite was the road not taken: the client appends after
the rows that the server counts, whatever one asks for.) The x axis of every chart is the run's `step`, and the bins of
histograms become W&B histograms.

The key comes from WANDB_API_KEY or the netrc file, where W&B's client looks for it, and goes nowhere else. Of the
machine nothing is sent: no host name, arguments, git remote, package list, console or system load.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from altgrad.document import Document
from altgrad.store.histogram import split
from altgrad.store.mirror import OPEN_SECONDS, Mirror, MirrorSpec
from altgrad.store.runs import SPEC, Run

Name = Annotated[str, Field(min_length=1, max_length=128)]
INIT_SECONDS = OPEN_SECONDS - 3
"""What the client may take, so that its own word on what is wrong comes before we lose patience."""


class WandbSpec(MirrorSpec):
    """Weights & Biases: metrics, histograms, the spec as config, how the run ended as summary."""

    kind: ClassVar[str] = "wandb"
    mode: Literal["online", "offline"] = "online"
    """offline writes <run>/wandb for `wandb sync`. WANDB_MODE in the environment decides over it."""
    entity: Name | None = None
    """The team or user; null: the client's default."""
    project: Name | None = None
    """null: the run's own project."""
    group: Name | None = None
    """The group that the run is shown in."""
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=50)] = ()
    """Tags of the run."""
    histograms: Annotated[int, Field(ge=1)] = 1
    """Histograms are sent at every step that is a multiple of this."""

    def open(self, run: Run, resumed_at: int | None) -> Mirror:
        return Wandb(self, run, resumed_at)


class Wandb(Mirror):
    """One run of W&B's client."""

    def __init__(self, spec: WandbSpec, run: Run, resumed_at: int | None) -> None:
        import wandb

        self._wandb: Any = wandb
        self._every = spec.histograms
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS, silent=True, console="off", save_code=False, disable_git=True,
            disable_job_creation=True, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
            x_save_requirements=False,
        )  # fmt: skip
        self._run: Any = wandb.init(
            id=run.id, name=run.id, entity=spec.entity, project=spec.project or run.project, group=spec.group,
            tags=spec.tags, mode=_mode(spec), resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(run.path), config=config(run), settings=settings,
        )  # fmt: skip
        self._store, self._first = run, int(self._run.starting_step)
        self._run.define_metric("*", step_metric="step")
        self.where = str(self._run.url or self._run.dir or "")

    def metrics(self, row: int, step: int, values: Mapping[str, float]) -> None:
        if row < self._first:
            return
        plain, histograms = split(values)
        sent: dict[str, Any] = {"step": step, **plain}
        if step % self._every == 0:
            for key, found in histograms.items():
                if all(map(math.isfinite, found.heights)):
                    sent[key] = self._wandb.Histogram(np_histogram=(list(found.heights), list(found.edges)))
        self._run.log(sent, step=row, commit=True)

    def event(self, step: int, event: str, message: str) -> None:
        """The last alarm's and the last warning's words go into the summary, as do counts at the end."""
        if event in ("alarm", "warning"):
            self._run.summary[f"events/last_{event}"] = f"step {step}: {message}"[:500]

    def close(self, status: str) -> None:
        counts = Counter(str(event["event"]) for event in self._store.events())
        self._run.summary.update({f"events/{event}": count for event, count in counts.items()})
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "completed" else 1)


def config(run: Run) -> dict[str, Any]:
    """The resolved spec with what is known of the run beside it; never what decides where it is tracked."""
    spec = dict(Document.parse(run.spec_text(), SPEC).data)
    spec.pop("track", None)
    known = (
        "created", "altgrad", "torch", "python", "device", "parameters", "quantised_parameters", "fingerprint", "data",
    )  # fmt: skip
    meta = run.meta()
    return spec | {"run": {key: meta[key] for key in known if key in meta}}


def _mode(spec: WandbSpec) -> Any:
    asked = os.environ.get("WANDB_MODE", "")
    return asked if asked in ("online", "offline", "disabled") else spec.mode
