"""Claims about `engine: native` on a GPU: the emulation's operands, in products of every sort that it says it takes.

Skipped where torch sees no GPU. `make cuda` runs these alone. Of a CPU's product see tests/nn/test_native.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.nn.native import accumulator_of, missing_units, native_product
from altgrad.training import RunSpec
from altgrad.training.prepare import prepare
from tests.nn.test_accumulated import CHANNEL, DEEPSEEK, FP8, REAL, all_of, layer, step, tensors
from tests.nn.test_native import exact

CUDA = torch.device("cuda")
HERE = missing_units(CUDA) is None if torch.cuda.is_available() else False
pytestmark = [
    pytest.mark.skipif(not HERE, reason="torch sees no GPU with 8-bit products"),
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore"),  # what torch says of its compiler and of CUDA is no claim of ours
]
HOPPER = HERE and torch.cuda.get_device_capability() == (9, 0)
BF16, FLOAT = torch.bfloat16, torch.float32
CASES = [
    pytest.param(FP8, FLOAT, id="tensor"), pytest.param(FP8, BF16, id="tensor, bf16"),
    pytest.param(all_of("e4m3fn", REAL), BF16, id="real"),
    pytest.param(all_of("e4m3fn", CHANNEL, operands="per_product"), BF16, id="rows"),
    pytest.param(DEEPSEEK, BF16, id="blocks", marks=pytest.mark.skipif(not HOPPER, reason="no Hopper is here")),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "dtype"), CASES)
def test_products_are_near_the_emulated_ones_and_made_on_the_chip(
    recipe: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within what 13 bits of a sum of 256 terms and one rounding to bfloat16 leave."""
    made: list[bool] = []

    def noted(*given: Any) -> Any:
        found = native_product(*given)
        made.append(found is not None)
        return found

    monkeypatch.setattr("altgrad.nn.accumulated.native_product", noted)
    x, g = (t.to(CUDA, dtype) for t in tensors(256, 256, 128))
    found = []
    for native in (False, True):
        linear = layer(recipe, 256, 128).to(CUDA, dtype)
        linear.native = native
        found.append(step(linear, x, g))
    assert made == [True] * 3
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        error = (ours.float() - theirs.float()).norm() / ours.float().norm()
        assert error < (6e-3 if dtype == BF16 else 1e-3)


def test_exact_sums_are_the_emulated_ones_so_operands_are() -> None:
    """Sums of 32 small integers, which every accumulator of 13 bits holds."""
    x, g = exact(32, 32, 1).to(CUDA), exact(32, 32, 2).to(CUDA)
    found = []
    for native in (False, True):
        linear = layer(FP8, 32, 32, bias=False).to(CUDA)
        with torch.no_grad():
            linear.weight.copy_(exact(32, 32, 3))
        linear.native = native
        found.append(step(linear, x, g))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_shapes_that_the_chip_refuses_are_emulated() -> None:
    x, g = (t.to(CUDA) for t in tensors(130, 100, 72))
    found = []
    for native in (False, True):
        linear = layer(FP8, 100, 72).to(CUDA)
        linear.native = native
        found.append(step(linear, x, g))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


@pytest.mark.parametrize("compiled", ["false", "model"])
def test_a_run_learns_and_names_its_accumulator(tmp_path: Path, compiled: str) -> None:
    spec = RunSpec.parse(
        "{model: {kind: gpt, layers: 2, width: 64, heads: 2, context: 64}, data: {kind: text, batch_size: 8}, "
        "precision: {rules: [{match: 'blocks.*', weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}, "
        f"optimizer: {{kind: adamw, lr: 3e-3}}, steps: 30, engine: native, compile: {compiled}}}"
    )
    said: list[str] = []
    prepared = prepare(spec, device="cuda", notify=said.append)
    outcome = prepared.train(tmp_path)
    assert outcome.run.meta["accumulator"] == accumulator_of(CUDA)
    assert any("24 of 24 products" in line for line in said)
    rows = list(outcome.run.metrics(["train/loss"]))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.5
