"""Claims about bench/gpu.sh: its parts are there, in order and within their time; its dry mode needs no GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
pytestmark = pytest.mark.needs("bash")
PARTS = ["tests", "ab", "step", "accumulators", "casts"]


def test_the_parts_come_in_order_and_fit_into_eight_minutes() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    found = re.findall(r"^part (\w+) (\d+) ", text, re.M)
    assert [name for name, _ in found] == PARTS
    assert sum(int(seconds) for _, seconds in found) <= 480 and "LIMIT=${LIMIT:-480}" in text


@pytest.mark.long
def test_its_dry_mode_finds_every_program_and_option(tmp_path: Path) -> None:
    environment = {"OUT": str(tmp_path), "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", str(SCRIPT), "--dry"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout
    for module, options in re.findall(r"-m (bench\.\w+) ([^\n]*)", done.stdout):
        told = (tmp_path / {"bench.step": "step", "bench.cast": "casts"}.get(module, "accumulators")).with_suffix(
            ".txt"
        )
        assert all(option in told.read_text() for option in re.findall(r"--[\w-]+", options)), options
