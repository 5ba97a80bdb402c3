"""Claims about `track` in a spec and `altgrad sync`, in processes of their own."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.document import Document
from altgrad.spec import SpecError
from altgrad.training import RunSpec
from tests.store.wandb_server import KEY, WandbServer

SPEC = """\
project: demo
name: tiny
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 64}
data: {kind: text, batch_size: 32}
optimizer: {kind: adamw, lr: 3e-3}
steps: 6
threads: 1
evaluate_every: 6
checkpoint_every: 2
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_track_is_no_part_of_a_runs_fingerprint_but_stands_in_its_spec() -> None:
    plain, tracked = RunSpec.parse(SPEC), RunSpec.parse(SPEC + "track: [tensorboard, {kind: wandb, group: a}]\n")
    assert plain.fingerprint() == tracked.fingerprint() and plain != tracked
    assert RunSpec.parse(tracked.to_yaml()) == tracked and "group: a" in tracked.to_yaml()


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ("[wanb]", "'wanb' is not a sink. Did you mean 'wandb'?"),
        ("[{kind: wandb, api_key: abc}]", "looks like a secret"),
        (f"[{{kind: wandb, group: {KEY}}}]", "looks like a secret"),
        ("[{kind: wandb, mode: shared}]", "mode"),
        ("[wandb, wandb]", "track names wandb twice"),
    ],
)
def test_sinks_that_make_no_sense_are_refused(track: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        RunSpec.check(Document.parse(f"{SPEC}track: {track}\n", "tiny.yaml"))
    assert KEY not in str(error.value)


@pytest.mark.long
def test_a_run_whose_wandb_is_out_of_reach_completes_and_is_synced_later(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPEC + "track: [{kind: wandb, tags: [late]}]\n")
    gone = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    done = run_cli("train", "tiny.yaml", "--json", env=gone)
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["status"] == "completed"
    assert done.stderr.startswith("warning: wandb: ") and done.stderr.count("\n") == 1
    run = tmp_path / facts["run"]
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events.count("warning") == 1
    places = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(places) > 5 and not [path for path in places if KEY.encode() in path.read_bytes()]
    server = WandbServer()
    try:
        for _ in range(2):
            synced = run_cli("sync", "tiny", env=server.environment)
            assert synced.returncode == 0 and synced.stdout.startswith(f"demo/{run.name} -> wandb: {server.url}")
            kept = server.runs[run.name]
            assert len(kept.history) == len((run / "metrics.jsonl").read_text().splitlines())
            assert kept.tags == ["late"] and kept.config["steps"] == 6 and KEY not in done.stderr + synced.stderr
    finally:
        server.close()


def test_sync_says_what_is_wrong_in_one_line(run_cli: Cli, tmp_path: Path) -> None:
    nobody = run_cli("sync")
    assert nobody.returncode == 2 and nobody.stderr == "name a run, or a --project.\n"
    missing = run_cli("sync", "nothing")
    assert missing.returncode == 2 and "is not a run in runs" in missing.stderr
