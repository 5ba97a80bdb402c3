"""`make test` with another torch runs the same tests elsewhere, and never brings a CUDA build unasked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("Makefile", "constraints.txt", "pyproject.toml")

pytestmark = pytest.mark.needs("make")


def make(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """make in a folder with our files, without what a make around the tests passes down."""
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH", "CUDA"))
    }
    return subprocess.run(
        ["make", *words], cwd=folder, env=outside, capture_output=True, text=True, check=False, timeout=60
    )


def test_another_torch_has_an_environment_of_its_own_and_the_same_commands(tmp_path: Path) -> None:
    pinned, other = (make(tmp_path, "-n", "test", *words).stdout for words in ((), ("TORCH=2.11",)))
    assert "pytest" in pinned and ".venv-torch" not in pinned and ".venv/" not in other
    commands = [
        [line for line in text.splitlines() if "pytest" in line or "bin/mypy" in line] for text in (pinned, other)
    ]
    assert commands[1] == [line.replace(".venv/", ".venv-torch2.11/") for line in commands[0]] and len(commands[0]) == 2


def test_its_constraints_differ_in_torch_and_setuptools_alone(tmp_path: Path) -> None:
    name = "build/constraints-torch2.11.txt"
    assert make(tmp_path, name, "TORCH=2.11").returncode == 0
    ours, theirs = ((tmp_path / file).read_text().splitlines() for file in ("constraints.txt", name))
    assert set(theirs) - set(ours) == {"torch==2.11.*", "setuptools>=77,<82"}
    assert sorted(line.partition("==")[0] for line in set(ours) - set(theirs)) == ["setuptools", "torch"]


@pytest.mark.parametrize(("words", "refused"), [((), True), (("CUDA=yes",), False)])
def test_a_cuda_build_is_refused_in_one_line_unless_asked_for(
    tmp_path: Path, words: tuple[str, ...], refused: bool
) -> None:
    """A pip that would bring a CUDA build, and notes what it was told."""
    python = tmp_path / ".venv-torch2.11" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\necho "$@" >> calls\n'
        'case "$*" in *--report*) echo \'"name": "nvidia-cudnn-cu13"\' > .venv-torch2.11/torch.json;; esac\n'
    )
    python.chmod(0o755)
    done = make(tmp_path, "venv", "TORCH=2.11", *words)
    calls = (tmp_path / "calls").read_text()
    assert (done.returncode != 0) == refused and ("-e .[dev]" in calls) != refused
    assert ("torch 2.11 is a CUDA build here" in done.stderr) == refused
    assert "-c build/constraints-torch2.11.txt" in calls or refused
