"""Curves from files of any training loop: CSV, JSON lines, and the JSON that Hugging Face's Trainer leaves.

A file is a table of rows with a step and a loss. Which columns those are is found by their usual names; a column
`seed`, `run` or `arm` tells runs apart, and where there is none the file's name does: `fp8-s3.csv` is seed 3 of fp8.
W&B's download of a chart, a column `<run> - <key>` for each run, and TensorBoard's (`Wall time,Step,Value`) are read
too. What was taken for what is said (`what_was_read`): a guess that nobody sees is an error.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.numerals import counted
from altgrad.reports.compared_runs import ComparedRun, foreign_run, name_and_seed
from altgrad.reports.reading import Series
from altgrad.spec import did_you_mean
from altgrad.store.files import NON_FINITE

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
STEPS = (
    "step", "global_step", "train/global_step", "trainer/global_step", "global step", "iteration", "iter", "steps",
    "train_step", "_step", "tokens", "epoch",
)  # fmt: skip
LOSSES = (
    "validation/loss", "val/loss", "valid/loss", "eval/loss", "test/loss", "validation_loss", "val_loss", "valid_loss",
    "eval_loss", "test_loss", "loss", "train/loss", "train_loss", "training_loss", "lm loss", "value",
)  # fmt: skip
ARMS, RUNS, SEEDS = ("arm", "variant", "group"), ("run", "run_id", "run_name", "id", "name"), ("seed", "random_seed")
_RANGE = ("__MIN", "__MAX")
_HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|eval|evaluation|test)(?![a-z])")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """Runs of a source, the metric that was read, and beside it what else was taken for granted."""

    source: str
    runs: list[ComparedRun]
    key: str
    more: str = ""

    @property
    def is_validation(self) -> bool:
        """Whether its values are of a split that is not trained on, as far as their name says."""
        return _HELD_OUT.search(self.key.lower()) is not None


def what_was_read(readings: Sequence[Reading]) -> list[str]:
    """In a line for all sources that were read alike. ValueError where one has a training loss and one another."""
    kinds = {each.is_validation: each for each in readings}
    if len(kinds) > 1:
        here, there = kinds[True], kinds[False]
        raise ValueError(f"{here.source} has {here.key!r} and {there.source} {there.key!r}; name one with --key.")
    alike: dict[tuple[str, str], list[Reading]] = {}
    for each in readings:
        alike.setdefault((each.key, each.more), []).append(each)
    said = []
    for (key, more), group in alike.items():
        places = ", ".join(each.source for each in group) if len(group) < 3 else f"{len(group)} sources"
        said.append(f"{places}: {counted(sum(len(each.runs) for each in group), 'run')}, {key!r}{more}.")
    return said


def read_loss_file(path: Path, key: str | None = None) -> Reading:
    """The runs in a file. key: the column of the values; found by its usual names where left out.

    ValueError for a file that has no such columns, or none of these forms.
    """
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path} has no rows.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    step = step_column(columns)
    if step is None:
        raise ValueError(f"{path} has no column of steps, as 'step' or 'iteration'; it has {_few(columns)}.")
    if wide := _by_run(columns, key):
        runs = [_wide_run(name, column, rows, step) for name, column in wide.items()]
        told = key or next(iter(wide.values())).rpartition(" - ")[2]
    else:
        told = loss_key(columns, key, str(path))
        runs = _long_runs(path, rows, step, told)
    runs = [run for run in runs if len(run.series[0])]
    if not runs:
        raise ValueError(f"{path} has no numbers in {told!r}.")
    return Reading(str(path), runs, told, f" by {step!r}")


def step_column(columns: Sequence[str]) -> str | None:
    """The column that counts steps, by its usual names."""
    return _first(columns, STEPS)


def loss_key(columns: Sequence[str], key: str | None, source: str) -> str:
    """The column that holds the values: `key`, as it stands or as the end of one name; else by the usual names.

    ValueError where there is none.
    """
    if key is not None:
        ends = [name for name in columns if name == key] or [n for n in columns if n.endswith(("/" + key, "." + key))]
        if ends:
            return ends[0]
        raise ValueError(f"{source} has no {key!r}.{did_you_mean(key, columns) or f' It has {_few(columns)}.'}")
    found = _first(columns, LOSSES) or next((n for n in columns if n.lower().endswith("loss")), None)
    if found is None:
        raise ValueError(f"{source} has no column of losses that is known by its name; name one with --key: "
                         f"{_few(columns)}.")  # fmt: skip
    return found


def _long_runs(path: Path, rows: Sequence[Row], step: str, key: str) -> list[ComparedRun]:
    """A row a step and run."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    arm, run, seed = (_first(columns, names) for names in (ARMS, RUNS, SEEDS))
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        told = (row.get(column) if column else None for column in (arm, run, seed))
        groups.setdefault(tuple("" if each is None else str(each) for each in told), []).append(row)
    found = []
    for (arm_name, run_name, seed_text), inside in groups.items():
        stem = name_of_file(path)
        id = run_name or "-s".join(filter(None, (arm_name or stem, seed_text)))
        name, from_name = name_and_seed(run_name or stem)
        series = series_of_rows(inside, step, key)
        more = {"arm": arm_name or name, "seed": _whole(seed_text) if seed_text else from_name}
        found.append(foreign_run(id, series, **more, spec={}))
    return found


