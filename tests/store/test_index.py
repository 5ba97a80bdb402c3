"""Claims about the index of runs: it never says anything that the folders do not, whatever happens to it."""

import json
from pathlib import Path

import pytest

from altgrad.store import RunStore, index
from altgrad.store.index import INDEX, Summary, summaries


def fill(root: Path, count: int) -> RunStore:
    store = RunStore(root)
    for number in range(count):
        run = store.run(f"p{number % 2}", f"r{number:03}").create("seed: 0\n", {"status": "completed", "steps": 10})
        (run.path / "metrics.jsonl").write_text(json.dumps({"step": 10, "validation/loss": number / 7}) + "\n")
    return store


def plainly(store: RunStore, project: str | None = None) -> list[Summary]:
    return [index.summary(run) for run in store.runs(project)]


def test_what_is_listed_is_what_the_folders_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path, 12)
    assert list(summaries(store)) == plainly(store)
    read: list[str] = []
    first = index._read
    monkeypatch.setattr(index, "_read", lambda run: (read.append(run.id), first(run))[1])
    found = list(summaries(store))
    assert read == [] and len(found) == 12, "nothing changed, so nothing is read"
    run = store.run("p1", "r003")
    run.update_meta(status="diverged")
    with (store.run("p0", "r004").path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "validation/loss": "nan"}\n')
    store.run("p0", "r006").delete()
    store.run("p0", "new").create("seed: 1\n", {"status": "failed"})
    found = list(summaries(store))
    assert sorted(set(read)) == ["new", "r003", "r004"] and len(found) == 12
    by_id = {one.run.id: one for one in found}
    assert by_id["r003"].status == "diverged" and by_id["r004"].step == 12 and str(by_id["r004"].loss) == "nan"
    assert [repr(one) for one in found] == [repr(one) for one in plainly(store)]


def test_a_project_is_listed_without_forgetting_the_others(tmp_path: Path) -> None:
    store = fill(tmp_path, 6)
    list(summaries(store))
    before = json.loads((tmp_path / INDEX).read_text())
    store.run("p1", "r001").delete()
    assert list(summaries(store, "p1")) == plainly(store, "p1")
    after = json.loads((tmp_path / INDEX).read_text())
    assert before["runs"].keys() - after["runs"].keys() == {"p1/r001"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"layout": 0, "runs": {}}', '{"layout": 1, "runs": {"p0/r000": {}}}', '{"layout": 1}']
)
def test_a_damaged_index_is_built_again(tmp_path: Path, text: str) -> None:
    store = fill(tmp_path, 3)
    list(summaries(store))
    good = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_text(text)
    assert list(summaries(store)) == plainly(store)
    assert (tmp_path / INDEX).read_bytes() == good


def test_a_run_that_calls_itself_running_is_asked_each_time(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.run("p", "r").create("seed: 0\n", {})
    assert [one.status for one in summaries(store)] == ["dead"]
    with run.lock():
        assert [one.status for one in summaries(store)] == ["running"]
    assert [one.status for one in summaries(store)] == ["dead"]
