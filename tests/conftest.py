"""What every test shares: no network, one thread, the same Hypothesis examples each time, and the CLI as a process.

The environment is set when this file is imported, before any test can import torch or datasets: both read it once.
torch itself is never imported here, so the tests of the torch-free rooms stay as quick as those rooms.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

# derandomize: a failure is a fact about the commit, not about the draw. The deadline and too_slow measure the clock,
# and a loaded machine is no defect.
settings.register_profile(
    "altgrad",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("altgrad")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Puts torch back to one thread after a test that trained with more; float sums depend on the number."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def as_gfloat() -> Callable[..., Any]:
    """The outside oracle for any format: `as_gfloat(fmt)` is gfloat's record of it."""
    from bench.gfloat_format import gfloat_format

    return gfloat_format


@pytest.fixture(scope="session")
def short_data() -> Callable[..., Any]:
    """`short_data(spec)` is the run's data with a few batches for validation: most tests are not about a whole pass."""

    def build(spec: Any, batches: int = 3) -> Any:
        found = spec.data.build(spec.seed, spec.model.context)
        whole = found.evaluation
        found.evaluation = lambda split: islice(whole(split), batches)
        return found

    return build


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_cli("train", "spec.yaml", env={...})` runs the CLI in a process of its own, in tmp_path, as a user would.

    Output is captured as text, without colour and 120 columns wide. W&B is offline and without a key unless `env` says
    otherwise. A non-zero exit is returned, not raised: exit codes are part of what tests claim.
    """

    def run(*args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if key not in {"WANDB_API_KEY", "FORCE_COLOR"}}
        ours = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "120", "WANDB_MODE": "offline"}
        return subprocess.run(
            [sys.executable, "-m", "altgrad.cli.main", *map(str, args)],
            cwd=tmp_path,
            env=inherited | ours | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
