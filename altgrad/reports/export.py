"""data.parquet, data.csv and runs.parquet: every number that the report was made from.

    data.parquet   run, arm parts, lr, seed, status, step, metric, value: tidy, one row a value
    data.csv       one line a run
    runs.parquet   one row a run, from which the report can be made again

`metric` is a key of docs/METRICS.md, `outcome` the loss that enters statistics. Series are the thinned ones; the whole
ones are in the store.
"""

import csv
from pathlib import Path
from typing import Any

from altgrad.reports.archive import write_archive, write_tidy
from altgrad.reports.facts import COLUMNS, facts
from altgrad.reports.project import Project
from altgrad.reports.reading import PLAIN


def write(project: Project, folder: Path) -> None:
    """All three; data.csv has of each run its facts, condition, outcome and last losses."""
    _csv(project, folder / "data.csv")
    write_tidy(project, folder / "data.parquet")
    write_archive(project, folder / "runs.parquet")


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
