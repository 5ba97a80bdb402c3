"""Runs of a Weights & Biases project as records, through `scan_history`.

`run.history()` samples 500 rows and loses spikes; `scan_history` streams every row. The spec comes from the run's
config as the W&B sink puts it there, either the spec itself or under `spec`; what else the sink knows (status,
versions) is in `meta`. A run that is not AltGrad's has no spec and is listed as broken.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from altgrad.report.project import Project
from altgrad.report.reading import Collector, Record, settle, take_spec

STATUS = {"finished": "completed", "running": "running", "crashed": "dead", "failed": "failed", "killed": "interrupted"}
_PATH = re.compile(r"wandb:([\w.-]+/[\w.-]+)")
_PAGE = 1000


def load_from_wandb(source: str, *, tuning: Collection[int] = (), api: Any = None) -> Project:
    """The project that `wandb:ENTITY/PROJECT` names. ValueError for another text, an unknown project or no access.

    api: a stand-in for `wandb.Api()`.
    """
    match = _PATH.fullmatch(source)
    if match is None:
        raise ValueError(f"--from is {source!r}; write wandb:ENTITY/PROJECT.")
    try:
        runs = list((_api() if api is None else api).runs(match[1]))
    except Exception as error:  # its errors are of many classes, none of them documented
        raise ValueError(f"W&B did not give the runs of {match[1]}: {' '.join(str(error).split())[:200]}.") from None
    if not runs:
        raise ValueError(f"{source} has no runs.")
    records = sorted((record_of(run) for run in runs), key=lambda record: record.id)
    return Project(match[1].rpartition("/")[2], source, records, frozenset(tuning) or None)


def record_of(run: Any) -> Record:
    """One run of W&B's public API."""
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    record = Record(str(run.name or run.id), STATUS.get(str(run.state), str(run.state)))
    nested = config.get("spec")
    spec = nested if isinstance(nested, Mapping) else config
    meta = config.get("meta")
    record.meta = {"created": str(getattr(run, "created_at", "")), **(meta if isinstance(meta, Mapping) else {})}
    if isinstance(record.meta.get("status"), str):
        record.status = record.meta["status"]
    if isinstance(spec.get("optimizer"), Mapping):
        take_spec(record, spec)
    else:
        record.problems.append("its config holds no AltGrad spec.")
    collector = Collector()
    try:
        for row in run.scan_history(page_size=_PAGE):
            step = row.get("step", row.get("_step"))
            collector.add({**row, "step": step})
    except Exception as error:
        record.problems.append(f"its history broke off: {' '.join(str(error).split())[:200]}.")
    record.series = collector.series()
    settle(record)
    return record


def _api() -> Any:
    import wandb

    return wandb.Api()
