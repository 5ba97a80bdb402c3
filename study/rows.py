"""The rows of the second edition: where they are kept, and losses by cell, rate and seed.

study/results/second/PART.parquet, a row a run. A part's file is written anew, aside and renamed, whenever a run of it
ends: a death costs the runs under way, and two machines at work on different parts change different files. Text lines
were the road not taken: pandas reads either, and a file of parquet is a quarter of the size.
"""

import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from altgrad.store.files import write_atomic
from study.cell import CELL, Cell

ADAMS_EPS = 1e-8
FOLDER = Path(__file__).resolve().parent / "results" / "second"


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """Every row that is in, of all parts; empty, with the columns that are asked for, where none is."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        return pd.DataFrame(columns=["part", "fingerprint", "cell", *CELL, "rate", "seed", "loss"])
    frame = pa.concat_tables([_table(path) for path in paths], promote_options="permissive").to_pandas()
    return cast(pd.DataFrame, frame.assign(cell=frame["cell"].map(_with_eps)) if "cell" in frame else frame)


def _with_eps(cell: Cell) -> Cell:
    """A cell as it is told now; rows of before eps was told had Adam's own."""
    found = json.loads(cell)
    return cell if len(found) == len(CELL) else json.dumps([*found, ADAMS_EPS])


def _table(path: Path) -> pa.Table:
    """One file, opened once: by its name it would be opened twice, and may have been replaced in between."""
    return pq.read_table(pa.BufferReader(path.read_bytes()))


def append(row: dict[str, Any], folder: Path = FOLDER) -> None:
    """Put a finished run's row to its part's file; one that is there already is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row['part']}.parquet"
    before = _table(path).to_pylist() if path.exists() else []
    if any(other["fingerprint"] == row["fingerprint"] for other in before):
        return
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*before, row]), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue())


def index(frame: pd.DataFrame) -> Mapping[Cell, dict[float, dict[int, int]]]:
    """The number of a row, by cell, rate (to three digits) and seed; of the frame asked last it is remembered."""
    if _LAST[0] is not frame:
        found: dict[Cell, dict[float, dict[int, int]]] = {}
        for number, (cell, rate, seed) in enumerate(zip(frame["cell"], frame["rate"], frame["seed"], strict=True)):
            found.setdefault(cell, {}).setdefault(_three(rate), {})[int(seed)] = number
        _LAST[:] = frame, found
    return cast(Mapping[Cell, dict[float, dict[int, int]]], _LAST[1])


_LAST: list[Any] = [None, {}]
"""A frame and its index: tables ask for thousands of losses, and pandas takes a millisecond for each selection."""


def _three(rate: float) -> float:
    return float(f"{rate:.3g}")


def losses(
    frame: pd.DataFrame, cell: Cell, rate: float, seeds: Collection[int], column: str = "loss"
) -> dict[int, float]:
    """A column by seed, of one cell at one rate."""
    own = index(frame).get(cell, {}).get(_three(rate), {})
    values = frame[column].to_numpy() if own else ()
    return {seed: float(values[own[seed]]) for seed in sorted(own) if seed in seeds}


def mean_losses(frame: pd.DataFrame, cell: Cell, rates: Iterable[float], seeds: Sequence[int]) -> list[float]:
    """The mean over seeds at each rate; NaN where a seed is missing."""
    found = [losses(frame, cell, rate, seeds) for rate in rates]
    return [math.fsum(by.values()) / len(by) if len(by) == len(seeds) else math.nan for by in found]


def rates_of(frame: pd.DataFrame, cell: Cell) -> list[float]:
    """The rates at which a cell has rows, ascending."""
    return sorted(index(frame).get(cell, {}))
