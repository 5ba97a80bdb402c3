"""A stranger's test: with CONTRIBUTING.md alone, a monitor, an optimizer and a report section are one new file each.

The files are the page's own code blocks, written where the page says into a copy of the package; nothing else of the
copy is touched. One process of its own then does what a user would: lists, trains, prints METRICS, reports.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from altgrad.reports.section import Section
from altgrad.store import RunStore

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = re.findall(r"`(altgrad/[a-z/_]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S)
SPEC = """
project: strangers
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, source: text.txt, batch_size: 2}
optimizer: {kind: sign_momentum, lr: 1e-2, beta: 0.5}
storage: [{match: blocks.*.weight, kind: stochastic, format: e4m3fn}]
monitors: [{kind: mean_weight, every: 1, power: 1}]
steps: 3
threads: 1
"""
COMMANDS = [
    ["kinds", "--json"],
    ["kinds", "monitor", "--markdown"],
    ["train", "spec.yaml", "--json"],
    ["report", "--static", "--json"],
]
PROGRAM = """
import contextlib, io, json, sys
from altgrad.cli.main import main
said = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as left:
            assert not left.code, (arguments, left.code)
    said.append(out.getvalue())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module")
def answers(place: Path) -> list[str]:
    """What each command printed."""
    assert [Path(name).name for name, _ in FILES] == ["mean_weight.py", "sign_momentum.py", "mean_weights.py"]
    shutil.copytree(ROOT / "altgrad", place / "altgrad")
    for name, code in FILES:
        assert (place / name).parent.is_dir() and not (place / name).exists()
        (place / name).write_text(code, encoding="utf-8")
    (place / "text.txt").write_text("the member state shall notify the commission of its measures\n" * 60)
    (place / "spec.yaml").write_text(SPEC)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)], cwd=place, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_kinds_lists_them_with_their_fields(answers: list[str]) -> None:
    families: dict[str, Any] = json.loads(answers[0])
    listed = {(name, one["kind"]): one for name, family in families.items() for one in family}
    monitor, optimizer = listed["monitor", "mean_weight"], listed["optimizer", "sign_momentum"]
    assert listed["section", "mean_weights"]["summary"] == "The mean weights of every parameter."
    assert monitor["summary"] == "The power mean of each parameter's weights."
    fields = {field["name"]: field for one in (monitor, optimizer) for field in one["fields"]}
    assert (fields["power"]["takes"], fields["power"]["default"]) == ("a number above 0", 2.0)
    assert fields["power"]["description"] == "p: 1 is the mean magnitude, 2 the root mean square."
    assert fields["beta"]["description"] == "Decay of the average." and {"lr", "weight_decay", "groups"} <= set(fields)


def test_a_run_uses_them_and_logs_what_they_measure(answers: list[str], place: Path) -> None:
    assert json.loads(answers[2])["status"] == "completed"
    run = RunStore(place / "runs").find("run")
    rows = [row for row in run.metrics(["mean_weight/*", "train/loss"]) if row["step"]]
    assert len(rows) == 3
    assert all(row["mean_weight/blocks.0.mlp.up.weight/size"] > 0 and row["train/loss"] < 6 for row in rows)


def test_the_table_of_metrics_has_the_monitors(answers: list[str]) -> None:
    assert "## mean_weight\n\nThe power mean of each parameter's weights." in answers[1]
    assert "| `size` | weight's own | power mean of the weights | `(mean \\|w\\|^p)^(1/p)` |" in answers[1]


def test_the_report_has_the_section(answers: list[str], place: Path) -> None:
    page = (place / "reports" / "strangers" / "report.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Mean weights")
    section = section.partition("\n## ")[0]
    assert "How large are the weights in the end?" in section
    if "metrics" in vars(Section):
        assert "blocks.0.mlp.up.weight" in section, "what a section declares is read for it"
