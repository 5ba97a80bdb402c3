"""Runs as pandas DataFrames: what a library, a notebook and `altgrad runs export` give back.

A run's own folder stays the truth; a frame is read from it when asked. pandas takes half a second to import, so it is
imported in here alone, when a frame is made.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from altgrad.metric_keys import split_key
from altgrad.progress import progress
from altgrad.spec import did_you_mean
from altgrad.store.compare import leaves
from altgrad.store.files import json_object, seal, write_atomic
from altgrad.store.index import Summary, summaries
from altgrad.store.runs import SPEC_HASH, Run, RunStore

if TYPE_CHECKING:
    import pandas

SPECS = ".specs.json"
HEAD = ("id", "project", "name", "status", "seed", "step")
TIDY = ("run", "step", "group", "site", "quantity", "value")


def metrics_frame(run: Run, keys: Iterable[str] | None = None) -> "pandas.DataFrame":
    """A run's numbers as a DataFrame: `step`, then a column of floats for each metric, in order of first appearance.

    One row a step, in order; NaN where a metric was not measured. keys: names or shell patterns of metrics.
    """
    import pandas

    steps: dict[int, dict[str, float]] = {}
    for row in run.metrics(keys):  # training, validation and the end each log a row of their own
        steps.setdefault(int(row["step"]), {}).update(row)
    frame = pandas.DataFrame(list(steps.values()), columns=None if steps else ["step"])
    return frame.astype({name: "int64" if name == "step" else "float64" for name in frame.columns})


def tidy_frame(runs: Iterable[Run], keys: Iterable[str] | None = None) -> "pandas.DataFrame":
    """The numbers of many runs as a DataFrame with a row for each: run, step, group, site, quantity, value.

    The metric `range/blocks.0.mlp.up/input/amax` is of group `range`, site `blocks.0.mlp.up/input` and quantity `amax`;
    `train/loss` has an empty site. Texts are categories, so that each of millions of rows takes 32 bytes.
    """
    import numpy
    import pandas

    steps, values, metrics, owners = array("q"), array("d"), array("i"), array("i")
    numbers: dict[str, int] = {}
    names = []
    wanted = None if keys is None else tuple(keys)
    chosen = list(runs)
    for owner, run in enumerate(chosen):
        progress("reading runs", owner, len(chosen))
        names.append(f"{run.project}/{run.id}")
        for row in run.metrics(wanted):
            for key, value in row.items():
                if key != "step":
                    steps.append(int(row["step"]))
                    values.append(value)
                    metrics.append(numbers.setdefault(key, len(numbers)))
                    owners.append(owner)

    def texts(numbered: Sequence[int], known: list[str]) -> "pandas.Categorical[str]":
        codes = {text: code for code, text in enumerate(dict.fromkeys(known))}
        code_of = numpy.array([codes[text] for text in known], dtype=numpy.int32)
        return pandas.Categorical.from_codes(code_of[numpy.asarray(numbered)], pandas.Index(list(codes)))

    parts = [split_key(key) for key in numbers]
    split = [texts(metrics, [part[place] for part in parts]) for place in range(3)]
    columns = [texts(owners, names), numpy.asarray(steps), *split, numpy.asarray(values)]
    return pandas.DataFrame(dict(zip(TIDY, columns, strict=True)))


def sites_frame(run: Run, monitor: str) -> "pandas.DataFrame":
    """One monitor's numbers as a tidy DataFrame: step, site, quantity, value. ValueError if the run has none of it."""
    frame = tidy_frame([run], [f"{monitor}/*"])
    if frame.empty:
        groups = sorted({split_key(key)[0] for row in run.metrics() for key in row if key != "step"})
        hint = did_you_mean(monitor, groups) or f" It has {', '.join(groups) or 'no metrics yet'}."
        raise ValueError(f"{run.id} has no metrics of {monitor!r}.{hint}")
    return frame[["step", "site", "quantity", "value"]].astype({"site": "str", "quantity": "str"})


