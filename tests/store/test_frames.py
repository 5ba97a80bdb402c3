"""Claims about runs as DataFrames: they say what the logs say, and a listing parses no spec twice."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml

import altgrad
from altgrad.cli.main import main
from altgrad.document import Document
from altgrad.metric_keys import split_key
from altgrad.spec import Spec
from altgrad.store import Run, RunStore, frames
from altgrad.store.compare import leaves
from altgrad.store.files import json_line
from altgrad.store.frames import events_frame, metrics_frame, sites_frame, tidy_frame

ROWS: list[dict[str, Any]] = [
    {"step": 0, "validation/loss": 5.5},
    {
        "step": 1,
        "train/loss": 5.4,
        "range/blocks.0.mlp/input/amax": 2.0,
        "range/blocks.0.mlp/input/underflow_rate": 0.1,
    },
    {"step": 2, "train/loss": math.inf},
    {"step": 2, "validation/loss": 0.1 + 0.2, "validation/perplexity": math.nan},
    {"step": 2, "time/median_tokens_per_second": 7.0},
]


def make(root: Path, name: str, *, kind: str = "adamw", lr: float = 1e-3, rows: list[dict[str, Any]] = ROWS) -> Run:
    spec = {"name": "tiny", "seed": 0, "optimizer": {"kind": kind, "lr": lr}, "monitors": [{"kind": "range"}]}
    meta = {"status": "completed", "scores": ["perplexity"]}
    run = RunStore(root).run("p", name).create(yaml.safe_dump(spec, sort_keys=False), meta)
    (run.path / "metrics.jsonl").write_bytes(b"".join(json_line(row) for row in rows))
    return run


def test_metrics_are_one_row_a_step_and_the_very_numbers(tmp_path: Path) -> None:
    frame = metrics_frame(make(tmp_path, "a"))
    assert type(frame) is pandas.DataFrame and list(frame["step"]) == [0, 1, 2]
    assert list(frame.columns) == list(dict.fromkeys(key for row in ROWS for key in row))
    assert [str(kind) for kind in frame.dtypes] == ["int64"] + ["float64"] * 6
    last = frame.iloc[-1]
    assert last["train/loss"] == math.inf and last["validation/loss"] == 0.1 + 0.2
    assert math.isnan(last["validation/perplexity"]) and math.isnan(frame["train/loss"][0])
    assert list(metrics_frame(make(tmp_path, "b"), ["train/*"]).columns) == ["step", "train/loss"]
    assert list(metrics_frame(make(tmp_path, "c", rows=[])).columns) == ["step"]


def test_sites_are_tidy_whatever_slashes_they_hold(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    frame = sites_frame(run, "range")
    assert frame.values.tolist() == [
        [1, "blocks.0.mlp/input", "amax", 2.0],
        [1, "blocks.0.mlp/input", "underflow_rate", 0.1],
    ]
    assert list(frame.columns) == ["step", "site", "quantity", "value"]
    with pytest.raises(ValueError, match=r"^a has no metrics of 'rnage'. Did you mean 'range'\?$"):
        sites_frame(run, "rnage")
    with pytest.raises(ValueError, match="It has range, time, train, validation"):
        sites_frame(run, "flips")


def test_a_tidy_table_of_many_runs_holds_every_number(tmp_path: Path) -> None:
    runs = [make(tmp_path, "a"), make(tmp_path, "b", rows=ROWS[:2])]
    frame = tidy_frame(runs)
    said = [
        (f"p/{run.id}", row["step"], *split_key(key), repr(value))
        for run in runs for row in run.metrics() for key, value in row.items() if key != "step"
    ]  # fmt: skip
    assert [(*row[:-1], repr(row[-1])) for row in frame.itertuples(index=False, name=None)] == said
    assert tidy_frame([]).empty and list(tidy_frame([]).columns) == list(frames.TIDY)


def test_events_have_their_times_and_details(tmp_path: Path) -> None:
    run = make(tmp_path, "a")
    events = [
        {"step": 0, "event": "started", "time": "2026-01-01T00:00:00.500Z", "message": "started", "device": "cpu"},
        {"step": 2, "event": "stopped", "time": "2026-01-01T00:00:02Z", "message": "completed", "status": "completed"},
    ]
    (run.path / "events.jsonl").write_bytes(b"".join(map(json_line, events)))
    frame = events_frame(run)
    assert list(frame.columns) == ["step", "event", "time", "message", "device", "status"]
    assert frame["time"].diff().dt.total_seconds()[1] == 1.5
    assert len(events_frame(make(tmp_path, "b"))) == 0


def test_a_listing_shows_where_specs_differ_and_how_runs_ended(tmp_path: Path) -> None:
    for name, kind, lr in (("a", "adamw", 1e-3), ("b", "adamw", 2e-3), ("c", "sgd", 2e-3)):
        make(tmp_path, name, kind=kind, lr=lr, rows=ROWS[:2] if name == "b" else ROWS)
    frame = altgrad.runs(runs=tmp_path)
    final = ["train/loss", "validation/loss", "validation/perplexity"]
    assert list(frame.columns) == [*frames.HEAD, "optimizer.kind", "optimizer.lr", *final]
    assert list(frame["id"]) == ["a", "b", "c"] and list(frame["name"]) == ["tiny"] * 3
    assert list(frame["optimizer.lr"]) == [1e-3, 2e-3, 2e-3] and list(frame["step"]) == [2, 1, 2]
    assert list(frame["validation/loss"]) == [0.1 + 0.2, 5.5, 0.1 + 0.2]
    adamw = altgrad.runs(runs=tmp_path, project="p", where={"optimizer.kind": "adamw", "status": "completed"})
    assert list(adamw["id"]) == ["a", "b"] and "optimizer.kind" not in adamw.columns
    with pytest.raises(ValueError, match=r"no run has 'optimiser.kind'. Did you mean 'optimizer.kind'\?"):
        altgrad.runs(runs=tmp_path, where={"optimiser.kind": "adamw"})
    assert list(altgrad.runs(runs=tmp_path / "none").columns) == list(frames.HEAD)


def test_a_damaged_run_is_listed_and_no_spec_is_parsed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make(tmp_path, name, lr=number) for number, name in enumerate("abc", 1)]
    (runs[2].path / "meta.json").write_text("{")
    first = altgrad.runs(runs=tmp_path)
    assert list(first["status"]) == ["completed", "completed", "damaged"] and list(first["optimizer.lr"])[:2] == [1, 2]
    make(tmp_path, "d", lr=4)
    read: list[str] = []
    really = frames._read_spec
    monkeypatch.setattr(frames, "_read_spec", lambda run: (read.append(run.id), really(run))[1])
    assert len(altgrad.runs(runs=tmp_path)) == 4 and set(read) <= {"c", "d"} and "d" in read
    (tmp_path / frames.SPECS).write_text("{")
    assert list(altgrad.runs(runs=tmp_path)["id"]) == list("abcd")


class Odd(Spec):
    """A spec of whatever readers of YAML disagree about."""

    texts: tuple[str, ...] = (
        "1e5", "1e-5", "yes", "NO", "on", "~", "null", "0o17", "017", "0x1f", "1_000", ".5", "1:30", "2024-01-01", "=",
        "nan", ".inf", "", " ", "a: b", "# c", "- d", "'", "\u2028", "\x85", "\t", "*", "&a", "!b", "%", "@"
    )  # fmt: skip
    numbers: tuple[float, ...] = (1e-05, 1e300, 5e-324, 0.1 + 0.2, -0.0, 3.0)
    whole: tuple[int, ...] = (0, -1, 2**31)
    nothing: None = None
    flag: bool = True


def test_stored_specs_are_read_as_documents_are(tmp_path: Path) -> None:
    text = Odd().to_yaml()
    run = RunStore(tmp_path).run("p", "odd").create(text, {})
    assert repr(frames._read_spec(run)) == repr(dict(leaves(Document.parse(text, "spec.yaml").data)))


@pytest.fixture
def export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`export(...)` is `altgrad runs export ...` beside runs a and b: exit status, stdout and stderr."""
    for name in "ab":
        make(tmp_path / "runs", name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["altgrad", "runs", "export", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


def test_export_writes_one_tidy_file(tmp_path: Path, export: Callable[..., tuple[int, str, str]]) -> None:
    assert export("a", "--csv", "a.csv") == (0, "8 values of 1 run written to a.csv.\n", "")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.reader(file))
    store = RunStore(tmp_path / "runs")
    said = tidy_frame([store.find("a")]).itertuples(index=False, name=None)
    assert rows == [list(frames.TIDY), *([str(each) for each in row] for row in said)]
    status, out, _ = export("--project", "p", "--parquet", "p.parquet", "--json")
    assert status == 0 and json.loads(out) == {"file": "p.parquet", "runs": 2, "values": 16}
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "p.parquet"), tidy_frame(store.runs()))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a"], "export writes one file: give --csv FILE or --parquet FILE."),
        (["a", "--csv", "x", "--parquet", "y"], "export writes one file: give --csv FILE or --parquet FILE."),
        (["a", "--project", "p", "--csv", "x"], "export takes runs or --project, not both."),
        (["--project", "q", "--csv", "x"], "No runs in runs/q."),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    export: Callable[..., tuple[int, str, str]], arguments: list[str], why: str
) -> None:
    assert export(*arguments) == (2, "", f"{why}\n")
