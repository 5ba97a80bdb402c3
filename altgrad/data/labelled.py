"""Rows of text with lists of labels, from a file or from a data set in the Hub's form.

A row is a text (a string, or a list of strings, which are joined by newlines) and a list of labels: strings or
integers, one type throughout, in any order, possibly empty. Splits are decided as for documents
(`altgrad.data.documents`). The classes, in the order of a model's outputs, are

    what the spec lists                          classes: [urgent, billing], or classes: 100 for the ids 0 .. 99
    else the names that a Hub data set declares  (its feature ClassLabel; rows then hold their numbers)
    else every label of the training split       sorted

so that nothing of the validation or test split decides the shape of a model. A row with a label that is no class, or
without text or labels, cannot be used as it stands: it is an error that names file, row and column, or, where the spec
says `bad_rows: skip`, left out and counted (`altgrad.data.bad_rows`). Labels of the wrong type are always an error.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from altgrad.data.bad_rows import BadRows, hashed_split
from altgrad.data.dataset import SPLITS
from altgrad.data.documents import content_hash, locate, read_rows
from altgrad.data.hub import Hub, hub_rows, hub_splits
from altgrad.data.source_file import shards

__all__ = ["Classes", "Labelled", "read_labelled"]

LABELLED_SAMPLE = "eulaw_provisions.parquet"
SUFFIXES = (".parquet", ".jsonl")
SHOWN = 60

Label = str | int
Classes = tuple[Label, ...] | int | None
"""What a spec may say of the classes; see the head of this file."""

_Cells = tuple[str, int, str | None, object, object]  # name of the source, row, split, text, labels


@dataclass(frozen=True)
class Labelled:
    """Usable rows by split: `texts`, and for each the numbers of its classes in `labels`, sorted.

    `classes` are the labels as text; `skipped` counts what `bad_rows: skip` left out, by reason; `sha256` is over
    texts, labels and classes.
    """

    texts: dict[str, list[str]]
    labels: dict[str, list[tuple[int, ...]]]
    classes: tuple[str, ...]
    sha256: str
    skipped: dict[str, int]


@dataclass
class _Reader:
    """Collects checked rows; `where` remembers each row's place for what is only known at the end."""

    columns: tuple[str, str]
    bad: BadRows
    rows: list[tuple[str | None, str, list[Label]]] = field(default_factory=list)
    where: list[tuple[str, int]] = field(default_factory=list)
    sort: type | None = None

    def take(self, rows: Iterable[_Cells]) -> None:
        text_column, label_column = self.columns
        for name, row, split, text_cell, label_cell in rows:
            text = self.bad.text(name, row, text_column, text_cell)
            labels = self._labels(name, row, label_column, label_cell)
            if text is None or labels is None:
                continue
            if not text.strip():
                self.bad.leave_out(
                    "empty_text",
                    f"{name}: row {row}: column '{text_column}' holds no text; remove the row or set bad_rows: skip.",
                )
                continue
            self.rows.append((split, text, labels))
            self.where.append((name, row))

    def _labels(self, name: str, row: int, column: str, cell: object) -> list[Label] | None:
        """None for a row that is left out."""
        if cell is None:
            problem = "holds nothing; every row needs a list of labels, or set bad_rows: skip."
            self.bad.leave_out("no_labels", f"{name}: row {row}: column '{column}' {problem}")
            return None
        if not isinstance(cell, list | tuple):
            shown = f"{cell!r:.40} ({type(cell).__name__})"
            raise ValueError(f"{name}: row {row}: column '{column}' holds {shown}; every row needs a list of labels.")
        for label in cell:
            # bool is an int to Python, and True would silently be class 1.
            if type(label) not in (str, int):
                shown = f"{label!r:.40} ({type(label).__name__})"
                raise ValueError(f"{name}: row {row}: column '{column}' holds {shown}; labels are text or integers.")
            if self.sort is None:
                self.sort = type(label)
            elif type(label) is not self.sort:
                raise ValueError(
                    f"{name}: row {row}: column '{column}' holds {label!r:.40} ({type(label).__name__}) where earlier "
                    f"labels are {self.sort.__name__}; use one type throughout."
                )
        return list(cell)

    def finish(self, classes: tuple[Label, ...] | None) -> Labelled:
        """Numbers for labels. classes: None means those of the training split."""
        named = [(*where, split) for where, (split, _, _) in zip(self.where, self.rows, strict=True)]
        rows = [
            (hashed_split(text) if split == "" else split, text, labels)
            for split, (_, text, labels) in zip(self.bad.splits(named), self.rows, strict=True)
        ]
        if classes is None:
            classes = tuple(sorted({label for split, _, labels in rows if split == "train" for label in labels}))
        number = {label: index for index, label in enumerate(classes)}
        texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        found: dict[str, list[tuple[int, ...]]] = {split: [] for split in SPLITS}
        digest = hashlib.sha256(repr(classes).encode())
        for (split, text, labels), (name, row) in zip(rows, self.where, strict=True):
            if split is None:
                continue
            unknown = next((label for label in labels if label not in number), None)
            if unknown is not None:
                known = f"{len(classes)} classes ({', '.join(map(str, classes))[:SHOWN]} ...)"
                self.bad.leave_out(
                    "unknown_label",
                    f"{name}: row {row}: column '{self.columns[1]}' holds the unknown label {unknown!r:.60}, none of "
                    f"the {known}; correct it, list it in classes, or set bad_rows: skip.",
                )
                continue
            numbers = tuple(sorted({number[label] for label in labels}))
            texts[split].append(text)
            found[split].append(numbers)
            digest.update(f"{split} {numbers} {len(text.encode())}\n".encode() + text.encode())
        self.bad.require_some(any(texts.values()))
        return Labelled(texts, found, tuple(map(str, classes)), digest.hexdigest(), self.bad.skipped)


