"""Claims about shell completion: what the tab key offers, by Typer's own protocol, and that it loads no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.formats import CATALOG, FloatFormat
from altgrad.spec.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def asked(line: str) -> dict[str, str]:
    """What bash is to ask at the end of this line."""
    words = line.split()
    return {
        "_ALTGRAD_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - (not line.endswith(" "))),
    }


def offered(line: str) -> list[str]:
    done = CliRunner().invoke(app, [], env=asked(line), prog_name="altgrad")
    assert done.exit_code == 0, done.output
    return done.stdout.split()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for place in (
        "runs/fp4/mx-11111111-s0",
        "runs/fp4/mx-11111111-s1",
        "runs/fp8/e4m3-22222222-s0",
        "else/other/x-3-s0",
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "meta.json").write_text(json.dumps({"status": "completed"}))
    return tmp_path


@pytest.mark.parametrize(
    "command", ["runs show", "runs rm", "runs diff x", "runs export", "watch", "evaluate", "mismatch", "export", "sync",
                "diagnose", "diagnose x --against", "quantize-model"],
)  # fmt: skip
def test_runs_are_offered_by_id_wherever_a_command_takes_one(store: Path, command: str) -> None:
    assert offered(f"altgrad {command} mx") == ["mx-11111111-s0", "mx-11111111-s1"]


def test_a_run_is_offered_with_its_project_once_that_is_typed_and_from_the_store_that_was_named(store: Path) -> None:
    assert offered("altgrad runs show fp8/") == ["fp8/e4m3-22222222-s0"]
    assert offered("altgrad runs show --runs else ") == ["x-3-s0"]
    assert offered("altgrad runs show --runs nowhere ") == offered("altgrad runs show zz") == []
    assert offered("altgrad report --project fp") == offered("altgrad sync --project fp") == ["fp4", "fp8"]


def test_formats_kinds_commands_and_choices_are_offered(store: Path) -> None:
    names = [name for entry in CATALOG for name in (entry.name, *entry.aliases)]
    assert offered("altgrad formats show ") == names
    assert all(FloatFormat.parse(name) for name in names)
    assert offered("altgrad quantize-model m --format mx") == [name for name in names if name.startswith("mx")]
    assert offered("altgrad diagnose m --formats e4m3fn,e3m4p") == ["e4m3fn,e3m4p3109"]
    assert offered("altgrad kinds ") == list(FAMILIES)
    assert offered("altgrad tr") == ["train"]
    assert offered("altgrad train x --resume ") == ["auto", "never"]
    assert offered("altgrad train ") == []  # the shell then offers files


def test_completion_loads_no_torch_and_gives_up_at_ctrl_c_without_a_word(store: Path) -> None:
    code = (
        "import atexit, signal, sys; sys.argv[0] = 'altgrad'\n"
        "atexit.register(lambda: print(signal.getsignal(signal.SIGINT) == signal.SIG_DFL, file=sys.stderr))\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'yaml' in sys.modules, file=sys.stderr))\n"
        "from altgrad.cli.main import main; main()"
    )
    environment = os.environ | asked("altgrad runs show fp4/") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=store, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["fp4/mx-11111111-s0", "fp4/mx-11111111-s1"]
    assert done.stderr.split() == ["False", "False", "True"]
