"""Claims about specs with interventions: oracle and advice work on them, and what is advised can be trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.store import Run
from altgrad.training import RunSpec

BOTH = "interventions=[partition_clip, {kind: mantissa_shift, good_every: 1}]"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from tests.diagnosis.conftest import made

    # e1m6 weights in e1m6 storage: e0m7 is the same grid.
    coarse = 'storage=[{match: "blocks.*.weight", kind: nearest, format: e1m6}]'
    return made(tmp_path_factory.mktemp("runs"), BOTH, coarse, "steps=3", "checkpoint_every=3")


def test_the_oracle_foretells_a_spec_with_interventions(guarded: Run, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text((guarded.path / "spec.yaml").read_text())
    found = CliRunner().invoke(app, ["diagnose", str(tmp_path / "spec.yaml"), "--formats", "e4m3fn", "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["own"]["overall"] >= 0


@pytest.mark.parametrize("more", [(), ("--no-data",)])
def test_what_is_advised_of_such_a_run_can_be_trained(
    guarded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["diagnose", str(guarded.path), "--formats", "e4m3fn,e0m7,e1m6", "--policy-out", "p.yaml", "--json", *more]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    advice = json.loads(found.stdout)["advice"]
    # Of weights on the grid of their storage nothing is advised, under whatever name that grid goes.
    assert not any(row["operand"] == "weight" for row in advice)
    spec = RunSpec.load(tmp_path / "p.yaml")
    kinds = [each.kind for each in spec.interventions]
    assert kinds == (["mantissa_shift"] if more else ["partition_clip", "mantissa_shift"])
    trained = CliRunner().invoke(app, ["train", "p.yaml", "--dry-run"])
    assert trained.exit_code == 0, trained.output


def test_a_replay_of_such_a_run_works(guarded: Run, make: Callable[..., Run]) -> None:
    found = CliRunner().invoke(app, ["diagnose", str(guarded.path), "--replay", "--formats", "e4m3fn", "--json"])
    assert found.exit_code == 0, found.output
