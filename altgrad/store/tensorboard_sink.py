"""Kind `tensorboard`: a run as an event file in <run>/tensorboard, for `tensorboard --logdir runs`.

Needs the package tensorboard (`pip install "altgrad[tensorboard]"`), which is used without TensorFlow. A run told from
its beginning replaces the folder; a resumed one adds a file, whose first record tells TensorBoard to forget the steps
that are written again. Events and the spec appear as text.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from altgrad.store.histogram import Histogram, split
from altgrad.store.mirror import Mirror, MirrorSpec
from altgrad.store.runs import Run

FOLDER = "tensorboard"


class TensorboardSpec(MirrorSpec):
    """TensorBoard: scalars, histograms, alarms as text, in the run's own folder."""

    kind: ClassVar[str] = "tensorboard"
    histograms: Annotated[int, Field(ge=1)] = 1
    """Histograms are written at every step that is a multiple of this."""

    def open(self, run: Run, resumed_at: int | None) -> Mirror:
        return Tensorboard(self, run, resumed_at)


class Tensorboard(Mirror):
    """One event file of one sitting."""

    def __init__(self, spec: TensorboardSpec, run: Run, resumed_at: int | None) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ValueError('the package tensorboard is not installed; pip install "altgrad[tensorboard]".') from None
        self._events: Any = event_pb2
        self._summary: Any = summary_pb2
        self._tensor: Any = tensor_pb2
        self._every = spec.histograms
        folder = run.path / FOLDER
        if resumed_at is None:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self.where = str(folder)
        self._writer: Any = EventFileWriter(str(folder))
        if resumed_at is None:
            self._write(0, [self._text("spec", "```\n" + run.spec_text() + "\n```")])
        else:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(event_pb2.Event(step=resumed_at + 1, session_log=start))

    def metrics(self, row: int, step: int, values: Mapping[str, float]) -> None:
        plain, histograms = split(values)
        made = [self._summary.Summary.Value(tag=key, simple_value=value) for key, value in plain.items()]
        if step % self._every == 0:
            made += [
                self._summary.Summary.Value(tag=key, histo=self._histogram(found))
                for key, found in histograms.items()
                if all(map(math.isfinite, found.heights))
            ]
        self._write(step, made)

    def event(self, step: int, event: str, message: str) -> None:
        """Checkpoints are left out."""
        if event != "checkpoint":
            self._write(step, [self._text(f"events/{event}", message)])

    def close(self, status: str) -> None:
        self._writer.flush()
        self._writer.close()
        if not any(path.stat().st_size for path in Path(self.where).iterdir()):
            raise OSError(f"nothing could be written to {self.where}")

    def _write(self, step: int, made: list[Any]) -> None:
        if made:
            self._writer.add_event(self._events.Event(step=step, summary=self._summary.Summary(value=made)))

    def _text(self, tag: str, text: str) -> Any:
        about = self._summary.SummaryMetadata(plugin_data=self._summary.SummaryMetadata.PluginData(plugin_name="text"))
        tensor = self._tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        return self._summary.Summary.Value(tag=tag, metadata=about, tensor=tensor)

    def _histogram(self, found: Histogram) -> Any:
        """TensorBoard's own form: the upper edge of each bucket, and how much lies in it."""
        middles = [(low + high) / 2 for low, high in zip(found.edges, found.edges[1:], strict=False)]
        weighted = list(zip(middles, found.heights, strict=True))
        return self._summary.HistogramProto(
            min=found.edges[0], max=found.edges[-1], num=sum(found.heights),
            sum=sum(x * height for x, height in weighted), sum_squares=sum(x * x * height for x, height in weighted),
            bucket_limit=found.edges[1:], bucket=found.heights,
        )  # fmt: skip
