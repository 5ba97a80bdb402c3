"""docs/OPTIMIZERS.md names every kind and setting there is, its specs are specs, and its code runs."""

import re
from pathlib import Path

import pytest
import yaml

from altgrad.optim import OptimizerSpec, Storage
from altgrad.optim.stiffness import stiffness_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "OPTIMIZERS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [*OptimizerSpec.kinds(), *Storage.kinds()])
def test_every_kind_has_its_row(kind: str) -> None:
    assert re.search(rf"^\| `{kind}`", PAGE, re.MULTILINE), kind


@pytest.mark.parametrize("word", ["own", "smooth", "constant", "shuffled", "reshuffled"])
def test_every_stiffness_is_explained(word: str) -> None:
    assert f"`{word}`" in PAGE and stiffness_of(word) == word


def test_its_storage_rules_are_rules() -> None:
    text, states = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    rules = [Storage.of(rule) for rule in yaml.safe_load(text)["storage"]]
    assert [rule.kind for rule in rules] == ["stochastic", "kahan"]
    assert [*OptimizerSpec.of(yaml.safe_load(states)["optimizer"]).states] == ["exp_avg", "exp_avg_sq"]


def test_its_code_runs() -> None:
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        place: dict[str, object] = {}
        exec(compile(code, "OPTIMIZERS.md", "exec"), place)
        assert place["optimizer"].state  # type: ignore[attr-defined]
