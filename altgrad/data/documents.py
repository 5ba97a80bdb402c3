"""Files of text as lists of documents, one list per split.

A document is one row of a .parquet file, one line of a .jsonl file, or the whole of a .txt file. A row that holds a
list of strings (paragraphs, sentences) is one document too, joined by newlines. A row's split comes
from the file's own `split` column. Without one it is decided by the document's hash,

    sha256(text) mod 10:  0..7 train   8 validation   9 test

so that equal texts stand in one split, and adding rows moves none. A .txt file has no rows; it is cut at the line ends
nearest after 80 % and 90 % of its bytes. Random splits from a seed were the road not taken: runs of different
seeds must be judged on the same validation text.

Everything wrong with a file is a ValueError of one line with the file, the row (counted from 1; a .jsonl row is a line)
and the column.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from altgrad.data.dataset import SPLITS
from altgrad.data.parquet_file import Row, parquet_rows

__all__ = [
    "SAMPLE", "Corpus", "FileCorpus", "Row", "checked_text", "content_hash", "hashed_split", "locate", "read_documents",
    "read_rows",
]  # fmt: skip

SAMPLE = "eulaw"
"""The name of the packaged sample; see sample/NOTICE for what it is and whose."""

MOST_DIGITS = 400
SUFFIXES = (".parquet", ".jsonl", ".txt")


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

    def documents(self) -> dict[str, list[str]]:
        """Split name to documents, as `read_documents` gives them. ValueError for what cannot be read."""


@dataclass(frozen=True)
class FileCorpus:
    """A file that `locate` found, hashed once."""

    path: Path
    column: str

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes when they were first asked for."""
        return content_hash(self.path)

    @property
    def decides(self) -> tuple[str, ...]:
        """The suffix is among them: the same bytes are other documents as .txt and as .jsonl."""
        return (self.sha256, self.path.suffix, self.column)

    def documents(self) -> dict[str, list[str]]:
        """ValueError also for a file that was rewritten since it was hashed: tokens are kept under that hash."""
        expected = self.sha256
        found = read_documents(self.path, self.column)
        if content_hash(self.path) != expected:
            raise ValueError(f"{self.path} changed while it was read; start again once it is complete.")
        return found


def locate(source: str, sample: str = "eulaw_lm.parquet", suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The file that `source` means: the packaged sample, or an existing, non-empty file of one of the suffixes."""
    if source == SAMPLE:
        return Path(__file__).parent / "sample" / sample
    path = Path(source).expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"{source} ends in none of {', '.join(suffixes)}, and is not {SAMPLE}, the packaged sample.")
    if not path.is_file():
        raise ValueError(f"{source} is not a file; give the path of one, or {SAMPLE} for the packaged sample.")
    if path.stat().st_size == 0:
        raise ValueError(f"{source} is empty (0 bytes); it needs at least one document.")
    return path


def content_hash(path: Path) -> str:
    """sha256 of the file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_documents(path: Path, column: str) -> dict[str, list[str]]:
    """Split name to the split's documents in file order; all three names are there, and a list may be empty.

    Empty texts are passed over. A text with the character NUL is refused: it never occurs in prose, and the byte
    tokenizer uses it to separate documents.
    """
    if path.suffix == ".txt":
        return _cut(path, checked_text(path, 1, column, _decoded(path, path.read_bytes())))
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row, (value,), split in read_rows(path, (column,)):
        text = checked_text(path, row, column, value)
        if text:
            found[hashed_split(text) if split is None else split].append(text)
    return found


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a .parquet or .jsonl file in order, cells as Python values. ValueError for a column or split that is
    not there."""
    reader = parquet_rows if path.suffix == ".parquet" else _jsonl_rows
    for row, values, split in reader(path, columns):
        if split is not None and split not in SPLITS:
            raise ValueError(f"{path}: row {row}: column 'split' holds {split!r}; it takes {', '.join(SPLITS)}.")
        yield row, values, split


def checked_text(name: Path | str, row: int, column: str, value: object) -> str:
    """The document that a cell holds. ValueError, with `name`, row and column, for a cell that holds none."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        shown = "nothing" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise ValueError(f"{name}: row {row}: column '{column}' holds {shown}; every row needs a string.")
    if "\0" in value:
        raise ValueError(f"{name}: row {row}: column '{column}' holds the character NUL; remove it from the text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: row {row}: column '{column}' is not valid Unicode ({error.reason}).") from None
    return value


def hashed_split(text: str) -> str:
    """The split that a text's own hash decides; see the head of this file."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def _decoded(path: Path, data: bytes, row: int = 1) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = row + data.count(b"\n", 0, error.start)
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}); convert the file.") from None


def _cut(path: Path, text: str) -> dict[str, list[str]]:
    data = text.encode()
    first = data.find(b"\n", len(data) * 8 // 10) + 1
    second = data.find(b"\n", len(data) * 9 // 10) + 1
    if not 0 < first < second < len(data):
        raise ValueError(f"{path} has too few lines to cut into {', '.join(SPLITS)}; give rows in .jsonl or .parquet.")
    parts = (data[:first], data[first:second], data[second:])
    return {split: [part.decode()] for split, part in zip(SPLITS, parts, strict=True)}


def _jsonl_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    has_split: bool | None = None
    # Lines end at "\n" only: JSON strings may hold the other characters that str.splitlines() cuts at.
    for row, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decoded(path, line, row), parse_int=_whole)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: row {row}: not JSON ({error.msg} at column {error.colno}).") from None
        except RecursionError:
            raise ValueError(f"{path}: row {row}: nested deeper than any row of text; correct it.") from None
        except _TooManyDigitsError as error:
            raise ValueError(f"{path}: row {row}: {error}") from None
        missing = [column for column in columns if not isinstance(record, dict) or column not in record]
        if missing:
            keys = ", ".join(record) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
            raise ValueError(f"{path}: row {row}: no column '{missing[0]}'; the row has {keys or 'nothing'}.")
        has_split = "split" in record if has_split is None else has_split
        if has_split != ("split" in record):
            raise ValueError(
                f"{path}: row {row}: column 'split' must be in every row or in none; the first row differs."
            )
        yield row, tuple(record[column] for column in columns), (record["split"] or "") if has_split else None


class _TooManyDigitsError(ValueError):
    """Of a number that Python will not read, lest it take for ever."""


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _TooManyDigitsError(f"a number of {len(digits)} digits; at most {MOST_DIGITS} are read.")
    return int(digits)
