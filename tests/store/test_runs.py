"""Runs as folders: names, creation at once, finding, status and setting aside."""

import math
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from altgrad.store import STATUSES, DamagedError, Run, RunFiles, RunStore, run_id


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def make(store: RunStore, name: str, project: str = "demo", **meta: object) -> Run:
    return store.run(project, name).create("steps: 3\n", meta)


BAD_NAMES = [
    *(
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/absolute",
        ".hidden",
        "nul\0",
        "a b",
        "new\nline",
        "end\n",
        "a\\b",
        "ü",
        "~",
        "*",
    ),
    "a" * 101,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_elsewhere_are_refused(store: RunStore, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a run; use 1 to 100 letters"):
        store.run("demo", name)
    with pytest.raises(ValueError, match="cannot name a project"):
        store.run(name, "run")
    with pytest.raises(ValueError, match="cannot name a project"):
        list(store.runs(name))
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["a", "A-b_c.d", "x" * 100, "-", "0", "a..b"])
def test_plain_names_are_accepted(store: RunStore, name: str) -> None:
    assert make(store, name).path == store.root / "demo" / name


def test_a_run_id_is_slug_hash_and_seed() -> None:
    assert run_id("gpt-e4m3", "0123456789abcdef", 7) == "gpt-e4m3-01234567-s7"
    with pytest.raises(ValueError, match="cannot name a run"):
        run_id("../x", "0123456789abcdef", 7)


def test_a_created_run_has_its_spec_and_meta_and_nothing_aside(store: RunStore) -> None:
    run = make(store, "a", loss=math.nan, steps=3)
    assert run.exists
    assert run.spec_text() == "steps: 3\n"
    meta = run.meta()
    assert (meta["status"], meta["project"], meta["id"], meta["steps"]) == ("running", "demo", "a", 3)
    assert math.isnan(meta["loss"])
    assert meta["created"].endswith("Z")
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["a"]
    assert sorted(path.name for path in run.path.iterdir()) == ["meta.json", "spec.yaml"]
    assert run.checkpoints.newest() is None
    assert list(run.metrics()) == list(run.events()) == []


def test_a_run_is_created_once(store: RunStore) -> None:
    run = make(store, "a")
    with pytest.raises(FileExistsError, match="resume it or set it aside"):
        run.create("steps: 4\n", {})
    assert run.spec_text() == "steps: 3\n"
    assert [path.name for path in run.path.parent.iterdir()] == ["a"]


def test_a_death_at_any_point_of_creation_leaves_no_run_or_a_whole_one(store: RunStore, python) -> None:
    script = """
import itertools, os, signal, sys
from pathlib import Path
from altgrad.store import Run
done, fatal = itertools.count(), int(sys.argv[2])
def audit(event, args):
    if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"} and next(done) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
run = Run(Path(sys.argv[1]))
sys.addaudithook(audit)
run.create("steps: 3", {"seed": 1})
run.update_meta(status="completed")
"""
    seen = set()
    for fatal in range(100):
        run = store.run("demo", f"r{fatal}")
        process = python(script, run.path, fatal)
        process.communicate()
        seen.add(run.exists and run.status)
        assert run.exists == run.path.exists() == (run.id in {each.id for each in store.runs()})
        if run.exists:
            assert (run.spec_text(), run.meta()["seed"]) == ("steps: 3", 1)
        if process.returncode == 0:
            break
        shutil.rmtree(store.root, ignore_errors=True)
    assert process.returncode == 0
    assert seen == {False, "dead", "completed"}


def test_leftovers_of_dead_processes_are_cleared_later(store: RunStore) -> None:
    run = make(store, "a")
    old, fresh, deleted = (run.path.with_name(name) for name in (".new-b-0", ".new-c-0", ".deleted-d-0"))
    for folder in (old, fresh, deleted):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    left = run.path / ".meta.json.1-1.aside"
    left.write_text("half")
    make(store, "e")
    assert (old.exists(), fresh.exists(), deleted.exists()) == (False, True, False)
    with run.lock():
        assert not left.exists()
    assert [each.id for each in store.runs()] == ["a", "e"]


def test_meta_is_updated_field_by_field(store: RunStore) -> None:
    run = make(store, "a", seed=1)
    run.update_meta(status="completed", best=-math.inf)
    assert (run.status, run.meta()["seed"], run.meta()["best"]) == ("completed", 1, -math.inf)
    with pytest.raises(ValueError, match=r"'done' is not a status; use one of running, completed"):
        run.update_meta(status="done")


def test_no_flipped_bit_in_meta_or_spec_goes_unseen(store: RunStore) -> None:
    run = make(store, "a", seed=1, parameters=8192)
    for name, reader in (("meta.json", run.meta), ("spec.yaml", run.spec_text)):
        good = (run.path / name).read_bytes()
        for bit in range(8 * len(good) - 8 * (name == "meta.json")):  # a newline at the end of meta.json says nothing
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            (run.path / name).write_bytes(damaged)
            with pytest.raises(DamagedError):
                reader()
        (run.path / name).write_bytes(good)
    (run.path / "meta.json").write_text('{"parameters": 1}')
    assert run.meta() == {"parameters": 1}, "written by hand, without a seal"


def test_logs_of_a_run_that_ended_are_as_long_as_they_were(store: RunStore) -> None:
    run = make(store, "a")
    files = RunFiles(run)
    for step in range(3):
        files.metrics(step, {"x": step})
        files.event(step, "notice", "there")
    files.close()
    run.update_meta(status="completed", logged=files_sizes(run))
    assert [row["x"] for row in run.metrics()] == [0, 1, 2] and run.last("x")["x"] == 2
    for name, readers in (
        ("metrics.jsonl", (lambda: list(run.metrics()), lambda: run.last("x"))),
        ("events.jsonl", (lambda: list(run.events()),)),
    ):
        lines = (run.path / name).read_bytes().splitlines(keepends=True)
        (run.path / name).write_bytes(b"".join(lines[:2]))
        for reader in readers:
            with pytest.raises(DamagedError, match="its end is lost"):
                reader()
    run.update_meta(status="running", logged={})
    assert len(list(run.metrics())) == 2, "a run that goes on may have any length"


def files_sizes(run: Run) -> dict[str, int]:
    return {name: (run.path / name).stat().st_size for name in ("metrics.jsonl", "events.jsonl")}


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_meta_is_a_plain_error(store: RunStore, text: str) -> None:
    run = make(store, "a")
    (run.path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta.json is not a JSON object"):
        run.meta()


def test_a_running_run_that_nobody_holds_is_dead(store: RunStore) -> None:
    run = make(store, "a")
    assert run.status == "dead"
    with run.lock():
        assert run.status == "running"
        assert run.holder is not None
        assert (run.holder.pid, run.holder.host) == (os.getpid(), socket.gethostname())
    assert (run.status, run.holder) == ("dead", None)
    for status in STATUSES[1:]:
        run.update_meta(status=status)
        assert run.status == status


def test_asking_for_the_status_writes_nothing(store: RunStore) -> None:
    run = make(store, "a")
    before = sorted(path.name for path in run.path.iterdir())
    assert (run.status, run.holder) == ("dead", None)
    assert sorted(path.name for path in run.path.iterdir()) == before


def test_setting_aside_keeps_everything_under_the_next_number(store: RunStore) -> None:
    for number in (1, 2):
        aside = make(store, "a", seed=number).set_aside()
        assert (aside.id, aside.meta()["seed"]) == (f"a.old-{number}", number)
        assert not store.run("demo", "a").exists
    make(store, "a")
    assert [run.id for run in store.runs()] == ["a"]
    assert [run.id for run in store.runs(set_aside=True)] == ["a", "a.old-1", "a.old-2"]


def test_deleting_removes_one_run_and_no_other(store: RunStore) -> None:
    make(store, "a").delete()
    make(store, "b")
    assert [path.name for path in (store.root / "demo").iterdir()] == ["b"]


def test_runs_are_listed_by_project_and_id_and_strangers_are_not(store: RunStore) -> None:
    assert list(store.runs()) == []
    for project, name in (("p2", "b"), ("p1", "z"), ("p2", "a")):
        make(store, name, project)
    (store.root / "p1" / "notes").mkdir()
    (store.root / "README").write_text("hello")
    (store.root / ".trash" / "x").mkdir(parents=True)
    assert [(run.project, run.id) for run in store.runs()] == [("p1", "z"), ("p2", "a"), ("p2", "b")]
    assert [run.id for run in store.runs("p2")] == ["a", "b"]
    assert list(store.runs("p3")) == []


def test_a_run_is_found_by_id_beginning_project_and_path(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "gpt-0123-s1")
    make(store, "gpt-4567-s1")
    make(store, "twin", "p1"), make(store, "twin", "p2")
    run.set_aside()
    run = make(store, "gpt-0123-s1")
    monkeypatch.chdir(run.path)
    for text in ("gpt-0123-s1", "gpt-0", "demo/gpt-0123-s1", str(run.path), "../gpt-0123-s1", "."):
        assert store.find(text).path == run.path, text
    assert store.find("gpt-0123-s1.old-1").id == "gpt-0123-s1.old-1"
    assert store.find("p2/twin").project == "p2"
    with pytest.raises(ValueError, match="'gpt-' is ambiguous: it matches 2 runs, demo/gpt-0123-s1, demo/gpt-4567-s1"):
        store.find("gpt-")
    with pytest.raises(ValueError, match="it matches 2 runs"):
        store.find("twin")
    with pytest.raises(ValueError, match=r"is not a run in .*Did you mean 'gpt-0123-s1'"):
        store.find("gtp-0123-s1")
    for text in ("", "nul\0", "x" * 5000, "/", "../../.."):
        with pytest.raises(ValueError, match="is not a run in"):
            store.find(text)
