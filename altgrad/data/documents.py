"""Files of text as lists of documents, one list per split.

A document is one row of a .parquet file, one line of a .jsonl file, or the whole of a .txt file; a folder of such files
is read in the order of their names (`altgrad.data.source_file`). A row that holds a list of strings (paragraphs,
sentences) is one document too, joined by newlines. A row's split comes from the file's own `split` column. Without
one, or where it is null in every row, it is decided by the document's hash,

    sha256(text) mod 10:  0..7 train   8 validation   9 test

so that equal texts stand in one split, and adding rows moves none. A .txt file has no rows; it is cut at the line ends
nearest after 80 % and 90 % of its bytes, and where a line is too long for that (cleaned corpora have one) at the next
space, or else between two characters. The splits together are the file. Random splits from a seed were the road not
taken: runs of different seeds must be judged on the same validation text.

Everything wrong with a file is a ValueError of one line with the file, the row (counted from 1; a .jsonl row is a line)
and the column. With `bad_rows: skip` a row that holds no text is left out and counted instead; a file that is damaged
(no JSON, no UTF-8) is an error whatever was asked.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from altgrad.data.bad_rows import BadRows, checked_text, hashed_split
from altgrad.data.dataset import SPLITS
from altgrad.data.parquet_file import Row, parquet_rows
from altgrad.data.source_file import content_hash, kind_of, locate_source, shards, unpacked

__all__ = [
    "SAMPLE", "SUFFIXES", "Corpus", "FileCorpus", "Row", "checked_text", "content_hash", "hashed_split", "locate",
    "read_documents", "read_prompts", "read_rows",
]  # fmt: skip

SAMPLE = "eulaw"
"""The name of the packaged sample; see sample/NOTICE for what it is and whose."""

MOST_DIGITS = 400
SUFFIXES = (".parquet", ".jsonl", ".txt")
_LINE_END, _SPACE = re.compile(rb"\n"), re.compile(rb"[ \t\r\x0b\x0c]+")


class Corpus(Protocol):
    """Documents and what decides them; the token cache asks for the documents only where it has no tokens of them."""

    @property
    def name(self) -> str:
        """What error messages and records call it."""

    @property
    def size(self) -> int:
        """About how many bytes there are to read."""

    @property
    def sha256(self) -> str:
        """Hex digest of the content."""

    @property
    def decides(self) -> tuple[str, ...]:
        """Everything that `documents` is a function of: equal tuples, equal documents."""

    @property
    def skipped(self) -> dict[str, int]:
        """Rows that `documents` left out, by reason; empty before it was called."""

    def documents(self) -> dict[str, list[str]]:
        """Split name to documents, as `read_documents` gives them. ValueError for what cannot be read."""


@dataclass(frozen=True)
class FileCorpus:
    """A file, or a folder of files, that `locate` found, hashed once. bad_rows: skip leaves rows without text out."""

    path: Path
    column: str
    bad_rows: str = "error"
    skipped: dict[str, int] = field(default_factory=dict, compare=False)
    """Rows left out by `documents`, by reason."""

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Of the file, or the files."""
        return sum(file.stat().st_size for file in shards(self.path, SUFFIXES))

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes when they were first asked for."""
        return content_hash(self.path)

    @property
    def decides(self) -> tuple[str, ...]:
        """The suffix is among them: the same bytes are other documents as .txt and as .jsonl."""
        return (self.sha256, "".join(kind_of(self.path)), self.column, *(["skip"] if self.bad_rows == "skip" else []))

    def documents(self) -> dict[str, list[str]]:
        """ValueError also for a file that was rewritten since it was hashed: tokens are kept under that hash."""
        expected, bad = self.sha256, BadRows(self.bad_rows == "skip")
        found = read_documents(self.path, self.column, bad)
        if content_hash(self.path) != expected:
            raise ValueError(f"{self.path} changed while it was read; start again once it is complete.")
        self.skipped.update(bad.skipped)
        return found


def locate(source: str, sample: str = "eulaw_lm.parquet", suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """What `source` means: the packaged sample, an existing, non-empty file of one of the suffixes, or a folder."""
    if source == SAMPLE:
        return Path(__file__).parent / "sample" / sample
    return locate_source(source, suffixes, f"{SAMPLE}, the packaged sample")


def read_documents(path: Path, column: str, bad: BadRows | None = None) -> dict[str, list[str]]:
    """Split name to the split's documents in file order; all three names are there, and a list may be empty.

    Empty texts are passed over. A text with the character NUL is refused: it never occurs in prose, and the byte
    tokenizer uses it to separate documents. bad: what to do with rows that hold no text; None refuses them.
    """
    bad = BadRows() if bad is None else bad
    files = shards(path, SUFFIXES)
    if kind_of(files[0])[0] == ".txt":
        return _cut(path, [checked_text(file, 1, column, _decoded(file, unpacked(file))) for file in files])
    rows: list[tuple[str, int, str, str | None]] = []
    for file in files:
        for row, (value,), split in read_rows(file, (column,), lacking=bad.skip):
            if text := bad.text(file, row, column, value):
                rows.append((str(file), row, text, split))
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    splits = bad.splits([(name, row, split) for name, row, _, split in rows])
    for (_, _, text, _), split in zip(rows, splits, strict=True):
        if split is not None:
            found[split or hashed_split(text)].append(text)
    bad.require_some(any(found.values()))
    return found


def read_prompts(path: Path, column: str) -> list[str]:
    """Each line with text of a .txt file, or each row of another, whatever its split.

    ValueError as for `read_documents`, and for a file without any.
    """
    files = shards(path, SUFFIXES)
    if kind_of(files[0])[0] != ".txt":
        return [text for texts in read_documents(path, column).values() for text in texts]
    lines = [(file, *each) for file in files for each in enumerate(_decoded(file, unpacked(file)).split("\n"), 1)]
    found = [checked_text(file, row, column, line.rstrip("\r")) for file, row, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{path} has no line with text; write one prompt a line.")
    return found


def read_rows(path: Path, columns: tuple[str, ...], *, lacking: bool = False) -> Iterator[Row]:
    """The rows of a .parquet or .jsonl file in order, cells as Python values; the split is None where a row names none.

    ValueError for a column or split that is not there. lacking: a .jsonl row without a column has None in it.
    """
    rows = parquet_rows(path, columns) if kind_of(path)[0] == ".parquet" else _jsonl_rows(path, columns, lacking)
    for row, values, split in rows:
        if split is not None and split not in SPLITS:
            raise ValueError(f"{path}: row {row}: column 'split' holds {split!r:.40}; it takes {', '.join(SPLITS)}.")
        yield row, values, split


def _decoded(path: Path, data: bytes, row: int = 1, start: int = 0) -> str:
    """The text of bytes that begin at `start` of the file, in its line `row`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(error.object)  # the codec counts from behind the byte order mark
        line, wide = row + data.count(b"\n", 0, at), (b"\xff\xfe", b"\xfe\xff")
        guess = "; it looks like UTF-16" if start == 0 and data[:2] in wide else ""
        raise ValueError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[at]:02x} at offset {start + at}: {error.reason}{guess}); "
            "convert the file."
        ) from None


