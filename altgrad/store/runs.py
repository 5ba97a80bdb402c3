"""The store: one folder per run, and nothing else, is what processes know of one another.

    <root>/<project>/<run id>/
        spec.yaml        the resolved spec, which alone decides the run
        meta.json        status, when it was created, what the runner adds
        metrics.jsonl    numbers by step       events.jsonl    what happened
        checkpoints/     snapshots             lock, lock.json who is running it now

A run id says what is in it: `<slug>-<8 hex of the spec's fingerprint>-s<seed>`, so the same spec and seed is the same
run, and starting it twice continues it. Nothing here imports torch: a listing answers at once.

Status is `running`, `completed`, `diverged`, `failed` or `interrupted`, as the runner wrote it; a run that calls itself
running while no process holds its lock is `dead`.

What a run's validation split is judged by beside its loss, as its meta.json says.
"""

import difflib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from altgrad.store.checkpoints import Checkpoint, Checkpoints
from altgrad.store.files import (
    DamagedError,
    fsync,
    json_object,
    read_jsonl,
    read_jsonl_backwards,
    read_nonfinite,
    seal,
    spell_nonfinite,
    utc_now,
    write_atomic,
)
from altgrad.store.lock import Holder, LockedError, exclusive, hold, holder, is_held

SPEC, META, METRICS, EVENTS, CHECKPOINTS = "spec.yaml", "meta.json", "metrics.jsonl", "events.jsonl", "checkpoints"
SPEC_HASH, LOGGED = "spec_sha256", "logged"
STATUSES = ("running", "completed", "diverged", "failed", "interrupted")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_SET_ASIDE = re.compile(r".+\.old-[0-9]+")
_NEW, _DELETED = ".new-", ".deleted-"
_ABANDONED_SECONDS = 3600.0


