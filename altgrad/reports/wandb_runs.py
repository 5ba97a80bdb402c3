"""Runs of a Weights & Biases project as records, through `scan_history`.

`run.history()` samples 500 rows and loses spikes; `scan_history` gives every row. What a record needs stands where the
W&B sink puts it (`altgrad.store.wandb_sink`): the spec's fields at the top of the config, versions and data under
`run`, how the run ended in the summary (W&B's own word for a run that diverged is `failed`), the binades of a spacing
in one histogram. So a record from W&B equals the one from the store; only events stay behind. A run that is not
AltGrad's has no spec: a report lists it as broken, and a comparison reads its curve. Its arm is then its group, else
its name without the seed where names say that, else its config without seeds and names.
"""

import inspect
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from altgrad.progress import progress
from altgrad.reports.compared_runs import ComparedRun, compared_record, foreign_run, name_and_seed
from altgrad.reports.loss_files import Reading, loss_key, series_of_rows, step_column
from altgrad.reports.project import Project
from altgrad.reports.reading import LOSS, Collector, RunRecord, settle, take_spec
from altgrad.store.histogram import bins

STATUS = {"finished": "completed", "running": "running", "crashed": "dead", "failed": "failed", "killed": "interrupted"}
NON_FINITE = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
"""W&B's names of the numbers that JSON lacks, and ours."""
_PATH = re.compile(r"wandb:([\w.-]+/[\w.-]+)")
_PAGE = 1000
_NAMING = re.compile(r"(?i)(name|_dir|_path|run_id|project|tags|notes)$")
_RETRIES, _WAIT = 3, 2.0


def load_from_wandb(source: str, metrics: Collection[str], *, tuning: Collection[int] = ()) -> Project:
    """The project that `wandb:ENTITY/PROJECT` names.

    ValueError for another text and a project without runs; ConnectionError where W&B does not give its runs: out of
    reach, no access, no such project.
    """
    refused = _refusals()
    found = _api_runs(source, "--from", refused)
    with _answered(source, refused):
        records = sorted(_records(found, metrics, refused), key=lambda record: record.id)
    return Project(source.rpartition("/")[2], source, records, frozenset(tuning) or None)


def read_wandb(source: str, key: str | None = None) -> Reading:
    """The runs of any project that `wandb:ENTITY/PROJECT` names, each with one curve, those that are not finished left
    out. key: of the values; found by its usual names where left out. Errors as `load_from_wandb` has them.
    """
    refused = _refusals()
    found = _api_runs(source, "the target", refused)
    ours = [run for run in found if isinstance(run.config.get("optimizer"), Mapping) and "run" in run.config]
    with _answered(source, refused):
        records = list(_records(ours, ((key or LOSS).rpartition("/")[2],), refused))
        others = [run for run in found if run not in ours]
        columns = [list(dict(run.summary)) for run in others]
    runs = [compared_record(record, key or LOSS) for record in records if record.ended and record.whole]
    chosen = key or LOSS
    if others:
        chosen = loss_key(list(dict.fromkeys(name for names in columns for name in names)), key, source)
        with _answered(source, refused):
            runs += _foreign(others, chosen)
    left_out = len(found) - len(runs)
    return Reading(source, runs, chosen, f"; {left_out} not finished or without values left out" if left_out else "")


def _foreign(runs: list[Any], key: str) -> list[ComparedRun]:
    """Those of the runs that finished or diverged."""
    settings = [_settings(run) for run in runs]
    names = [name_and_seed(str(run.name)) for run in runs]
    named = len(set(map(str, settings))) == 1 or len({name for name, _ in names}) < len(names)
    found = []
    for number, (run, (config, seed), (name, from_name)) in enumerate(zip(runs, settings, names, strict=True)):
        progress("reading runs from W&B", number, len(runs))
        rows = [_plain(row) for row in run.scan_history(page_size=_PAGE, **_uncached(run))]
        step = step_column(list(dict.fromkeys(column for row in rows for column in row))) or "_step"
        one = foreign_run(
            str(run.name), series_of_rows(rows, step, key), created=str(run.created_at),
            arm=str(getattr(run, "group", None) or (name if named else "")), spec={} if named else config,
            seed=seed if seed is not None else from_name, ignorance=_ignorance(run),
        )  # fmt: skip
        if len(one.series[0]) and (one.diverged or str(run.state) == "finished"):
            found.append(one)
    return found


def _settings(run: Any) -> tuple[dict[str, Any], int | None]:
    """A config without what names a run, and its seed."""
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    seeds = [v for k, v in config.items() if k.lower().rpartition("seed")[1] and isinstance(v, int)]
    kept = {k: v for k, v in config.items() if "seed" not in k.lower() and not _NAMING.search(k)}
    return kept, seeds[0] if seeds else None


def _ignorance(run: Any) -> float:
    sizes = [v for k, v in dict(run.config).items() if k.lower().endswith(("vocab_size", "vocabulary"))]
    return math.log(sizes[0]) if sizes and isinstance(sizes[0], int) and sizes[0] > 1 else math.nan


def _api_runs(source: str, what: str, refused: tuple[type[Exception], ...]) -> list[Any]:
    match = _PATH.fullmatch(source)
    if match is None:
        raise ValueError(f"{what} is {source!r}; write wandb:ENTITY/PROJECT.")
    progress("asking W&B for runs")
    with _answered(source, refused):
        found = list(_api().runs(match[1]))
    if not found:
        raise ValueError(f"{source} has no runs.")
    return found


@contextmanager
def _answered(source: str, refused: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except refused as error:
        raise ConnectionError(f"W&B did not give the runs of {source[6:]}: {_line(error)}") from None


def _records(runs: list[Any], metrics: Collection[str], refused: tuple[type[Exception], ...]) -> Iterator[RunRecord]:
    for number, run in enumerate(runs):
        progress("reading runs from W&B", number, len(runs))
        yield record_of(run, metrics, refused)


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
