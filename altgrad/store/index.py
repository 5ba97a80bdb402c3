"""What a listing says of every run, remembered, so that ten thousand runs are listed in a second.

Reading a run means opening its meta.json and the end of its metrics.jsonl and adding up its files. They change
rarely, so what was found is kept in `<store>/.index.json` with the time (ns) and size of the two files and the time
of the folder of checkpoints; a listing then asks each run's folder for those alone and reads anew what differs. The
index holds nothing that the folders do not: an entry is used only while all three are what they were, and an index
that is missing, damaged or of another layout is built again. It is never asked whether a run is alive: that is the
lock's to say, each time.

A database was the road not taken: it would have to be told of every change by every process that makes one, while
folders are copied, moved and deleted with ordinary tools.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altgrad.progress import progress
from altgrad.store.files import json_object, read_nonfinite, seal, spell_nonfinite, write_atomic
from altgrad.store.lock import is_held
from altgrad.store.runs import CHECKPOINTS, META, METRICS, SPEC_HASH, Run, RunStore, recorded_scores

INDEX = ".index.json"
LAYOUT = 4
LOSS, TRAIN_LOSS = "validation/loss", "train/loss"
ENTRY = {"stamp", "status", "step", "main", "final", "meta", "size"}
KEPT = ("created", "steps", "seed", "parameters", "fingerprint", SPEC_HASH)
Stamp = list[int]


@dataclass(frozen=True)
class Summary:
    """One run in a listing. status `damaged`: its meta.json cannot be read; then nothing else is known."""

    run: Run
    status: str
    step: int | None
    main: str
    """The name of the score that validation is judged by."""
    final: dict[str, float]
    """The last validation loss and scores and the last training loss, by metric: those that the run has."""
    meta: dict[str, Any]
    """What KEPT names: those fields that the run has."""
    size: int
    """Bytes in its files."""

    @property
    def loss(self) -> float | None:
        """The last validation loss."""
        return self.final.get(LOSS)

    @property
    def score(self) -> float | None:
        """The last value of the main score."""
        return self.final.get(f"validation/{self.main}")


def summaries(store: RunStore, project: str | None = None) -> Iterator[Summary]:
    """Every run of the store (or project), sorted, those set aside left out; brings the index up to date at the end."""
    known = _load(store.root)
    entries: dict[str, Any] = {}
    changed = False
    for number, run in enumerate(store.runs(project)):
        progress("reading the store", number)
        key = f"{run.project}/{run.id}"
        stamp = _stamp(run)
        entry = known.get(key)
        if entry is None or entry["stamp"] != stamp:
            entry, changed = {"stamp": stamp, **_read(run)}, True
        entries[key] = entry
        yield _summary(run, entry)
    if project is not None:  # the other projects were not looked at
        entries = {**{key: entry for key, entry in known.items() if key.partition("/")[0] != project}, **entries}
    if changed or entries.keys() != known.keys():
        _save(store.root, entries)


def summary(run: Run) -> Summary:
    """One run, without the index."""
    return _summary(run, _read(run))


def _summary(run: Run, entry: dict[str, Any]) -> Summary:
    status = entry["status"]
    if status == "running" and not is_held(run.path):
        status = "dead"
    final = {key: read_nonfinite(value) for key, value in entry["final"].items()}
    return Summary(run, status, entry["step"], entry["main"], final, entry["meta"], entry["size"])


def _stamp(run: Run) -> Stamp:
    """Time and size of both files, and time of the checkpoints; zeros for what is not there."""
    found: Stamp = []
    folder = str(run.path)
    for name in (META, METRICS):
        try:
            stat = os.stat(f"{folder}/{name}")  # joining as paths would be a third of a listing's time
        except OSError:
            found += [0, 0]
        else:
            found += [stat.st_mtime_ns, stat.st_size]
    try:
        return [*found, os.stat(f"{folder}/{CHECKPOINTS}").st_mtime_ns]
    except OSError:
        return [*found, 0]


def _read(run: Run) -> dict[str, Any]:
    try:
        meta = run.meta()
        scores = recorded_scores(meta)
        last = run.last(LOSS, *(f"validation/{score}" for score in scores), TRAIN_LOSS)
    except (ValueError, OSError):
        return {"status": "damaged", "step": None, "main": "loss", "final": {}, "meta": {}, "size": run.size()}
    kept = {name: spell_nonfinite(meta[name]) for name in KEPT if name in meta}
    step, status = last.pop("step", None), str(meta.get("status"))
    final = {key: spell_nonfinite(last[key]) for key in sorted(last)}
    found = {"status": status, "step": step, "main": next(iter(scores), "loss"), "final": final, "meta": kept}
    return found | {"size": run.size()}


def _load(root: Path) -> dict[str, Any]:
    """The entries by `project/id`; none where the file is not what `_save` writes."""
    try:
        found = json_object((root / INDEX).read_bytes()) or {}
        entries = found["runs"] if found["layout"] == LAYOUT else {}
        whole = all(entry.keys() == ENTRY for entry in entries.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return dict(entries) if whole else {}


def _save(root: Path, entries: dict[str, Any]) -> None:
    """A store that may only be read is listed all the same."""
    with suppress(OSError):
        text = json.dumps({"layout": LAYOUT, "runs": entries}, separators=(",", ":"))
        write_atomic(root / INDEX, seal(text.encode()), durable=False)
