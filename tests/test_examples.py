"""Every file of examples/ runs as it is, and is short."""

import runpy
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
NEEDS = {"hf_trainer": ("transformers", "accelerate"), "lightning_loop": ("pytorch_lightning",)}
SAYS = {
    "compare_in_ci": "change is equivalent to main",
    "hf_trainer": "underflow_rate",
    "lightning_loop": "steps: 4",
    "own_format": "[ 0.2500, -0.5000,  1.0000,  2.0000,  3.0000]",
    "own_loop": "weights are float32 again: Linear",
    "own_monitor": "size/weight/rms",
    "own_optimizer": "different values in the weight",
    "own_recipe": "completed",
    "sweep_and_compare": "Compared with fp32",
}


def test_each_example_is_short_and_has_a_claim() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(SAYS)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 40 for path in EXAMPLES)


SLOW = ("hf_trainer", "lightning_loop", "sweep_and_compare")
ALL = [pytest.param(path, marks=pytest.mark.long if path.stem in SLOW else (), id=path.stem) for path in EXAMPLES]


@pytest.mark.parametrize("path", ALL)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for needed in NEEDS.get(path.stem, ()):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    if path.stem in NEEDS:
        warnings.simplefilter("ignore")  # of those libraries themselves
    monkeypatch.chdir(tmp_path)
    with suppress(SystemExit) if path.stem == "compare_in_ci" else nullcontext():  # its exit code is its verdict
        runpy.run_path(str(path), run_name="__main__")
    assert SAYS[path.stem] in capfd.readouterr().out
