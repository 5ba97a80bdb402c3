"""The README's examples run as printed."""

import re
import warnings
from pathlib import Path

import pytest

from altgrad.training import RunSpec

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
MATRICES = Path(__file__).resolve().parents[1] / "matrices"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", blocks("python"))
def test_library_examples_run(
    code: str, tmp_path: Path, small_quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "transformers" in code:
        for needed in ("transformers", "accelerate"):
            pytest.importorskip(needed, reason=f"{needed} is an optional extra; `pip install 'altgrad[hf]'` brings it")
        warnings.simplefilter("ignore")  # of transformers itself
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_specs_are_valid(text: str) -> None:
    RunSpec.parse(text, "README.md")


def test_the_quickstart_is_valid_and_what_the_issue_promises() -> None:
    spec = RunSpec.load(MATRICES / "quickstart.yaml")
    (rule,) = spec.precision.rules
    chosen = [rule.weight, rule.input, rule.grad_output]
    assert [(str(c.format), c.scaling.kind) for c in chosen if c is not None] == [
        ("e4m3fn", "delayed"), ("e4m3fn", "delayed"), ("e5m2", "delayed"),
    ]  # fmt: skip
