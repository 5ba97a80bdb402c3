"""data.parquet, data.csv and runs.parquet: every number that the report was made from.

    data.parquet   run, arm and its parts, lr, seed, status, step, metric, value: tidy, one row a value
    data.csv       one line a run
    runs.parquet   one row a run, the records a report was made from, so that it can be made again without the runs

    altgrad report --from reports/NAME/runs.parquet

`metric` is a key of docs/METRICS.md, `outcome` the loss that enters statistics. Series are the thinned ones; the whole
ones are in the store. In runs.parquet specs, meta data and events are JSON texts, series lists side by side. Archives
of one project can be read together, as when a study was run in several sittings: of a run that stands in two, the later
archive's counts.
"""

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.reports.project import Project
from altgrad.reports.reading import PLAIN, RunRecord, take_spec

NAME = b"altgrad_project"
COLUMNS = (
    "run", "arm", "format", "storage", "casts", "optimizer", "variant", "frozen", "lr", "seed", "status", "diverged",
)  # fmt: skip
TEXTS, NESTED = ("id", "status", "reason"), ("spec", "meta", "events")
GROUP = 200_000
"""Rows of data.parquet that are written at a time, about."""
PLAIN_FIELDS = (*TEXTS, "whole", "step", "problems")


def run_columns(project: Project, record: RunRecord) -> tuple[Any, ...]:
    """A run's values of COLUMNS."""
    arm = record.arm
    return (
        record.id, project.name_of(record), arm.format, arm.storage, arm.casts, arm.optimizer, arm.variant,
        arm.frozen, record.rate, record.seed, record.status, record.diverged,
    )  # fmt: skip


def write_data(project: Project, folder: Path) -> None:
    """All three files; data.csv has of each run its columns, condition, outcome and last losses."""
    _write_csv(project, folder / "data.csv")
    _write_tidy(project, folder / "data.parquet")
    write_archive(project, folder / "runs.parquet")


def _write_csv(project: Project, path: Path) -> None:
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
            cells = (*run_columns(project, r), words.get(r.condition, ""), r.step, r.outcome, *meta, *last)
            writer.writerow([_inert(cell) for cell in cells])


def _inert(cell: Any) -> Any:
    """A spreadsheet takes a text that begins with one of these for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _write_tidy(project: Project, path: Path) -> None:
    """One row a value: COLUMNS, step, metric, value. Runs are written in groups: one of its own costs 4 ms."""
    import pyarrow as pa
    from pyarrow import parquet

    types = [pa.string()] * 7 + [pa.bool_(), pa.float64(), pa.int64(), pa.string(), pa.bool_()]
    fields = list(zip(COLUMNS, types, strict=True))
    schema = pa.schema([*fields, ("step", pa.float64()), ("metric", pa.string()), ("value", pa.float64())])
    tables: list[Any] = []
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for record in project.records:
            steps, metrics, values = [np.array([record.step])], ["outcome"], [np.array([record.outcome])]
            for key, (s, v) in record.series.items():
                steps.append(s)
                values.append(v)
                metrics += [key] * len(s)
            told = zip(run_columns(project, record), types, strict=True)
            columns: list[Any] = [pa.repeat(pa.scalar(value, kind), len(metrics)) for value, kind in told]
            columns += [np.concatenate(steps).astype(float), pa.array(metrics), np.concatenate(values).astype(float)]
            arrays = [pa.array(c) if isinstance(c, np.ndarray) else c for c in columns]
            tables.append(pa.Table.from_arrays(arrays, schema=schema))
            if record is project.records[-1] or sum(table.num_rows for table in tables) > GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables = []


def write_archive(project: Project, path: Path) -> None:
    """Every record of the project, in its order."""
    import pyarrow as pa
    from pyarrow import parquet

    numbers = pa.list_(pa.list_(pa.float64()))
    kinds = {
        **dict.fromkeys((*TEXTS, *NESTED), pa.string()), "whole": pa.bool_(), "step": pa.int64(),
        "problems": pa.list_(pa.string()), "keys": pa.list_(pa.string()), "steps": numbers, "values": numbers,
    }  # fmt: skip
    schema = pa.schema(list(kinds.items()), metadata={NAME: project.name.encode()})
    rows = [_row(record) for record in project.records]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def _row(record: RunRecord) -> dict[str, Any]:
    plain = {name: getattr(record, name) for name in PLAIN_FIELDS}
    nested = {name: json.dumps(getattr(record, name), default=str) for name in NESTED}
    return {**plain, **nested, "keys": list(record.series),
            "steps": [s for s, _ in record.series.values()],
            "values": [v.astype(np.float64) for _, v in record.series.values()]}  # fmt: skip


def load_archives(paths: Sequence[Path], *, tuning: Collection[int] = ()) -> Project:
    """The project that the archives hold. ValueError for a file that is none, or for archives of two projects."""
    import pyarrow as pa
    from pyarrow import parquet

    records: dict[str, RunRecord] = {}
    names = []
    for path in paths:
        try:
            table = parquet.read_table(path)
            names.append((table.schema.metadata or {})[NAME].decode())
            records |= {row["id"]: _record(row) for row in table.to_pylist()}
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            reason = f" ({' '.join(str(error).split())[:120]})" if isinstance(error, OSError) else ""
            raise ValueError(
                f"{path} is not a runs.parquet of a report{reason}; --from takes that, or wandb:..."
            ) from None
    if len(set(names)) > 1:
        raise ValueError(f"--from names archives of {' and '.join(sorted(set(names)))}; a report is of one project.")
    source = ", ".join(path.name for path in paths)
    return Project(names[0], source, [records[id] for id in sorted(records)], frozenset(tuning) or None)


def _record(row: dict[str, Any]) -> RunRecord:
    record = RunRecord(**{name: row[name] for name in PLAIN_FIELDS}, meta=json.loads(row["meta"]))
    if spec := json.loads(row["spec"]):
        take_spec(record, spec)
    record.events = json.loads(row["events"])
    for key, steps, values in zip(row["keys"], row["steps"], row["values"], strict=True):
        record.series[key] = np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
    return record
