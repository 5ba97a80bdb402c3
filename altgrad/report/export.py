"""data.parquet and data.csv: every number that the report was made from, tidy: one row a value.

    run, arm parts, lr, seed, status, step, metric, value

`metric` is a key of docs/METRICS.md, `outcome` the loss that enters statistics. Series are the thinned ones; the whole
ones are in the store.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.report.project import Project
from altgrad.report.reading import PLAIN, Record

COLUMNS = ("run", "format", "storage", "casts", "optimizer", "variant", "frozen", "lr", "seed", "status", "diverged")
LONG = (*COLUMNS, "step", "metric", "value")


def facts(record: Record) -> tuple[Any, ...]:
    """A run's values of COLUMNS."""
    arm = record.arm
    return (
        record.id, arm.format, arm.storage, arm.casts, arm.optimizer, arm.variant, arm.frozen, record.rate, record.seed,
        record.status, record.diverged,
    )  # fmt: skip


def write(project: Project, folder: Path) -> None:
    """data.parquet (every series) and data.csv (one line a run: its facts, condition, outcome and last losses)."""
    _csv(project, folder / "data.csv")
    _parquet(project, folder / "data.parquet")


def _csv(project: Project, path: Path) -> None:
    words = project.conditions
    keys = sorted(
        {key for r in project.records for key in r.series if key.startswith(PLAIN) and key != "time/wall_seconds"}
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, "condition", "step", "outcome", "altgrad", "torch", "created", *keys))
        for r in project.records:
            last = [r.series[key][1][-1] if key in r.series and len(r.series[key][1]) else "" for key in keys]
            meta = [str(r.meta.get(key, "")) for key in ("altgrad", "torch", "created")]
            cells = (*facts(r), words.get(r.condition, ""), r.step, r.outcome, *meta, *last)
            writer.writerow([_inert(cell) for cell in cells])


def _inert(cell: Any) -> Any:
    """A spreadsheet takes a text that begins with one of these for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _parquet(project: Project, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = [pa.string()] * 6 + [pa.bool_(), pa.float64(), pa.int64(), pa.string(), pa.bool_()]
    fields = list(zip(COLUMNS, types, strict=True))
    schema = pa.schema([*fields, ("step", pa.float64()), ("metric", pa.string()), ("value", pa.float64())])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for record in project.records:
            steps, metrics, values = [np.array([record.step])], ["outcome"], [np.array([record.outcome])]
            for key, (s, v) in record.series.items():
                steps.append(s)
                values.append(v)
                metrics += [key] * len(s)
            columns: list[Any] = [
                pa.repeat(pa.scalar(fact, kind), len(metrics)) for fact, kind in zip(facts(record), types, strict=True)
            ]
            columns += [np.concatenate(steps).astype(float), pa.array(metrics), np.concatenate(values).astype(float)]
            writer.write_table(
                pa.Table.from_arrays([pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], schema=schema)
            )
