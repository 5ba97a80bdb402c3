"""Runs of a Weights & Biases project as records, through `scan_history`.

`run.history()` samples 500 rows and loses spikes; `scan_history` gives every row. What a record needs stands where the
W&B sink puts it (`altgrad.store.wandb_sink`): the spec's fields at the top of the config, versions and data under
`run`, how the run ended in the summary (W&B's own word for a run that diverged is `failed`), the binades of a spacing
in one histogram. So a record from W&B equals the one from the store; only events stay behind. A run that is not
AltGrad's has no spec and is listed as broken.
"""

import inspect
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from altgrad.reports.project import Project
from altgrad.reports.reading import Collector, RunRecord, settle, take_spec
from altgrad.store.histogram import bins

STATUS = {"finished": "completed", "running": "running", "crashed": "dead", "failed": "failed", "killed": "interrupted"}
NON_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
"""W&B's names of the numbers that JSON lacks, and ours."""
_PATH = re.compile(r"wandb:([\w.-]+/[\w.-]+)")
_PAGE = 1000
_RETRIES, _WAIT = 3, 2.0


def load_from_wandb(source: str, metrics: Collection[str], *, tuning: Collection[int] = ()) -> Project:
    """The project that `wandb:ENTITY/PROJECT` names.

    ValueError for another text and a project without runs; ConnectionError where W&B does not give its runs: out of
    reach, no access, no such project.
    """
    match = _PATH.fullmatch(source)
    if match is None:
        raise ValueError(f"--from is {source!r}; write wandb:ENTITY/PROJECT.")
    refused = _refusals()
    try:
        runs = list(_api().runs(match[1]))
        records = sorted((record_of(run, metrics, refused) for run in runs), key=lambda record: record.id)
    except refused as error:
        raise ConnectionError(f"W&B did not give the runs of {match[1]}: {_line(error)}") from None
    if not records:
        raise ValueError(f"{source} has no runs.")
    return Project(match[1].rpartition("/")[2], source, records, frozenset(tuning) or None)


def record_of(run: Any, metrics: Collection[str], refused: tuple[type[Exception], ...] = ()) -> RunRecord:
    """One run of W&B's public API. refused: errors that are a problem of its history, not of the report."""
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    known = config.pop("run", None)
    record = RunRecord(str(run.id), STATUS.get(str(run.state), str(run.state)))
    record.meta = {"created": str(run.created_at), **(known if isinstance(known, Mapping) else {})}
    told = dict(run.summary).get("status")
    if isinstance(told, str) and record.status != "running":
        record.status = told
    if isinstance(config.get("optimizer"), Mapping):
        take_spec(record, config)
    else:
        record.problems.append("its config holds no AltGrad spec.")
    collector = Collector(metrics)
    try:
        for row in run.scan_history(page_size=_PAGE, **_uncached(run)):
            collector.add(_plain(row))
    except refused as error:
        record.problems.append(f"its history broke off: {_line(error)}.")
    # The client gives a row's keys in any order, and sections show layers in that of the keys.
    record.series = dict(sorted(collector.series().items(), key=lambda item: _counted(item[0])))
    record.events += collector.symptoms()
    settle(record)
    return record


def _uncached(run: Any) -> dict[str, bool]:
    """The client's cache knows a run's files by their numbers, and a run goes on; older clients have none."""
    return {"use_cache": False} if "use_cache" in inspect.signature(run.scan_history).parameters else {}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the store has it."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= bins(key, value)
        elif isinstance(value, str):
            found[key] = NON_FINITE.get(value, value)
        else:
            found[key] = value
    found.setdefault("step", row.get("_step"))
    return found


def _counted(key: str) -> list[tuple[int, str]]:
    """A key to sort by in which block 10 comes after block 2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", key)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _refusals() -> tuple[type[Exception], ...]:
    """What the client raises where it gets no answer that it understands."""
    import wandb

    try:
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    except ImportError:  # an older client
        return wandb.Error, ValueError, OSError
    return wandb.Error, WandbApiFailedError, ValueError, OSError


def _api() -> Any:
    """The client. By itself it would try for many minutes, and say at each start who is logged in."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=_RETRIES, x_graphql_retry_wait_max_seconds=_WAIT))
    return wandb.Api()
