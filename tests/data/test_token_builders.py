"""Builders of tokens as processes: killed, stopped, and several at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from altgrad.data.documents import SAMPLE, FileCorpus, locate
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import load_tokens

pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Part of the sample: 30 documents per split."""
    path = tmp_path / "part.parquet"
    pd.read_parquet(locate(SAMPLE)).groupby("split").head(30).to_parquet(path)
    return path


def folders(cache: Path) -> list[Path]:
    return [entry for entry in cache.iterdir() if entry.is_dir()]


BUILDER = """
import sys, time
from pathlib import Path
from altgrad.data.documents import FileCorpus
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import load_tokens, on_progress

def slowly(done, total):
    if done > total * 0.7 and sys.argv[2] == "wait":
        print("building", flush=True)
        time.sleep(60)

on_progress.set(slowly)
print("ready", flush=True)
print(load_tokens(FileCorpus(Path(sys.argv[1]), "text"), BPE(bpe=300)).counts["train_tokens"])
"""


@pytest.fixture
def builder(source: Path, cache: Path) -> Callable[[str], "subprocess.Popen[str]"]:
    def start(how: str) -> "subprocess.Popen[str]":
        env = os.environ | {"PYTHONPATH": str(ROOT), "ALTGRAD_CACHE": str(cache.parent)}
        command = [sys.executable, "-c", BUILDER, str(source), how]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    return start


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_builder_left_is_never_used_and_swept_away(
    builder: Callable[[str], "subprocess.Popen[str]"], source: Path, cache: Path, number: int
) -> None:
    with builder("wait") as process:
        assert told(process) == "ready" and told(process) == "building"
        process.send_signal(number)
        assert process.wait() == -number
    (left,) = folders(cache)
    assert left.suffix == ".building" and (left / "train.bin").exists()
    assert load_tokens(FileCorpus(source, "text"), BPE(bpe=300)).counts["train_documents"] == 30
    assert [entry.suffix for entry in folders(cache)] == [""]


def test_a_builder_waits_for_another_process_and_takes_over_when_that_is_killed(
    builder: Callable[[str], "subprocess.Popen[str]"], source: Path, cache: Path
) -> None:
    with builder("wait") as first:
        assert told(first) == "ready" and told(first) == "building"
        with builder("go") as second, builder("go") as third:
            assert told(second) == told(third) == "ready"
            time.sleep(0.2)
            assert second.poll() is None and third.poll() is None
            first.kill()
            counts = {told(second), told(third)}
            assert second.wait() == third.wait() == 0
    assert counts == {str(load_tokens(FileCorpus(source, "text"), BPE(bpe=300)).counts["train_tokens"])}
    assert [entry.suffix for entry in folders(cache)] == [""]