def read_labelled(source: str | Hub, columns: tuple[str, str], classes: Classes, *, skip: bool) -> Labelled:
    """Every usable row of a source. columns: of the text and of the labels. skip: leave unusable rows out.

    ValueError, in one line with file, row and column, for whatever is wrong; also for a file that changes while it is
    read, for training or validation without rows, and for labels of which there is not one.
    """
    reader = _Reader(columns, BadRows(skip))
    chosen: tuple[Label, ...] | None = tuple(range(classes)) if isinstance(classes, int) else classes
    if isinstance(source, Hub):
        names = _read_hub(source, reader)
        found = reader.finish(chosen if names is None else tuple(range(len(names))))
        if names is not None:
            found = _named(found, names, chosen)
        name = source.name
    else:
        path = locate(source, LABELLED_SAMPLE, SUFFIXES)
        before = content_hash(path)
        for file in shards(path, SUFFIXES):
            reader.take(_file_rows(file, columns, lacking=skip))
        found, name = reader.finish(chosen), source
        if content_hash(path) != before:
            raise ValueError(f"{path} changed while it was read; start again once it is complete.")
    for split in SPLITS[:2]:
        if not found.texts[split]:
            raise ValueError(f"{name} has no rows for {split}; put some into that split.")
    if not found.classes:
        raise ValueError(f"{name}: column '{columns[1]}' has no label in any training row; nothing can be learnt.")
    return found


def _file_rows(path: Path, columns: tuple[str, str], *, lacking: bool) -> Iterator[_Cells]:
    rows = read_rows(path, columns, lacking=True) if lacking else read_rows(path, columns)
    for row, (text, labels), split in rows:
        yield str(path), row, split, text, labels


def _read_hub(source: Hub, reader: _Reader) -> tuple[str, ...] | None:
    """Take all rows; the declared names of the labels, if there are any."""
    names: tuple[str, ...] | None = None
    with hub_splits(source) as splits:
        for split, rows in splits.items():
            found = hub_rows(source, split, rows, reader.columns)
            name, alone = f"{source.name}, {split}", len(splits) == 1
            reader.take((name, row, None if alone else split, text, labels) for row, (text, labels) in found)
            names = _declared(rows.features.get(reader.columns[1])) or names
    return names


def _declared(feature: Any) -> tuple[str, ...] | None:
    """The names in `List(ClassLabel(names=...))`, whatever the library calls the list."""
    names = getattr(getattr(feature, "feature", None), "names", None)
    return tuple(names) if names else None


def _named(found: Labelled, names: tuple[str, ...], chosen: tuple[Label, ...] | None) -> Labelled:
    """Numbers under the names that were declared; a spec may repeat how many there are, and nothing else."""
    if chosen is not None and chosen not in (tuple(range(len(names))), names):
        raise ValueError(f"the data set declares {len(names)} classes, the spec {len(chosen)}; leave classes out.")
    return Labelled(found.texts, found.labels, names, found.sha256, found.skipped)
