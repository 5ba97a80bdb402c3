"""Files that are either the old one or the new one, and lines that are either whole or absent.

A process may be killed between any two system calls, and a machine may lose power. Two habits survive both:

* A file or folder that replaces something is written *aside*, flushed, `fsync`ed, renamed over its final name, and the
  parent folder is `fsync`ed so that the rename itself is on disk. `rename` is atomic on POSIX: a reader sees the old
  state or the new one.
* A log is only ever appended to, one `write` for one line, newline last. A line without its newline was torn by a
  death and is cut; everything before it is whole.

JSON has no NaN and no infinity, and Python's spelling of them is refused by other readers, so a non-finite float is
written as the string "nan", "inf" or "-inf" and turned back into a float when read.

Roads not taken: SQLite (one file, but no `tail -f`, and its locking fails on several network file systems); one file
per step (millions of inodes on a cluster's quota).
"""

import errno
import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ASIDE = ".aside"
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_BLOCK = 1 << 16


def utc_now() -> str:
    """The present in UTC, ISO 8601 to the millisecond with a final `Z`: `2026-03-01T12:00:00.000Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_since(stamp: str) -> float:
    """Seconds from a `utc_now` stamp to the present; 0 where the writer's clock is ahead of ours."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes, read in blocks (a checkpoint need not fit in memory twice)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to disk. Where folders cannot be opened (Windows) a no-op."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `data` in one step: readers see the old bytes or the new, never a mixture or nothing.

    `durable=False` skips the two fsyncs, for what only the living need (a heartbeat). The name aside carries process
    and thread, so two writers cannot mix their bytes; one left behind by a death ends in `.aside`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{ASIDE}")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    aside.replace(path)
    if durable:
        fsync(path.parent)


def encode(value: object) -> Any:
    """`value` with every non-finite float, however deep, replaced by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """The inverse of `encode`. A text that happens to read "nan", "inf" or "-inf" becomes a float."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def json_line(row: Mapping[str, object]) -> bytes:
    """One row as one line of JSON with its newline; a float as the shortest digits that read back exactly."""
    return json.dumps(encode(row), allow_nan=False, ensure_ascii=False).encode() + b"\n"


class Appender:
    """A log open for appending: one `write` for one line, so that a reader beside us sees whole lines only.

    Opening cuts a torn last line (`cut`: the number of bytes that went), which a new line would otherwise be glued to.
    One process at a time may hold one; that is what the run's lock is for.
    """

    def __init__(self, path: Path) -> None:
        self.cut = cut_torn(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row; OSError when the disk is full, with the file left as it was."""
        data = json_line(row)
        written = os.write(self._descriptor, data)
        if written < len(data):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written; free some space")

    def sync(self) -> None:
        """Force what was appended to disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_jsonl(path: Path, on_torn: Callable[[str], None] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a log from first to last, non-finite values still as text (`decode` them); none where there is no file.

    A torn last line is left out and `on_torn` is told so in words. A line in the middle that is not a JSON object means
    the file was damaged by something else: ValueError with `file:line`.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _row(line)
            if row is not None:
                yield row
                continue
            # A line still without its newline may be in the middle of being written: what follows it says nothing.
            if line.endswith(b"\n") and file.read(1):
                raise ValueError(f"{path}:{number}: not a JSON object; the file was damaged after it was written.")
            if on_torn is not None:
                on_torn(f"{path}:{number}: the last line is torn ({len(line)} bytes) and was left out.")
            return


def read_jsonl_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Rows from last to first, reading only as much of the file as is asked for; damaged lines are skipped."""
    for _, line in _lines_backwards(path):
        row = _row(line)
        if row is not None:
            yield row


def cut_torn(path: Path) -> int:
    """Truncate the file after its last whole line; returns how many bytes went (0: nothing torn, or no file)."""
    for start, line in _lines_backwards(path):
        if _row(line) is None:
            os.truncate(path, start)
            return len(line)
        break
    return 0


def truncate_jsonl(path: Path, step: int) -> int:
    """Keep the rows whose `step` is at most `step`, atomically; returns the number of lines that went.

    What a resumed run calls: the rows after its checkpoint will be written again. Unreadable lines go too, unless a row
    to keep follows them: then the history itself is damaged and ValueError says where.
    """
    if not path.exists():
        return 0
    kept, dropped, damaged = [], 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _row(line)
            row_step = row.get("step") if row is not None else None
            if isinstance(row_step, int) and row_step <= step:
                if damaged:
                    raise ValueError(f"{path}:{damaged}: not a row with a step, but rows up to step {step} follow it.")
                kept.append(line)
                continue
            dropped += 1
            if not isinstance(row_step, int):
                damaged = damaged or number
    if dropped:
        write_atomic(path, b"".join(kept))
    return dropped


def _row(line: bytes) -> dict[str, Any] | None:
    """The row in a whole line, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _lines_backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its newline) from the end of the file to its start."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0:
            size = min(max(_BLOCK, len(tail)), start)  # doubling: one long damaged line stays linear
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            # The first line may have begun in an earlier block: keep it until that block is read.
            tail, *lines = io.BytesIO(tail).readlines()
            offset = start + len(tail) + sum(map(len, lines))
            for line in reversed(lines):
                offset -= len(line)
                yield offset, line
        if tail:
            yield 0, tail