def _cut(path: Path, texts: list[str]) -> dict[str, list[str]]:
    """The documents of .txt files in splits: cut as if they were one text, so at most two of them are divided."""
    parts = [text.encode() for text in texts]
    whole = b"".join(parts)
    cuts = _cuts(whole)
    if cuts is None:
        raise ValueError(f"{path} has too few characters to cut into {', '.join(SPLITS)}; give more text.")
    found: dict[str, list[str]] = {}
    for split, low, high in zip(SPLITS, (0, *cuts), (*cuts, len(whole)), strict=True):
        start, found[split] = 0, []
        for part in parts:
            if piece := part[max(low - start, 0) : max(high - start, 0)]:
                found[split].append(piece.decode())
            start += len(part)
    return found


def _cuts(data: bytes) -> tuple[int, int] | None:
    """Where validation and test begin; None if there is no room for three splits."""
    marks = len(data) * 8 // 10, len(data) * 9 // 10
    first, second = (data.find(b"\n", mark) + 1 for mark in marks)
    if not 0 < first < second < len(data):
        first = _near(data, marks[0], 0, marks[1])
        second = _near(data, marks[1], first, len(data))
    return (first, second) if 0 < first < second < len(data) else None


def _near(data: bytes, mark: int, after: int, limit: int) -> int:
    """Behind the first line end from `mark` on and before `limit`; else the first spaces; else between characters."""
    for pattern in (_LINE_END, _SPACE):
        for match in pattern.finditer(data, mark, limit):
            if after < match.end() < len(data):
                return match.end()
    place = max(mark, after + 1)
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place += 1
    return place


def _jsonl_rows(path: Path, columns: tuple[str, ...], lacking: bool) -> Iterator[Row]:
    has_split: bool | None = None
    start = 0
    # Lines end at "\n" only: JSON strings may hold the other characters that str.splitlines() cuts at.
    for row, line in enumerate(unpacked(path).split(b"\n"), start=1):
        text = _decoded(path, line, row, start)
        start += len(line) + 1
        if not text.strip():
            continue
        record = _record(path, row, text)
        keys = record if isinstance(record, dict) else {}
        missing = [column for column in columns if column not in keys]
        if missing and not (lacking and isinstance(record, dict)):
            shown = ", ".join(record) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
            raise ValueError(f"{path}: row {row}: no column '{missing[0]}'; the row has {shown or 'nothing'}.")
        has_split = "split" in keys if has_split is None else has_split
        if has_split != ("split" in keys) and not lacking:
            raise ValueError(
                f"{path}: row {row}: column 'split' must be in every row or in none; the first row differs."
            )
        split = keys.get("split")
        yield row, tuple(keys.get(column) for column in columns), None if split != split else split


def _record(path: Path, row: int, text: str) -> object:
    try:
        record: object = json.loads(text, parse_int=_whole)
        return record
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: row {row}: not JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise ValueError(f"{path}: row {row}: nested deeper than any row of text; correct it.") from None
    except _TooManyDigitsError as error:
        raise ValueError(f"{path}: row {row}: {error}") from None


class _TooManyDigitsError(ValueError):
    """Of a number that Python will not read, lest it take for ever."""


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _TooManyDigitsError(f"a number of {len(digits)} digits; at most {MOST_DIGITS} are read.")
    return int(digits)
