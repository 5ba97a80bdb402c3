"""Claims about `report --from wandb:`: the records of W&B's own client, at a server on the loopback, are the store's.

The runs are written to the store, sent by `altgrad sync`'s replay through the real client, and read back through
`wandb.Api` and `scan_history`.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import altgrad
from altgrad.cli.main import app
from altgrad.reports.archive import write_data
from altgrad.reports.compare import compare_runs
from altgrad.reports.project import Project
from altgrad.reports.section import drawn_metrics
from altgrad.reports.sources import load_project
from altgrad.reports.wandb_runs import load_from_wandb
from altgrad.store import Run, RunFiles, RunStore
from altgrad.store.mirror import MirrorSpec, replay
from tests.store.wandb_server import Kept, WandbServer

LONG = 2300
"""Rows of the long run: three pages of the report's 1000, and more than the 500 that a sampled history has."""


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    found = WandbServer()
    yield found
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # else its core, and the variable that leads child processes to it, stay for later tests
    found.close()


@pytest.fixture(autouse=True)
def client(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is sent to the loopback, and what it keeps to a folder of the test."""
    for name, value in (server.environment | {"WANDB_CACHE_DIR": str(tmp_path), "WANDB_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    server.answer, server.pages, server.page, server.exported, server.broken = "well", [], 50, 0, ""


@pytest.fixture(scope="module")
def runs(
    server: WandbServer, tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Run], make_spec: Any
) -> RunStore:
    """A store with three runs (monitored, diverged by a NaN, long with a spike), all sent to the server."""
    root = tmp_path_factory.mktemp("sent")
    made = [
        make_run(root, make_spec("e5m2", "manifold_adamw"), points=20),
        make_run(root, make_spec("e3m4", seed=1), status="diverged", points=20, sited=False),
    ]
    plain = make_spec("fp32")
    made.append(make_run(root, plain | {"steps": LONG}, points=10, sited=False))
    long = RunFiles(made[-1])
    for step in range(1, LONG + 1):
        value = math.inf if step == 1234 else 50.0 if step == 777 else 1 / step
        long.metrics(step, {"train/gradient_norm": value})
    long.close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environment | {"WANDB_DIR": str(root)}).items():
            patch.setenv(name, value)
        for run in made:
            replay(run, MirrorSpec.of("wandb"))
    return RunStore(root)


def invoke(*arguments: str | Path) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def frames(project: Project, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    folder.mkdir()
    write_data(project, folder)
    rows = pd.read_parquet(folder / "data.parquet").sort_values(["run", "metric"], kind="stable", ignore_index=True)
    return rows, pd.read_csv(folder / "data.csv")


@pytest.mark.parametrize("exported", [0, 15])
def test_the_frame_from_wandb_is_the_store_s(
    server: WandbServer, runs: RunStore, tmp_path: Path, exported: int
) -> None:
    server.page, server.exported = 2, exported  # so that the runs come in two pages, and rows from two places
    found, stored = load_from_wandb("wandb:tester/study", drawn_metrics()), load_project(runs, "study")
    assert found.name == "study" and len(found.records) == 3
    for one, two in zip(found.records, stored.records, strict=True):
        assert one.series.keys() == two.series.keys() and len(one.series) > 3
        for key in one.series:
            np.testing.assert_array_equal(one.series[key], two.series[key], err_msg=f"{one.id} {key}")
        assert (one.id, one.status, one.arm, one.condition, one.rate, one.seed, one.step, one.problems) == (
            two.id, two.status, two.arm, two.condition, two.rate, two.seed, two.step, two.problems
        )  # fmt: skip
    for one, two in zip(frames(found, tmp_path / "there"), frames(stored, tmp_path / "here"), strict=True):
        pd.testing.assert_frame_equal(one, two)


def test_every_row_is_read_page_by_page_with_its_spike_and_its_infinity(server: WandbServer, runs: RunStore) -> None:
    found = load_from_wandb("wandb:tester/study", drawn_metrics())
    (record,) = [each for each in found.records if not each.arm.storage]
    steps, norms = record.series["train/gradient_norm"]
    assert norms[steps == 777] == 50.0 and norms[steps == 1234] == math.inf and steps[-1] == LONG
    rows = len(server.runs[record.id].history)
    assert [page for page in server.pages if page[0] >= 1000] == [(1000, 2000), (2000, rows)]
    monitored = next(list(each.series) for each in found.records if each.arm.method == "manifold_adamw")
    assert [key.split(".")[1] for key in monitored if key.startswith("stall/")] == ["0"] * 4 + ["1"] * 4


def test_a_diverged_run_is_a_result_and_no_failure(runs: RunStore) -> None:
    (record,) = [each for each in load_from_wandb("wandb:tester/study", drawn_metrics()).records if each.diverged]
    assert record.status == "diverged" and math.isnan(record.series["train/loss"][1][-1])
    assert record.outcome == pytest.approx(math.log(256))


def test_runs_without_history_or_of_others_are_listed(server: WandbServer) -> None:
    server.runs["empty"] = Kept("odd", config={"optimizer": {"kind": "adamw", "lr": 1e-3}, "seed": 4}, exit_code=0)
    server.runs["foreign"] = Kept("odd", config={"lr": 3}, lines={"wandb-history.jsonl": ['{"_step":0,"loss":1}']})
    empty, foreign = load_from_wandb("wandb:tester/odd", drawn_metrics()).records
    assert empty.seed == 4 and empty.series == {} and empty.status == "completed"
    assert empty.problems == ["completed, but without any validation loss."]
    assert foreign.problems == ["its config holds no AltGrad spec."] and foreign.status == "running"


@pytest.mark.long
def test_a_history_that_breaks_off_is_a_problem_of_its_run(server: WandbServer) -> None:
    config = {"optimizer": {"kind": "adamw", "lr": 1e-3}, "seed": 4}
    rows = ['{"_step":0,"step":0,"validation/loss":5.5}', '{"_step":1,"step":10,"validation/loss":3}']
    server.runs["cut"] = Kept("cut", config=config, exit_code=0, lines={"wandb-history.jsonl": rows})
    server.exported, server.broken = 1, "HistoryPage"
    (record,) = load_from_wandb("wandb:tester/cut", drawn_metrics()).records
    assert record.seed == 4 and record.status == "completed"
    assert record.problems[0].startswith("its history broke off: ") and "\n" not in record.problems[0]


def test_a_report_is_written_from_wandb(runs: RunStore, tmp_path: Path) -> None:
    done = invoke("report", "--from", "wandb:tester/study", "--out", tmp_path / "r", "--static", "--json")
    assert done.exit_code == 0 and "Traceback" not in done.stderr and (tmp_path / "r" / "report.html").is_file()


@pytest.mark.parametrize(
    ("place", "answer", "said"),
    [
        ("wandb:tester/study", "error", "W&B did not give the runs of tester/study: "),
        (
            "wandb:tester/nothing",
            "well",
            "W&B did not give the runs of tester/nothing: Could not find",
        ),
        ("wandb:others/study", "well", "Could not find project study."),
    ],
)
def test_a_server_that_refuses_is_one_line_and_exit_code_3(
    server: WandbServer, runs: RunStore, tmp_path: Path, place: str, answer: str, said: str
) -> None:
    server.answer = answer
    done = invoke("report", "--from", place, "--out", tmp_path / "r")
    assert done.exit_code == 3 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "r").exists()


def test_no_key_is_one_line_and_exit_code_3(server: WandbServer, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    keyless = {"WANDB_BASE_URL": server.url, "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = run_cli("report", "--from", "wandb:tester/study", env=keyless)
    assert done.returncode == 3 and "wandb login" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_another_place_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="write wandb:ENTITY/PROJECT"):
        load_from_wandb("team/study", drawn_metrics())


def others_runs(server: WandbServer, project: str, *, group: bool = False, names: bool = False) -> None:
    """Runs of another training loop: two precisions, three seeds, and one that crashed."""
    for precision in ("bf16", "fp8"):
        for seed in range(4):
            id = f"{precision}-s{seed}" if names else f"{project}-{seed}{precision}"
            rows = [{"_step": s, "train/global_step": 2 * s, "eval/loss": 3 / (1 + s) + 0.1 * (precision == "fp8")
                     + 0.001 * seed * (1 + (precision == "fp8")), "grad_norm": 1.0} for s in range(40)]  # fmt: skip
            server.runs[id] = Kept(
                project, config={"model": "tiny", "precision": precision, "seed": seed, "output_dir": f"out/{id}"},
                group=precision if group else None, exit_code=0 if seed < 3 else None,
                lines={"wandb-history.jsonl": list(map(json.dumps, rows)),
                       "wandb-summary.json": [json.dumps(rows[-1])]},
            )  # fmt: skip
            if names:
                server.runs[id].config = {"model": "tiny"}


@pytest.mark.parametrize(
    ("project", "form"), [("configs", {}), ("groups", {"group": True}), ("names", {"names": True})]
)
def test_runs_of_others_are_compared_by_config_group_or_name(
    server: WandbServer, project: str, form: dict[str, bool]
) -> None:
    others_runs(server, project, **form)
    found = compare_runs([f"wandb:tester/{project}"])
    (arm,) = found.verdict.judged
    assert (arm.runs, arm.interval.n, arm.verdict) == (3, 3, "worse") and "bf16" in found.verdict.reference
    assert arm.interval.mean == pytest.approx(0.101) and "'eval/loss'; 2 not finished" in found.notes[0]
    if project == "configs":
        assert found.differences == {"precision": ["bf16", "fp8"]}


def test_altgrads_own_runs_are_compared_as_those_of_the_store(server: WandbServer, runs: RunStore) -> None:
    found = altgrad.compare("wandb:tester/study").drop(columns="arm")
    pd.testing.assert_frame_equal(found, altgrad.compare("study", runs=runs.root).drop(columns="arm"))


def test_a_comparison_of_a_project_that_is_not_there_is_exit_code_3(server: WandbServer) -> None:
    done = invoke("compare", "wandb:tester/nothing")
    assert done.exit_code == 3 and "did not give the runs of tester/nothing" in done.stderr, done.stderr