def check_name(name: str, what: str) -> str:
    """`name` itself if it can name a project or run; else ValueError. No name that passes leads out of its folder."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name[:120]!r} cannot name a {what}; use 1 to 100 letters, digits, '.', '_' or '-', no '.' first."
        )
    return name


def run_id(slug: str, fingerprint: str, seed: int) -> str:
    """`<slug>-<first 8 hex digits of fingerprint>-s<seed>`; fingerprint is the hex digest of the resolved spec."""
    assert re.fullmatch(r"[0-9a-f]{8,}", fingerprint), "a fingerprint is a hex digest"
    return check_name(f"{slug}-{fingerprint[:8]}-s{seed}", "run")


@dataclass(frozen=True)
class Run:
    """One run's folder. Making this object touches no file; `create` makes the folder."""

    path: Path

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def project(self) -> str:
        """The parent folder's name."""
        return self.path.parent.name

    @property
    def exists(self) -> bool:
        """Whether the run was created."""
        return (self.path / META).is_file()

    def create(self, spec_text: str, meta: Mapping[str, Any], beginning: "Run | None" = None) -> "Run":
        """Make the folder with spec.yaml and meta.json, all at once; FileExistsError if there is one.

        `meta` is completed by status (running), created (UTC), project and id where it lacks them, and by the sha256
        of spec.yaml, which `spec_text` checks. beginning: a run whose logs and checkpoints are this one's, too, so far;
        LockedError if it is held.
        """
        parent = self.path.parent
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        aside = parent / f"{_NEW}{self.id}-{os.urandom(4).hex()}"
        aside.mkdir()
        defaults = {"status": "running", "created": utc_now(), "project": self.project, "id": self.id}
        write_atomic(aside / SPEC, spec_text.encode())
        write_atomic(aside / META, _meta_text(defaults | dict(meta) | {SPEC_HASH: _sha256(spec_text.encode())}))
        try:
            if beginning is not None:
                beginning.copy_progress(aside)
            aside.rename(self.path)
        except (OSError, LockedError):
            shutil.rmtree(aside, ignore_errors=True)
            if self.path.exists():
                raise FileExistsError(f"run {self.id} is already at {self.path}; resume it or set it aside.") from None
            raise
        fsync(parent)
        fsync(parent.parent)
        return self

    def copy_progress(self, folder: Path) -> None:
        """Copy the logs and checkpoints into a folder. LockedError if the run is held."""
        with exclusive(self.path):
            for name in (METRICS, EVENTS):
                if (self.path / name).exists():
                    shutil.copy2(self.path / name, folder)
            if self.checkpoints.folder.exists():
                shutil.copytree(self.checkpoints.folder, folder / CHECKPOINTS)

    def spec_text(self, meta: Mapping[str, Any] | None = None) -> str:
        """The resolved spec as it was stored; DamagedError if it is not. meta: what `meta` gave, where it was asked."""
        data = self._bytes(SPEC)
        found = _sha256(data)
        if (self.meta() if meta is None else meta).get(SPEC_HASH, found) != found:
            raise DamagedError(
                f"{self.path / SPEC} is not the spec that was stored; it was changed after the run began."
            )
        return data.decode()

    def meta(self) -> dict[str, Any]:
        """meta.json, non-finite numbers as floats; DamagedError if it is damaged, ValueError if there is none."""
        meta = json_object(self._bytes(META))
        if meta is None:
            raise DamagedError(f"{self.path / META} is not a JSON object; the run was damaged after it was written.")
        return {key: read_nonfinite(value) for key, value in meta.items()}

    def update_meta(self, **fields: Any) -> None:
        """Set fields of meta.json atomically; for the process that holds the run (two at once would lose one's)."""
        if fields.get("status", "running") not in STATUSES:
            raise ValueError(f"{fields['status']!r} is not a status; use one of {', '.join(STATUSES)}.")
        write_atomic(self.path / META, _meta_text(self.meta() | fields))

    @property
    def status(self) -> str:
        """One of STATUSES, or `dead`: running by its own word, but held by no process."""
        return self.status_by(self.meta())

    def status_by(self, meta: Mapping[str, Any]) -> str:
        """`status`, given what `meta` gave."""
        status = str(meta.get("status"))
        return "dead" if status == "running" and not is_held(self.path) else status

    @property
    def holder(self) -> Holder | None:
        """The process that holds the run now, where it said who it is; None if nobody does."""
        return holder(self.path) if is_held(self.path) else None

    def logged(self, name: str) -> int:
        """How many bytes of one of its logs were whole lines when the run last stopped; 0 while it runs."""
        sizes = self.meta().get(LOGGED)
        size = sizes.get(name) if isinstance(sizes, dict) else None
        return size if isinstance(size, int) else 0

    def check_logs(self, sizes: Mapping[str, int]) -> None:
        """DamagedError unless the first so many bytes of each log are whole rows; reads that much."""
        for name, size in sizes.items():
            for _ in read_jsonl(self.path / name, whole=size):
                pass

    def metrics(self, keys: Iterable[str] | None = None) -> Iterator[dict[str, float]]:
        """Rows in the order written: `step` (int) and the values. A torn last line is left out; DamagedError else.

        `keys` are names or shell patterns (`range/*/amax`): rows are then reduced to `step` and those keys, and rows
        without any are left out.
        """
        wanted = None if keys is None else tuple(keys)
        matches: dict[str, bool] = {"step": True}
        for row in read_jsonl(self.path / METRICS, whole=self.logged(METRICS)):
            if wanted is not None:
                for key in row:
                    if key not in matches:
                        matches[key] = any(fnmatchcase(key, pattern) for pattern in wanted)
                row = {key: value for key, value in row.items() if matches[key]}
                if len(row) < 2:
                    continue
            yield {key: read_nonfinite(value) for key, value in row.items()}

    def last(self, *keys: str) -> dict[str, float]:
        """The last value of each key, and the last `step`; keys never written are absent. Reads from the end."""
        found: dict[str, float] = {}
        wanted = {"step", *keys}
        for row in read_jsonl_backwards(self.path / METRICS, whole=self.logged(METRICS)):
            for key in wanted & row.keys():
                found[key] = read_nonfinite(row[key])
            wanted -= row.keys()
            if not wanted:
                break
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """Events in the order written: step, event, time, message and each kind's own details."""
        text = ("event", "time", "message")
        for row in read_jsonl(self.path / EVENTS, whole=self.logged(EVENTS)):
            yield {key: value if key in text else read_nonfinite(value) for key, value in row.items()}

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, keeping 2; `Checkpoints(run.checkpoints.folder, keep)` for another number."""
        return Checkpoints(self.path / CHECKPOINTS)

    def newest_checkpoint(self) -> Checkpoint:
        """The newest that verifies. ValueError for a run without one, CheckpointError where none verifies."""
        if (newest := self.checkpoints.newest()) is None:
            raise ValueError(f"{self.path} is a run without a checkpoint; let it reach one first.")
        return newest

    @contextmanager
    def lock(self) -> Iterator[Holder]:
        """Hold the run for the length of a block; LockedError within half a second if another process does."""
        with hold(self.path) as record:
            yield record

    def set_aside(self) -> "Run":
        """Rename the folder to `<id>.old-<n>`, with the first free n; nothing is removed. LockedError if it is held."""
        with exclusive(self.path):
            number = 1
            while (target := self.path.with_name(f"{self.id}.old-{number}")).exists():
                number += 1
            self.path.rename(target)
            fsync(target.parent)
        return Run(target)

    @property
    def is_set_aside(self) -> bool:
        """Whether another run took its name: `train --resume never` archived it."""
        return _SET_ASIDE.fullmatch(self.id) is not None

    def size(self) -> int:
        """Bytes in its files. Those that go away meanwhile count for nothing."""
        return sum(map(_size, _files(self.path)))

    def prune(self) -> int:
        """Remove all checkpoints but the newest that verifies; how many bytes that freed. LockedError if it is held."""
        with exclusive(self.path):
            before = self.size()
            self.checkpoints.prune()
            return before - self.size()

    def prunable(self) -> int:
        """Bytes of all checkpoints but the last: about what `prune` would free."""
        folders = (self.checkpoints.folder / f"step-{step:08d}" for step in self.checkpoints.steps()[:-1])
        return sum(_size(path) for folder in folders for path in _files(folder))

    def delete(self) -> None:
        """Remove the run and everything in it, out of sight first. LockedError if it is held."""
        with exclusive(self.path):
            doomed = self.path.with_name(f"{_DELETED}{self.id}-{os.urandom(4).hex()}")
            self.path.rename(doomed)
        _sweep(doomed.parent)

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{self.path} is not a run: it has no {name}.") from None


@dataclass(frozen=True)
class RunStore:
    """All runs below one folder, which need not exist yet."""

    root: Path

    def run(self, project: str, name: str) -> Run:
        """The run of that project and id, existing or not; ValueError for a name that cannot be one."""
        return Run(self.root / check_name(project, "project") / check_name(name, "run"))

    def runs(self, project: str | None = None, *, set_aside: bool = False) -> Iterator[Run]:
        """Runs sorted by project and id, folders that we may not enter among them; those set aside only on request."""
        projects = [self.root / check_name(project, "project")] if project is not None else _folders(self.root)
        for folder in projects:
            for path in _folders(folder):
                there = os.path.isfile(f"{path}/{META}") or not os.access(path, os.X_OK)
                if there and (set_aside or not _SET_ASIDE.fullmatch(path.name)):
                    yield Run(path)

    def matching(self, pattern: str) -> list[Run]:
        """The runs whose id or `project/id` matches a shell pattern; those set aside only where it says `.old-`.

        ValueError if there is none.
        """
        runs = self.runs(set_aside=".old-" in pattern)
        chosen = [run for run in runs if fnmatchcase(f"{run.project}/{run.id}" if "/" in pattern else run.id, pattern)]
        if not chosen:
            raise ValueError(f"No run in {self.root} matches {pattern!r}. `altgrad runs list` shows them.")
        return chosen

    def find(self, text: str) -> Run:
        """The run meant by an id, `project/id`, a path, or the unique beginning of an id (all in this order).

        ValueError if there is none (naming close ones) or several.
        """
        runs = list(self.runs(set_aside=True))
        exact = [run for run in runs if text in (run.id, f"{run.project}/{run.id}")]
        if len(exact) == 1:
            return exact[0]
        with suppress(ValueError, OSError):  # a NUL or an over-long name is no path
            if text and Run(Path(text)).exists:
                return Run(Path(os.path.abspath(text)))
        begun = exact or [run for run in runs if text and run.id.startswith(text)]
        if len(begun) > 1:
            begun = [run for run in begun if not _SET_ASIDE.fullmatch(run.id)] or begun
        if len(begun) == 1:
            return begun[0]
        if begun:
            names = ", ".join(f"{run.project}/{run.id}" for run in begun[:5])
            raise ValueError(f"{text!r} is ambiguous: it matches {len(begun)} runs, {names}.")
        close = difflib.get_close_matches(text, [run.id for run in runs], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{text!r} is not a run in {self.root}.{hint or ' `altgrad runs list` shows them.'}")


def _meta_text(meta: Mapping[str, Any]) -> bytes:
    return seal(json.dumps(spell_nonfinite(meta), allow_nan=False, indent=1).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _files(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder; as texts, since paths would be most of a listing's time."""
    for place, _, names in os.walk(folder):
        yield from (f"{place}/{name}" for name in names)


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return [folder / name for name in names]


def _sweep(folder: Path) -> None:
    """Remove what deaths left: deleted runs half removed, and runs that an hour ago were not yet whole."""
    for path in folder.glob(f"{_DELETED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_NEW}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


TEXT_SCORES = ("bits_per_byte", "perplexity")


def recorded_scores(meta: Mapping[str, Any]) -> list[str]:
    """Names of scores, the main one first; runs of earlier versions, all of text, said nothing."""
    found = meta.get("scores")
    return [str(name) for name in found] if isinstance(found, list) else list(TEXT_SCORES)