def name_of_file(path: Path) -> str:
    """What a file calls its run: its stem, or its folder's name where the stem says nothing."""
    plain = path.stem.lower() in ("metrics", "log", "logs", "losses", "loss", "history", "trainer_state", "train")
    return path.absolute().parent.name if plain else path.stem


def _by_run(columns: Sequence[str], key: str | None) -> dict[str, str]:
    """W&B's columns `<run> - <key>` by run; empty for another table."""
    pairs = [(name.rpartition(" - "), name) for name in columns if " - " in name and not name.endswith(_RANGE)]
    wanted = [(parts[0], name) for parts, name in pairs if key is None or parts[2] == key]
    keys = {name.rpartition(" - ")[2] for _, name in wanted}
    if len(keys) > 1:
        chosen = loss_key(sorted(keys), None, "the table")
        wanted = [(run, name) for run, name in wanted if name.endswith(f" - {chosen}")]
    return dict(wanted)


def _wide_run(name: str, column: str, rows: Sequence[Row], step: str) -> ComparedRun:
    arm, seed = name_and_seed(name)
    return foreign_run(name, series_of_rows(rows, step, column), arm=arm, seed=seed)


def series_of_rows(rows: Iterable[Row], step: str, key: str) -> Series:
    """Steps and values of the rows that have both."""
    pairs = [(_number(row.get(step)), _number(row.get(key))) for row in rows]
    kept = [(float(at), value) for at, value in pairs if at is not None and value is not None and math.isfinite(at)]
    array = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file, nested names joined by `/`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; a comparison reads {', '.join(SUFFIXES)}.") from None
    if path.suffix in (".csv", ".tsv"):
        dialect = "\t" if path.suffix == ".tsv" else max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text), delimiter=dialect, restkey="")
        try:
            found = list(reader)
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num + 1}: {error}.") from None
        yield from found[:-1] if found and None in found[-1].values() else found  # the last row of a file being written
        return
    if path.suffix == ".json":
        whole = _json(text, path, 1)
        whole = whole.get("log_history", whole) if isinstance(whole, Mapping) else whole
        parts = whole if isinstance(whole, list) else []
    else:
        parts = [_json(line, path, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for part in parts:
        if isinstance(part, Mapping):
            yield dict(_flat(part))


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {error}.") from None


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", value


def _number(value: Any) -> float | None:
    """A number, also as text; None for what is none. Words for what is not finite are those of JSON, numpy and W&B."""
    if isinstance(value, bool) or value is None or value == "":
        return None
    if isinstance(value, str):
        value = NON_FINITE.get(value, value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _whole(text: str) -> int | None:
    number = _number(text)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _first(columns: Sequence[str], names: Iterable[str]) -> str | None:
    lower = {column.strip().lower(): column for column in reversed(columns) if column}
    return next((lower[name] for name in names if name in lower), None)


def _few(names: Iterable[str]) -> str:
    listed = [str(name) for name in names if name]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "") or "no columns"
