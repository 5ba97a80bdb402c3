"""Checkpoints as folders of which every byte is accounted for.

    checkpoints/step-00000100/{model.safetensors, state.json, ..., manifest.json}

The manifest holds the size and sha256 of every file and, over all of that, a sha256 of its own; it must also be byte
for byte the text we would write, so that no flipped bit anywhere goes unseen. A snapshot is written aside and renamed
as one folder; one that is removed is first renamed away. So a folder called `step-...` is complete or was damaged from
outside, and what does not verify is passed over for the one before it.

The store knows nothing of tensors: a snapshot's files are names and functions that write to a path.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altgrad.store.files import fsync, sha256

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-([0-9]{8,})")
_WRITING, _REPLACED, _REMOVING = ".writing-", ".replaced-", ".removing-"


class CheckpointError(RuntimeError):
    """There are checkpoints, but not one of them verifies (exit code 5)."""


@dataclass(frozen=True)
class Rejected:
    """A snapshot that was passed over, and why, in words."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """A verified snapshot: after `step` optimizer steps. `rejected` are the newer ones that did not verify."""

    step: int
    path: Path
    rejected: tuple[Rejected, ...] = ()

    def file(self, name: str) -> Path:
        """Path of one of its files; ValueError if the snapshot has no such file."""
        if not (self.path / name).is_file():
            raise ValueError(f"{self.path.name} has no file {name!r}; it has {', '.join(_names(self.path))}.")
        return self.path / name


@dataclass(frozen=True)
class Checkpoints:
    """The snapshots in one folder, of which the newest `keep` (at least 1) are kept.

    Reading needs no lock and changes nothing. `write` is for the one process that holds the run's lock.
    """

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; at least 1 checkpoint must be kept.")

    def steps(self) -> list[int]:
        """Steps of which a snapshot is present, ascending, whether or not it verifies."""
        return sorted(self._present())

    def newest(self) -> Checkpoint | None:
        """The newest of which every byte verifies; None where there are none; CheckpointError if none verifies."""
        rejected: list[Rejected] = []
        for step, path in sorted(self._present().items(), reverse=True):
            reason = mismatch(path, step)
            if reason is None:
                return Checkpoint(step, path, tuple(rejected))
            rejected.append(Rejected(path, reason))
        if rejected:
            reasons = "; ".join(f"{each.path.name}: {each.reason}" for each in rejected)
            raise CheckpointError(f"no checkpoint in {self.folder} can be used ({reasons}).")
        return None

    def write(self, step: int, files: Mapping[str, Callable[[Path], None]]) -> Checkpoint:
        """Write a snapshot of `step`: each function writes the one file at the path it is given.

        A snapshot of the same step is replaced. Then older ones beyond `keep` are removed, and newer ones: they belong
        to a future from which the run was taken back. Whatever point of this a process dies at, the newest valid
        snapshot is the previous one or this one. On an error of a function nothing is kept of the attempt.
        """
        assert step >= 0
        self.folder.mkdir(
            exist_ok=True
        )  # no parents: a run whose folder was taken away is not begun again in its place
        self._finish_what_a_death_left()
        final = self.folder / f"step-{step:08d}"
        aside = self.folder / f"{_WRITING}{final.name}"
        try:
            _fill(aside, step, files)
            self._publish(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        # The snapshot just written was read back for its hashes: it is valid, so whichever others go, one valid stays.
        older = sorted((other for other in self._present() if other < step), reverse=True)
        newer = [other for other in self._present() if other > step]
        for other in (*older[self.keep - 1 :], *newer):
            self._remove(self.folder / f"step-{other:08d}")
        return Checkpoint(step, final)

    def prune(self) -> list[int]:
        """Remove every snapshot but the newest that verifies; the steps of those that went.

        CheckpointError, and nothing is removed, where none verifies.
        """
        newest = self.newest()
        if newest is None:
            return []
        self._finish_what_a_death_left()
        gone = [step for step in self.steps() if step != newest.step]
        for step in gone:
            self._remove(self.folder / f"step-{step:08d}")
        return gone

    def _present(self) -> dict[int, Path]:
        """Path by step. A snapshot that was about to be replaced when the process died stands in for its successor."""
        found: dict[int, Path] = {}
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):  # "." sorts before "s": a final name overrules the one aside
                match = _STEP.fullmatch(path.name.removeprefix(_REPLACED))
                if match:
                    found[int(match[1])] = path
        return found

    def _publish(self, aside: Path, final: Path) -> None:
        if final.exists():
            replaced = self.folder / f"{_REPLACED}{final.name}"
            final.rename(replaced)
            aside.rename(final)
            fsync(self.folder)
            self._remove(replaced)
        else:
            aside.rename(final)
            fsync(self.folder)

    def _remove(self, path: Path) -> None:
        """Remove a folder, out of sight first, so that half a snapshot never carries a snapshot's name."""
        doomed = self.folder / f"{_REMOVING}{path.name.lstrip('.')}"
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _finish_what_a_death_left(self) -> None:
        for path in list(self.folder.iterdir()):
            if path.name.startswith((_WRITING, _REMOVING)):
                shutil.rmtree(path)
            elif path.name.startswith(_REPLACED):
                final = self.folder / path.name.removeprefix(_REPLACED)
                if final.exists():
                    self._remove(path)
                else:
                    path.rename(final)


def mismatch(path: Path, step: int) -> str | None:
    """Why the snapshot folder `path` is not what was written as `step`; None if every byte is."""
    try:
        raw = (path / MANIFEST).read_bytes()
        try:
            manifest = json.loads(raw)
        except (ValueError, RecursionError):
            return f"{MANIFEST} is not JSON"
        if not isinstance(manifest, dict) or raw != _sealed(manifest):
            return f"{MANIFEST} does not match its own checksum"
        if manifest["step"] != step:
            return f"{MANIFEST} is of step {manifest['step']}"
        return _files_mismatch(path, manifest["files"])
    except OSError as error:
        return f"cannot be read ({error.strerror or error}: {Path(str(error.filename)).name})"


def _files_mismatch(path: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    names = _names(path)
    if missing := sorted(set(files) - set(names)):
        return f"{missing[0]} is missing"
    if extra := sorted(set(names) - set(files)):
        return f"{extra[0]} is not in {MANIFEST}"
    for name, expected in files.items():
        found = (path / name).lstat()
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is not a plain file"
        if found.st_size != expected["size"]:
            return f"{name} has {found.st_size} bytes instead of {expected['size']}"
        if sha256(path / name) != expected["sha256"]:
            return f"{name} does not match its checksum"
    return None


def _fill(aside: Path, step: int, files: Mapping[str, Callable[[Path], None]]) -> None:
    aside.mkdir()
    entries = {}
    for name, write in files.items():
        if name == MANIFEST or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r} cannot be the name of a checkpoint file: letters, digits, . _ - only.")
        write(aside / name)
        fsync(aside / name)
        entries[name] = {"size": (aside / name).stat().st_size, "sha256": sha256(aside / name)}
    assert _names(aside) == sorted(entries), "a function wrote another file than the one it was given"
    (aside / MANIFEST).write_bytes(_sealed({"step": step, "files": entries}))
    fsync(aside / MANIFEST)
    fsync(aside)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's only valid text: sorted keys, and the digest of everything else under "sha256"."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, sort_keys=True, indent=1).encode() + b"\n"


def _names(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name != MANIFEST)
