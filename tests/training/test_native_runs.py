"""Claims about runs on the chip's 8-bit units: they say what was taken, name their accumulator, and are other runs."""

from pathlib import Path

import pytest
import torch

from altgrad.training import RunSpec
from altgrad.training.fitting import resolve
from altgrad.training.prepare import prepare
from altgrad.training.state import build_model

SPEC = """
project: tests
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
precision: {rules: [{match: blocks.*.mlp.*, weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 3
threads: 1
evaluate_every: 100
evaluate_limit: 1
monitors: [finite]
"""


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_native_run_names_its_accumulator_and_stays_near_the_emulated_one(tmp_path: Path) -> None:
    found, said = {}, list[str]()
    for engine in ("eager", "native"):
        prepared = prepare(RunSpec.parse(SPEC, sets=[f"engine={engine}"]), device="cpu", notify=said.append)
        run = prepared.train(tmp_path).run
        found[engine] = run, [row["train/loss"] for row in run.metrics(["train/loss"])]
    (eager, losses), (native, others) = found["eager"], found["native"]
    assert eager.id != native.id and "accumulator" not in eager.meta()
    assert native.meta()["accumulator"] == "float32, torch's 8-bit product on a CPU"
    (line,) = [each for each in said if "native" in each]
    assert line.startswith("engine: native: 6 of 6 products may run on 8-bit units, added up in float32")
    assert others == pytest.approx(losses, rel=1e-4)


def test_a_machine_without_such_units_runs_compiled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altgrad.training.fitting.missing_compiler", lambda device: None)
    spec = RunSpec.parse(SPEC, sets=["engine=native"])
    with torch.device("meta"):
        model = build_model(spec, 256, 256)
    resolved, told = resolve(spec, [model], 32, torch.device("meta"))
    assert resolved.engine == "compiled"
    assert told == "engine: compiled instead of native, because torch has no 8-bit products on meta"
    monkeypatch.setattr("altgrad.training.fitting.missing_compiler", lambda device: "there is no C++ compiler here")
    resolved, told = resolve(spec, [model], 32, torch.device("cpu"))
    assert (
        resolved.engine == "eager" and told == "engine: eager instead of native, because there is no C++ compiler here"
    )


def test_on_a_gpu_compile_auto_is_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device by its type alone: nothing is put there."""
    monkeypatch.setattr("altgrad.training.fitting.missing_compiler", lambda device: None)
    spec = RunSpec.parse(SPEC, sets=["model.layers=2", "compile=auto", "steps=1000000000"])
    with torch.device("meta"):
        model = build_model(spec, 256, 256)
    found = {where: resolve(spec, [model], 32, torch.device(where))[0].compile for where in ("cpu", "cuda")}
    assert found == {"cpu": "blocks", "cuda": "model"}
