"""Files that are either the old one or the new one, and lines that are either whole or absent.

A process may be killed between any two system calls, and a machine may lose power. Two habits survive both:

* A file or folder that replaces something is written *aside*, flushed, `fsync`ed, renamed over its final name, and the
  parent folder is `fsync`ed so that the rename itself is on disk. `rename` is atomic on POSIX: a reader sees the old
  state or the new one.
* A log is only ever appended to, one `write` for one line, newline last. A line without its newline was torn by a
  death and is cut; everything before it is whole.

A bit may also flip after all was written well, and a digit with another bit is another number. So a row, and every
JSON file of a run, is *sealed*: its CRC-32 stands behind the JSON in 32 blanks, a space for 0 and a tab for 1. Every
reader of JSON passes over blanks, so the files stay what any tool takes; ours refuses what does not match. Text without
blanks at its end has no seal and is taken as it is: that is how a file changed by hand on purpose is said to be meant.
A key of its own was the road not taken: two runs that agree in all but `time/` keys would no longer agree in it.

JSON has no NaN and no infinity, and Python's spelling of them is refused by other readers, so a non-finite float is
written as the string "nan", "inf" or "-inf" and turned back into a float when read.

Roads not taken: SQLite (one file, but no `tail -f`, and its locking fails on several network file systems); one file
per step (millions of inodes on a cluster's quota).
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

ASIDE = ".aside"
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_BLOCK = 1 << 16
_BLANKS = str.maketrans("01", " \t")


class DamagedError(ValueError):
    """What a run had written is not as it was written (exit code 5)."""


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
    and thread, so two writers cannot mix their bytes; one left behind by a death ends in `.aside`, an error leaves
    none.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{ASIDE}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        fsync(path.parent)


def spell_nonfinite(value: object) -> Any:
    """`value` with every non-finite float, however deep, replaced by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: spell_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell_nonfinite(item) for item in value]
    return value


def read_nonfinite(value: Any) -> Any:
    """The inverse of `spell_nonfinite`. A text that happens to read "nan", "inf" or "-inf" becomes a float."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: read_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [read_nonfinite(item) for item in value]
    return value


def json_line(row: Mapping[str, object]) -> bytes:
    """One row as one sealed line of JSON; a float as the shortest digits that read back exactly."""
    return seal(json.dumps(spell_nonfinite(row), allow_nan=False, ensure_ascii=False).encode())


def seal(text: bytes) -> bytes:
    """JSON with its CRC-32 behind it in 32 blanks, and a newline. A flip of up to three bits in 11 KB never matches
    (the Hamming distance of CRC-32 there is 4); more is missed once in 2^32.
    """
    return text + _blanks(text) + b"\n"


def unseal(line: bytes) -> bytes | None:
    """The JSON of what `seal` made, or of what has no seal; None where text and seal do not match."""
    line = line.removesuffix(b"\n")
    text = line.rstrip(b" \t\r\v\f")
    return text if len(text) == len(line) or line[len(text) :] == _blanks(text) else None


def _blanks(text: bytes) -> bytes:
    return f"{crc32(text):032b}".translate(_BLANKS).encode()


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

    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Force what was appended to disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_jsonl(path: Path, on_torn: Callable[[str], None] | None = None, *, whole: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a log from first to last, non-finite values still as text (`read_nonfinite`); none without a file.

    A torn last line is left out and `on_torn` is told so in words. whole: so many bytes are known to have been whole
    lines once. DamagedError, with `file:line`, for a line among them that is not a row, for any other that is not the
    last, and for a file that is shorter.
    """
    if not path.exists() and not whole:
        return
    check_size(path, whole)
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = row_of(line)
            if row is not None:
                yield row
                place += len(line)
                continue
            # A line still without its newline may be in the middle of being written: what follows it says nothing.
            if place < whole or (line.endswith(b"\n") and file.read(1)):
                raise DamagedError(f"{path}:{number}: not a JSON object; the file was damaged after it was written.")
            if on_torn is not None:
                on_torn(f"{path}:{number}: the last line is torn ({len(line)} bytes) and was left out.")
            return


def check_size(path: Path, whole: int) -> None:
    """DamagedError if the log has fewer bytes than were once whole lines in it."""
    size = path.stat().st_size if path.exists() else 0
    if size < whole:
        raise DamagedError(f"{path} has {size} bytes of the {whole} that were written; its end is lost.")


def read_jsonl_backwards(path: Path, *, whole: int = 0) -> Iterator[dict[str, Any]]:
    """Rows from last to first, reading only as much of the file as is asked for; a torn last line is skipped.

    whole and DamagedError: see `read_jsonl`.
    """
    check_size(path, whole)
    seen = False
    for start, line in _lines_backwards(path):
        row = row_of(line)
        if row is not None:
            yield row
        elif seen or start < whole:
            raise DamagedError(f"{path}: byte {start}: not a JSON object; the file was damaged after it was written.")
        seen = True


def cut_torn(path: Path) -> int:
    """Truncate the file after its last whole line; returns how many bytes went (0: nothing torn, or no file)."""
    for start, line in _lines_backwards(path):
        if row_of(line) is None:
            os.truncate(path, start)
            return len(line)
        break
    return 0


def truncate_jsonl(path: Path, step: int) -> int:
    """Keep the rows whose `step` is at most `step`, atomically; returns the number of lines that went.

    What a resumed run calls: the rows after its checkpoint will be written again. Unreadable lines go too, unless a row
    to keep follows them: then the history itself is damaged and DamagedError says where.
    """
    if not path.exists():
        return 0
    kept, dropped, damaged = [], 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = row_of(line)
            row_step = row.get("step") if row is not None else None
            if isinstance(row_step, int) and row_step <= step:
                if damaged:
                    raise DamagedError(
                        f"{path}:{damaged}: not a row with a step, but rows up to step {step} follow it."
                    )
                kept.append(line)
                continue
            dropped += 1
            if not isinstance(row_step, int):
                damaged = damaged or number
    if dropped:
        write_atomic(path, b"".join(kept))
    return dropped


def row_of(line: bytes) -> dict[str, Any] | None:
    """The row in a whole line; None for one that is torn or does not match its seal."""
    return json_object(line) if line.endswith(b"\n") else None


def json_object(sealed: bytes) -> dict[str, Any] | None:
    """The object in sealed (or never sealed) JSON; None for anything else."""
    text = unseal(sealed)
    try:
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Tail:
    """The rows of a growing log: each call of `rows` gives the whole lines that are new since the last.

    After a resumed run has taken the log back, the lines that stayed are recognised by their checksums and not told
    twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._line = 0
        self._told = array("L")

    def rows(self) -> Iterator[dict[str, Any]]:
        """New rows, non-finite values as floats; a line without its newline waits, one that is no row is skipped."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._offset:
                self._file, self._offset, self._line = (stat.st_dev, stat.st_ino), 0, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                row = row_of(line) if self._is_news(line) else None
                if row is not None and isinstance(row.get("step"), int):
                    yield read_nonfinite(row)

    def age(self) -> float:
        """Seconds since the log last grew; 0 where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return max(0.0, time.time() - self._path.stat().st_mtime)
        return 0.0

    def _is_news(self, line: bytes) -> bool:
        checksum = crc32(line)
        number, self._line = self._line, self._line + 1
        if number < len(self._told) and self._told[number] == checksum:
            return False
        del self._told[number:]
        self._told.append(checksum)
        return True


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
