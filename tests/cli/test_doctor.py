"""Claims about `altgrad doctor`: what it finds is so, and every warning comes with a remedy."""

import json
import os
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.training import machine
from altgrad.training.machine import EXTRAS, Check, examine

ROOT = Path(__file__).resolve().parents[2]


def checked(runs: Path = Path("runs")) -> dict[str, Check]:
    return {check.name: check for check in examine(runs)}


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    text = CliRunner().invoke(app, ["doctor", "--runs", str(tmp_path)])
    told = json.loads(CliRunner().invoke(app, ["doctor", "--runs", str(tmp_path), "--json"]).stdout)
    assert text.exit_code == 0 and told["warnings"] == sum(row["warning"] is not None for row in told["checks"])
    rows = {row["check"]: row for row in told["checks"]}
    assert list(rows)[:7] == ["torch", "threads", "load", "compiler", "bfloat16", "GPUs", "disk"]
    for name in ("torch", "threads", "GPUs", "extra hf"):
        assert f"{name:<18} {rows[name]['found']}" in text.stdout
    assert rows["torch"]["version"] == torch.__version__ and rows["threads"]["threads"] == torch.get_num_threads()
    assert 0 < rows["bfloat16"]["bf16_to_float32"] < 1000 and rows["disk"]["free_bytes"] > 0


def test_the_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "peers", "docs"}
    for name, (modules, _) in EXTRAS.items():
        assert len(modules) == len(extras[name])
    assert (
        checked()["extra report"].facts == {"installed": True} and "altgrad report" in checked()["extra report"].found
    )


def test_what_is_lacking_is_a_warning_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "getloadavg", lambda: (1e3, 0.0, 0.0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    monkeypatch.setattr(machine, "_seconds", lambda dtype: 9.0 if dtype == torch.bfloat16 else 1.0)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    found = checked(tmp_path / "not" / "yet")
    remedies = {"torch": "2.10 to 2.13", "threads": "OMP_NUM_THREADS=", "load": "longer", "compiler": "apt install g++",
                "bfloat16": "twin: fp32", "disk": "keep: 1"}  # fmt: skip
    assert {name for name, check in found.items() if check.warning} == set(remedies)
    assert all(remedy in found[name].warning for name, remedy in remedies.items())
    assert found["load"].warning.endswith("4096 threads wait for each other and can fall to a quarter of their speed; "
                                          "`threads: 1` loses less.")  # fmt: skip
    assert found["bfloat16"].found == "a Linear's products take 9 x the time of float32"