def events_frame(run: Run) -> "pandas.DataFrame":
    """What happened in a run as a DataFrame: step, event, time (UTC), message, then each kind's own details."""
    import pandas

    rows = list(run.events())
    columns = dict.fromkeys(("step", "event", "time", "message", *(key for row in rows for key in row)))
    frame = pandas.DataFrame(rows, columns=list(columns))
    return frame.assign(time=pandas.to_datetime(frame["time"], utc=True, format="ISO8601"))


def runs(
    project: str | None = None, where: Mapping[str, Any] | None = None, runs: str | Path = "runs"
) -> "pandas.DataFrame":
    """The runs of a store as a DataFrame, one row each: what they are, where their specs differ, how they ended.

    Columns: id, project, name, status, seed, step; the fields of the spec in which the listed runs differ, under their
    dotted paths (`optimizer.lr`, `precision.rules.0.weight.format`; None where a run's spec has no such field); the
    last `validation/*` and `train/loss`. Damaged runs are listed, with what could be read.

    project: only its runs. where: only runs with these values, by column or by any path of the spec, such as
    `{"optimizer.kind": "adamw", "status": "completed"}`; ValueError for a path that no run has. For any other
    condition select from the frame: `frame[frame["validation/loss"] < 3]`.
    """
    import pandas

    rows, fields, metrics = [], dict[str, None](), dict[str, None]()
    for found, spec in _with_specs(RunStore(Path(runs)), project):
        run = found.run
        named = (run.id, run.project, spec.get("name"), found.status, spec.get("seed"), found.step)
        rows.append({**spec, **found.final, **dict(zip(HEAD, named, strict=True))})
        fields |= dict.fromkeys(spec)
        metrics |= dict.fromkeys(found.final)
    wanted = dict(where or {})
    if rows and (unknown := [path for path in wanted if not any(path in row for row in rows)]):
        hint = did_you_mean(unknown[0], [*HEAD, *fields, *metrics]) or " See `altgrad runs show RUN --json`."
        raise ValueError(f"where: no run has {unknown[0]!r}.{hint}")
    rows = [row for row in rows if all(path in row and row[path] == value for path, value in wanted.items())]
    differing = [path for path in fields if path not in HEAD and len({repr(row.get(path, ...)) for row in rows}) > 1]
    final = [metric for metric in metrics if any(metric in row for row in rows)]
    columns = [*HEAD, *differing, *final]
    frame = pandas.DataFrame([[row.get(column) for column in columns] for row in rows], columns=columns)
    return frame.astype(dict.fromkeys(final, "float64"))


def _with_specs(store: RunStore, project: str | None) -> Iterator[tuple[Summary, dict[str, Any]]]:
    """Every run with the leaves of its spec by dotted path; none where it is damaged.

    Parsing is most of a first listing's time, so specs are remembered in `<store>/.specs.json` by the sum of their
    text, under which they cannot change. A store that may only be read is listed all the same.
    """
    known: dict[str, Any] = {}
    with suppress(OSError):
        known = json_object((store.root / SPECS).read_bytes()) or {}
    before = len(known)
    for found in summaries(store, project):
        digest = str(found.meta.get(SPEC_HASH, ""))
        spec = known.get(digest)
        if spec is None:
            with suppress(ValueError, OSError, yaml.YAMLError):
                spec = _read_spec(found.run)
                if digest:  # runs of the first edition did not note it
                    known[digest] = spec
        yield found, spec or {}
    if len(known) > before:
        with suppress(OSError):
            write_atomic(store.root / SPECS, seal(json.dumps(known, separators=(",", ":")).encode()), durable=False)


def _read_spec(run: Run) -> dict[str, Any]:
    """The leaves of the stored spec. libyaml, where PyYAML has it, reads what specs are written as five times faster
    than `Document`, and alike: whatever the two would read differently is written in quotes.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(run.spec_text())
    try:
        tree = loader.get_single_data()
    finally:
        loader.dispose()
    return dict(leaves(tree)) if isinstance(tree, Mapping) else {}
