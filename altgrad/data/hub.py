"""Data sets in the form of the Hugging Face Hub, by id or as a folder, through the library `datasets`.

    source: {hub: coastalcph/lex_glue, config: eurlex, revision: <commit>}
    source: {hub: ./lex_glue, config: eurlex}              # the same files, copied here

An id is looked up at the Hub (HF_ENDPOINT, if set); a folder begins with `.`, `/` or `~`, so that what an id means
never depends on where a command is started. The column holds strings or lists of strings. Splits are the Hub's own
`train`, `validation` and `test`, and others are passed over; a data set of one split is cut by hash as a file is.

Without network `datasets` tries for 25 s and more before it gives up. So the Hub is asked first, in at most a second,
and where it does not answer (or HF_HUB_OFFLINE is set) only what an earlier run downloaded is used: the latest, or the
commit that `revision` names. Tokens for private data come from the library's own login or HF_TOKEN, never from a spec.
Nothing that is downloaded is run: scripts and pickles are refused, whatever any version of `datasets` would do. A
folder's parquet files are unpacked within the limit that a single file has; those of the Hub are the library's alone.

Content is identified by the documents, not by the library's fingerprints: those name a folder's files by path and time
of change, and miss a file that was replaced without a new time. For the same reason a folder's prepared copy is not
kept; the Hub's is, by commit.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainValidator

from altgrad.data.bad_rows import BadRows, hashed_split
from altgrad.data.dataset import SPLITS
from altgrad.data.documents import SAMPLE
from altgrad.data.hub_id import Hub, downloaded, how_to_copy, reachable
from altgrad.data.parquet_file import check_parquet

__all__ = ["Hub", "HubCorpus", "SourceSetting", "hub_rows", "hub_splits", "read_hub"]

_READ = ("parquet", "arrow", "json", "csv", "text")
_PREPARED = "cache"  # what the library calls the reader of its own copies


def _to_source(value: Any) -> str | Hub:
    if isinstance(value, str | Hub) and value != "":
        return value
    if isinstance(value, dict):
        return Hub.model_validate(value)
    raise ValueError(f"{value!r:.80} is not a source; write {SAMPLE}, the path of a file, or {{hub: owner/name}}.")


SourceSetting = Annotated[str | Hub, PlainValidator(_to_source)]
"""A field that holds the sample's name, a file's path, or a `Hub`. Whether it is there is asked when it is used."""


@dataclass(frozen=True)
class HubCorpus:
    """The documents of a `Hub` source, read whole; see `altgrad.data.documents.Corpus`."""

    name: str
    size: int
    sha256: str
    """Over the documents of every split, each with its length before it."""
    found: dict[str, list[str]]
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    @property
    def decides(self) -> tuple[str, ...]:
        """The documents alone; whence they came does not matter."""
        return ("documents", self.sha256)

    def documents(self) -> dict[str, list[str]]:
        """As read."""
        return self.found


def read_hub(source: Hub, column: str, bad: BadRows | None = None) -> HubCorpus:
    """Download, or find, and read the text in `column`. bad: what to do with rows without text; None refuses them.

    ValueError, in one line, if the source is not there (within two seconds where there is no network), is of a form
    that could run code, or lacks the config, the column, or the splits.
    """
    bad = BadRows() if bad is None else bad
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    with hub_splits(source) as splits:
        for name, rows in splits.items():
            for row, (value,) in hub_rows(source, name, rows, (column,)):
                if text := bad.text(f"{source.name}, {name}", row, column, value):
                    found[hashed_split(text) if len(splits) == 1 else name].append(text)
    bad.require_some(any(found.values()))
    digest, size = hashlib.sha256(), 0
    for split, texts in found.items():
        digest.update(f"{split} {len(texts)}\n".encode())
        for text in texts:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
            size += len(data)
    return HubCorpus(source.name, size, digest.hexdigest(), found, bad.skipped)


@contextmanager
def hub_splits(source: Hub) -> Iterator[dict[str, Any]]:
    """The splits as objects of the library, train, validation and test in this order, or the only one there is.

    They can be read inside the block. ValueError as `read_hub` says.
    """
    with ExitStack() as stack:
        splits = _load(source, stack)
        if len(splits) > 1 and not set(SPLITS[:2]) <= set(splits):
            raise ValueError(
                f"{source.name} has the splits {', '.join(splits)}; it takes train and validation, or one split alone."
            )
        names = list(splits) if len(splits) == 1 else [split for split in SPLITS if split in splits]
        yield {str(name): splits[name] for name in names}


def hub_rows(source: Hub, split: str, rows: Any, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Every row of a split: its number from 1 and the cells of the columns. ValueError for a column it lacks."""
    for column in columns:
        if column not in rows.column_names:
            raise ValueError(f"{source.name} has no column '{column}'; it has {', '.join(rows.column_names)}.")
    row = 0
    try:
        for chunk in rows.select_columns(list(columns)).iter(batch_size=1000):
            for values in zip(*(chunk[column] for column in columns), strict=True):
                row += 1
                yield row, values
    except UnicodeDecodeError as error:
        raise ValueError(f"{source.name}, {split}: after row {row}: not UTF-8 ({error.reason}).") from None


def _load(source: Hub, stack: ExitStack) -> Any:
    """A `datasets.DatasetDict`; `stack` keeps what it needs until it has been read."""
    cache = None
    if source.folder is not None:
        if not source.folder.is_dir():
            raise ValueError(f"{source.hub} is not a folder; give one laid out as on the Hub, or an id as owner/name.")
        cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="altgrad-", ignore_cleanup_errors=True))
    elif Path(source.hub).exists():
        raise ValueError(
            f"{source.hub} is a path here as well as an id; write ./{source.hub} for the path, or move it."
        )
    offline = source.folder is None and not reachable()
    if offline and not downloaded(source.hub):
        raise ValueError(how_to_copy(source))
    import datasets

    if offline:
        stack.enter_context(_offline())

    try:
        path = str(source.folder or source.hub)
        builder = datasets.load_dataset_builder(path, source.config, revision=source.revision, cache_dir=cache)
        if builder.name not in (*_READ, _PREPARED):
            raise ValueError(f"it comes as {builder.name}; AltGrad reads {', '.join(_READ)}")
        if offline and source.revision not in (None, Path(builder.cache_dir).name):
            raise ValueError("the library would take the copy of another revision")
        if source.folder is not None:
            for found in (builder.config.data_files or {}).values():
                for file in map(str, found):
                    if file.endswith(".parquet"):
                        check_parquet(Path(file))
        builder.download_and_prepare()
        return builder.as_dataset()
    # The library raises what it likes: its own errors, those of Arrow, of HTTP clients, and bare ones.
    except Exception as error:
        if offline:
            raise ValueError(how_to_copy(source)) from None
        reason = " ".join(str(error.__cause__ or error).split())[:240]
        raise ValueError(f"{source.name} cannot be loaded: {reason or type(error).__name__}") from None


@contextmanager
def _offline() -> Iterator[None]:
    """`datasets` takes its prepared copies at once, and does not try the network first."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
