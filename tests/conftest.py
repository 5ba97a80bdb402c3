"""What every test shares: no network, a cache of its own, a fixed number of threads, the same Hypothesis examples each
time, the CLI as a process, and a skip with its reason where a program that a test runs is not installed.

The environment is set when this file is imported, before any test can import torch or datasets: both read it once.
torch itself is never imported here, so the tests of the torch-free rooms stay as quick as those rooms.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"
# One thread unless the caller says otherwise: OMP_NUM_THREADS=2 runs the same claims with sums in another order.
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MKL_NUM_THREADS"] = THREADS

PROGRAMS = {
    # name in `needs`: (the names it goes by on the PATH, the Debian or Ubuntu package)
    "bash": (("bash",), "bash"),
    "c++": ((os.environ.get("CXX", "g++"), "clang++"), "g++"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "git": (("git",), "git"),
    "make": (("make",), "make"),
    "mount": (("mount",), "mount"),
    "sbatch": (("sbatch",), "slurm-wlm munge"),
    "umount": (("umount",), "mount"),
    "unshare": (("unshare",), "util-linux"),
}
"""Programs besides the interpreter that some test runs. A test says so with `@pytest.mark.needs("git")`."""

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


def found(name: str) -> str | None:
    """The path of a program of PROGRAMS."""
    return next(filter(None, map(shutil.which, PROGRAMS[name][0])), None)


def pytest_collection_finish() -> None:
    """Ten thousand tests and what they import are there to stay: the collector need not look through them again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """A cache for this session, empty at its start, which its workers share.

    In the user's own, evaluations that an earlier session left would be taken up, and nothing of them run.
    """
    config.addinivalue_line("markers", "needs(*programs): skipped, with the reason, where one of them is not installed")
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="altgrad-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["ALTGRAD_CACHE"] = cache.name


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: those start the programs."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if found(name) is None:
                pytest.skip(f"{name} is not installed (Debian, Ubuntu: apt install {PROGRAMS[name][1]})")


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """`program("chromium")` is its path; the test is marked as needing it."""

    def path(name: str) -> str:
        there = found(name)
        assert there is not None, f"mark the test: @pytest.mark.needs({name!r})"
        return there

    return path


@pytest.fixture(autouse=True)
def usual_threads() -> Iterator[None]:
    """Puts torch back to its threads after a test that trained with another number; float sums depend on it."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != int(THREADS):
        torch.set_num_threads(int(THREADS))


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
def small_quickstart(tmp_path: Path) -> Path:
    """tmp_path/matrices/quickstart.yaml: the demo with one small block on a short text, for examples that train it."""
    from altgrad.document import Document

    spec = Document.load(ROOT / "matrices" / "quickstart.yaml").data
    spec["model"] |= {"layers": 1, "width": 16, "heads": 2, "context": 16}
    spec["data"] |= {"source": str(tmp_path / "text.txt"), "batch_size": 2}
    path = tmp_path / "matrices" / "quickstart.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(spec))
    (tmp_path / "text.txt").write_text("the member state shall notify the commission of its measures\n" * 60)
    return path


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
