"""Claims about `altgrad train`, as a user runs it: in a process of its own where the claim is about one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from altgrad.cli.main import app
from altgrad.cli.train import again

ROOT = Path(__file__).resolve().parents[2]

SPEC = """\
project: demo
name: tiny
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 64}
data: {kind: text, batch_size: 32}
precision:
  rules:
  - match: blocks.*
    weight: e4m3fn
    input: e4m3fn
    grad_output: e5m2
optimizer: {kind: adamw, lr: 3e-3}
steps: 6
threads: 1
evaluate_every: 6
evaluate_limit: 2
checkpoint_every: 2
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def short(tmp_path: Path, spec: Path) -> Path:
    """The spec on a text of a page, of which an evaluation is a moment."""
    text = "\n\n".join(f"Article {number} shall apply from the day of its publication." for number in range(300))
    (tmp_path / "page.txt").write_text(text)
    spec.write_text(SPEC.replace("batch_size: 32", "source: page.txt, batch_size: 2"))
    return spec


def invoke(*arguments: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, list(arguments))


def test_one_command_trains_and_says_where_the_run_is(run_cli: Cli, spec: Path, tmp_path: Path) -> None:
    done = run_cli("train", spec.name)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert "unigram 4.47" in done.stdout and "order-6 n-gram 1.17" in done.stdout
    (run,) = (tmp_path / "runs" / "demo").iterdir()
    assert f"runs/demo/{run.name}" in done.stdout
    assert done.stdout.splitlines()[-2].startswith(f"next altgrad diagnose {run.name}  (")
    assert {path.name for path in run.iterdir()} >= {
        "spec.yaml", "meta.json", "metrics.jsonl", "events.jsonl", "checkpoints"
    }  # fmt: skip
    meta = json.loads((run / "meta.json").read_text())
    assert meta["status"] == "completed" and meta["step"] == 6 and meta["device"] == "cpu"
    assert 0 < meta["quantised_parameters"] < meta["parameters"]
    again = invoke("train", spec.name, "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["status"] == "completed"
    assert "was completed before at step 6" in invoke("train", spec.name).stdout
    anew = invoke("train", spec.name, "--resume", "never", "--set", "steps=6", "--json")
    assert json.loads(anew.stdout)["step"] == 6 and "the earlier run is archived as" in anew.stderr
    assert anew.exit_code == 0 and (run.parent / f"{run.name}.old-1").is_dir()
    assert _losses(run) == _losses(run.parent / f"{run.name}.old-1")


def _losses(run: Path) -> list[str]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [float(row["train/loss"]).hex() for row in rows if "train/loss" in row]


def test_dry_run_shows_every_cast_in_80_columns_and_writes_nothing(spec: Path, tmp_path: Path) -> None:
    done = invoke("train", spec.name, "--dry-run")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and max(map(len, lines)) <= 80
    assert lines[:7] == [
        "rule 0 at tiny.yaml:7:5",
        "  layers         blocks.*.attention.qkv x2, blocks.*.attention.proj x2,",
        "                 blocks.*.mlp.up x2, blocks.*.mlp.down x2",
        "  input, weight  e4m3fn current",
        "  grad_output    e5m2 current",
        "no rule matches",
        "  layers    head",
    ]
    facts = json.loads(invoke("train", spec.name, "--dry-run", "--json").stdout)
    assert facts["layers"][0]["slots"]["grad_weight.grad_output"] == "e5m2 current" and len(facts["layers"]) == 9
    assert facts["quantised_parameters"] == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert any(line.startswith("bytes ") for line in lines)
    assert facts["estimate"]["weights"] == 4 * facts["parameters"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_dry_run_shows_how_the_weight_of_a_tied_head_is_stored(spec: Path) -> None:
    storage = 'storage: [{match: "[eh]*d.weight", kind: nearest, format: e4m3fn}]\n'
    spec.write_text(SPEC.replace("model: {", "model: {tied: true, ") + storage)
    done = invoke("train", spec.name, "--dry-run")
    head = done.stdout.splitlines()[5:9]
    assert head[1:] == ["  layers    head", "  not cast", "  stored    nearest e4m3fn"]
    assert "embed.weight" not in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps: 6": "stepz: 6"}, "tiny.yaml:12:1: 'stepz' is not a key of a run spec. Did you mean 'steps'?"),
        ({"lr: 3e-3": "lr: fast"}, "tiny.yaml:11:30: "),
        ({"weight: e4m3fn": "weight: e4m3f7"}, "tiny.yaml:8:13: "),
        ({"weight: e4m3fn": "weight: e4m3"}, "say e4m3fn (max 448: OCP, H100, TE, torch) or e4m3ieee (max 240)"),
        ({"match: blocks.*": "match: block.*"}, "tiny.yaml:7:12: 'block.*' matches no Linear layer."),
        ({"kind: adamw": "kind: adamww"}, "tiny.yaml:11:19: 'adamww' is not an optimizer. Did you mean 'adamw'?"),
        ({"width: 16": "width: 17"}, "width 17 is not a multiple of heads 2"),
        ({"threads: 1": "threads: 1\nthreads: 2"}, "tiny.yaml:14:1: Duplicate key 'threads'."),
        ({"batch_size: 32": "source: nowhere.txt"}, "nowhere.txt is not a file"),
        ({"model: {": "model: ["}, "not valid YAML"),
    ],
)
def test_a_wrong_spec_is_one_line_and_leaves_nothing(
    spec: Path, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    text = SPEC
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text)
    done = invoke("train", spec.name)
    assert done.exit_code == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_numbers_are_yaml_1_2(short: Path) -> None:
    done = invoke("train", short.name, "--dry-run", "--set", "optimizer.lr=3e-4", "--set", "optimizer.eps=1E-9")
    assert done.exit_code == 0, done.stderr


