"""Parquet files row by row, and no further than text goes: a few KB can say the same megabyte a million times.

A page may be compressed, and a value may stand in a dictionary once and be meant often, so neither the size of a file
nor its own description bounds what it unpacks to. What is read is counted as it comes, and a file that comes to more
than MOST_TIMES its size (and LEAST_ROOM) is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Row", "check_parquet", "parquet_rows", "zstd_stream"]

MOST_TIMES, LEAST_ROOM = 200, 256 << 20
"""A file may unpack to so many times its size, or to so many bytes."""
_BATCH = 1024

Row = tuple[int, tuple[object, ...], str | None]
"""Its number from 1, the cells of the columns asked for, and its split; None where it names none."""


def parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Every row of a file, with its split if the file has such a column. ValueError for what cannot be read."""
    with _opened(path) as file:
        names = file.schema_arrow.names
        for column in columns:
            if column not in names:
                raise ValueError(f"{path}: no column '{column}'; the file has {', '.join(names)}.")
        # One file, read as one file: pyarrow's data set reader would also infer columns from folder names.
        splits = ["split"] if "split" in names else []
        row, room = 0, _Room(path)
        wanted = list(dict.fromkeys([*columns, *splits]))
        for chunk in file.iter_batches(batch_size=room.rows(file.metadata, wanted), columns=wanted):
            cells = zip(*(chunk.column(column) for column in columns), strict=True)
            marks = chunk.column("split").to_pylist() if splits else [None] * chunk.num_rows
            for row_cells, split in zip(cells, marks, strict=True):
                row += 1
                values = zip(columns, row_cells, strict=True)
                read = tuple(_scalar(path, row, column, cell) for column, cell in values)
                room.take(sum(map(_length, read)))
                # A column of floats has NaN for null.
                yield row, read, None if split != split else split


def check_parquet(path: Path) -> None:
    """ValueError for a file that cannot be read, or that unpacks to more than text does; nothing of it is kept."""
    with _opened(path) as file:
        room = _Room(path)
        for chunk in file.iter_batches(batch_size=room.rows(file.metadata, file.schema_arrow.names)):
            room.take(sum(map(_unpacked, chunk.columns)))


def zstd_stream(path: Path) -> Any:
    """A .zst file as a stream of its bytes: Arrow has the decompressor, Python itself only from 3.14 on."""
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def _unpacked(column: Any) -> int:
    """Bytes of an Arrow array once every value stands for itself: of a dictionary's, as often as it is meant."""
    from pyarrow import compute, types

    if types.is_list(column.type) or types.is_large_list(column.type):
        return _unpacked(column.flatten())
    if types.is_struct(column.type):
        return sum(map(_unpacked, column.flatten()))
    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    values = column.dictionary
    if not (types.is_string(values.type) or types.is_large_string(values.type) or types.is_binary(values.type)):
        return 8 * len(column)
    return int(compute.sum(compute.binary_length(values).take(column.indices).cast("int64")).as_py() or 0)


class _Room:
    """What a file may come to when it is unpacked, and what is left of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.packed = path, path.stat().st_size
        self.limit = self.left = max(LEAST_ROOM, MOST_TIMES * self.packed)

    def rows(self, metadata: Any, columns: list[str]) -> int:
        """How many rows to unpack at a time: no value is longer than all pages of its column in its group.

        ValueError if these pages alone are too many bytes.
        """
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        sizes: list[int] = [
            max(0, c.total_uncompressed_size) for c in chunks if c.path_in_schema.split(".")[0] in columns
        ]
        if sum(sizes) > self.limit:
            self.take(sum(sizes))
        return min(_BATCH, max(1, self.limit // max(1, *sizes, 1)))

    def take(self, size: int) -> None:
        """ValueError once there is no more."""
        self.left -= size
        if self.left < 0:
            raise ValueError(
                f"{self.path}: its {self.packed} bytes unpack to more than {self.limit}; text does not, so it is not "
                "read. Write it as .jsonl if it is meant."
            )


def _length(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _scalar(path: Path, row: int, column: str, cell: Any) -> object:
    """A pyarrow cell as a Python value; strings in parquet need not be UTF-8, and only reading one finds out."""
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: row {row}: column '{column}' is not UTF-8 ({error.reason}).") from None