def test_a_machine_without_the_device_is_exit_3(spec: Path, tmp_path: Path) -> None:
    done = invoke("train", spec.name, "--device", "cuda:9")
    assert (
        done.exit_code == 3
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("--device cuda:9 is not available; available devices: cpu")
    )
    assert not (tmp_path / "runs").exists()


def test_a_run_too_short_for_its_warmup_says_how_it_warms_up(short: Path) -> None:
    done = invoke("train", short.name, "--dry-run", "--set", "schedule={kind: cosine, warmup: 30}", "--set", "steps=20")
    notice = "schedule.warmup: 2 instead of 30, a tenth of the 20 steps, which end before it does\n"
    assert (done.exit_code, done.stderr) == (0, notice)


def test_a_divergence_is_exit_4_and_recorded(short: Path, tmp_path: Path) -> None:
    done = invoke(
        "train",
        short.name,
        "--set",
        "optimizer.lr=1e30",
        "--set",
        "clip_norm=null",
        "--set",
        "precision=none",
        "--json",
    )
    assert done.exit_code == 4
    facts = json.loads(done.stdout)
    assert facts["status"] == "diverged" and "not finite" in facts["reason"]
    assert json.loads((tmp_path / facts["run"] / "meta.json").read_text())["status"] == "diverged"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_a_signal_saves_and_the_same_command_continues(short: Path, tmp_path: Path, number: int, code: int) -> None:
    long = ["--set", "steps=200", "--set", "evaluate_every=200", "--set", "checkpoint_every=100"]
    long += ["--set", "precision=none", "--set", "model.layers=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "altgrad.cli.main", "train", short.name, *long],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    for _ in range(6000):
        found = list((tmp_path / "runs").glob("demo/*/metrics.jsonl"))
        if found and found[0].read_text().count("train/loss") > 3:
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code and errors == b""
    meta = json.loads((found[0].parent / "meta.json").read_text())
    assert meta["status"] == "interrupted" and 0 < meta["step"] < 200
    resumed = invoke("train", short.name, *long, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    rows = [json.loads(line) for line in found[0].read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 201))


def test_the_command_that_resumes_is_the_one_that_was_typed() -> None:
    assert again(Path("a b.yaml"), ["name=x y"], "cpu", Path("r")) == (
        "altgrad train 'a b.yaml' --set 'name=x y' --device cpu --runs r"
    )
    assert again(Path("a.yaml"), [], "auto", Path("runs")) == "altgrad train a.yaml"


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom altgrad.cli.main import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules and 'wandb' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_hub_out_of_reach_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text(SPEC.replace("batch_size: 32", "source: {hub: coastalcph/lex_glue}"))
    code = (
        "import sys\nfrom altgrad.cli.main import app\nfrom typer.testing import CliRunner\n"
        "done = CliRunner().invoke(app, ['train', 'hub.yaml'])\n"
        "assert done.exit_code == 2 and 'does not answer' in done.stderr, done.output\n"
        "assert done.stderr.count(chr(10)) == 1\n"
        "assert done.stderr.startswith('hub.yaml:4:') and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("twin=nowhere", "--set twin=nowhere: twin 'nowhere' is not a run in runs. `altgrad runs list` shows them."),
        (
            "interventions=[{kind: partition_clip, mode: norms}]",
            "--set interventions=[{kind: partition_clip, mode: norms}]: interventions.0.mode is 'norms'",
        ),
    ],
)
def test_a_twin_or_an_intervention_that_cannot_be_is_one_line_and_writes_nothing(
    short: Path, tmp_path: Path, change: str, message: str
) -> None:
    result = invoke("train", str(short), "--set", change)
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()
