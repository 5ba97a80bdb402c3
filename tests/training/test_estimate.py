"""Claims about what a run takes: counted on shapes, it is what real tensors come to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.monitors import Context
from altgrad.training import RunSpec
from altgrad.training.estimate import Estimate, estimate, forward_flops, shapes_only
from altgrad.training.state import TrainState, build_model, build_optimizer
from altgrad.watching import MonitorSet

ROOT = Path(__file__).resolve().parents[2]
SPEC = """
model: {kind: gpt, layers: 3, width: 32, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 1e-3}
steps: 10
accumulate: 4
precision: {rules: [{match: "blocks.*", weight: {format: e4m3fn, scaling: delayed}, input: e4m3fn}]}
monitors: []
"""
MONITORS = "monitors=[range, finite, {kind: flips, every: 1}, {kind: stall, every: 1}, {kind: updates, every: 1}]"
STORED = "storage=[{match: 'blocks.*.weight', kind: kahan, format: e3m4}]"
SEVEN = ["model.layers=35", "model.width=4096", "model.heads=32", "model.context=1024", STORED, MONITORS]


def taken(spec: RunSpec) -> tuple[Estimate, Any]:
    dataset = spec.data.build(spec.seed, spec.model.context)
    with shapes_only():
        model = build_model(spec, dataset.vocabulary, dataset.outputs)
        optimizer = build_optimizer(spec, model)
    return estimate(spec, dataset, model, optimizer), dataset


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def test_states_that_are_cast_are_counted_as_codes_and_scales() -> None:
    """A byte for every value of the tensors that are large enough, and a scale for each block."""
    cast = "{format: e4m3fn, scaling: {kind: block, size: 128}, min_size: 100}"
    found, _ = taken(RunSpec.parse(SPEC, sets=[f"optimizer.states.exp_avg={cast}"]))
    plain, _ = taken(RunSpec.parse(SPEC))
    with shapes_only():
        spec = RunSpec.parse(SPEC)
        dataset = spec.data.build(spec.seed, spec.model.context)
        sizes = [p.numel() for p in build_model(spec, dataset.vocabulary, dataset.outputs).parameters()]
    assert found.states == sum(size + 4 * -(-size // 128) for size in sizes if size >= 100)
    assert plain.states == 0 and "states" not in plain.facts() and found.facts()["states"] == found.states


@pytest.mark.parametrize(
    ("kind", "storage"),
    [("adamw", None), ("adamw", STORED), ("madam", STORED), ("manifold_adamw", STORED), ("grid_optim", STORED)],
)
def test_the_estimate_is_what_a_real_step_allocates(kind: str, storage: str | None) -> None:
    spec = RunSpec.parse(SPEC, sets=[f"optimizer.kind={kind}", MONITORS, *([storage] if storage else [])])
    found, dataset = taken(spec)
    state = TrainState.build(spec, dataset, torch.device("cpu"))
    adopted = sum(t.nbytes for t in tensors(list(state.optimizer.state.values())))
    state.watch.begin(1)
    batch = dataset.batch(0)
    dataset.loss(state.model(batch.inputs), batch).backward()
    state.optimizer.step()
    whole = sum(t.nbytes for t in tensors(list(state.optimizer.state.values())))
    parameters = list(state.model.parameters())
    assert (found.storage, found.optimizer) == (adopted, whole - adopted)
    assert found.weights == found.gradients == sum(p.nbytes for p in parameters)
    assert found.casts == sum(buffer.nbytes for buffer in state.model.buffers())
    kept = [tensors(vars(monitor)) for monitor in state.watch.monitors.values()] + [tensors(state.watch.looks.kept)]
    tables = sum(row.nbytes for rows in state.watch.tables.written for row in rows)
    assert found.monitors == tables + sum(t.nbytes for found in kept for t in found)
    gridded = sum(p.numel() for name, p in state.model.named_parameters() if name.startswith("blocks."))
    assert found.codes == (gridded if storage else 0)


def test_flops_are_those_of_the_products_and_six_a_parameter_and_token() -> None:
    spec = RunSpec.parse(SPEC)
    found, dataset = taken(spec)
    tokens, width, context, layers = 2 * 16, 32, 16, 3
    matrices = layers * 12 * width * width + width * dataset.outputs
    attention = layers * 2 * 2 * tokens * context * width
    assert found.flops_per_step == 3 * spec.accumulate * (2 * tokens * matrices + attention)
    assert found.tokens_per_step == spec.accumulate * tokens
    with torch.device("meta"):
        model = build_model(spec, dataset.vocabulary, dataset.outputs)
    assert forward_flops(model, torch.Size((2, 16))) * 3 * spec.accumulate == found.flops_per_step


def test_seven_billion_parameters_are_estimated_without_memory() -> None:
    """A real tensor of this model would not fit: everything stays on the meta device."""
    found, _ = taken(RunSpec.parse(SPEC, sets=SEVEN))
    assert found.parameters == pytest.approx(7.05e9, rel=1e-2) and found.weights == 4 * found.parameters
    assert found.optimizer == pytest.approx(8 * found.parameters, rel=1e-3)
    assert found.storage == pytest.approx(4 * found.codes, rel=1e-3)
    assert found.flops_per_step == pytest.approx(6 * found.parameters * found.tokens_per_step, rel=0.05)


def test_a_dry_run_of_seven_billion_parameters_stays_within_two_gigabytes(tmp_path: Path) -> None:
    """The whole command, in a process of its own: its peak of resident memory, as the kernel counted it.

    VmHWM is of the process's own memory; ru_maxrss has that of the process which started it, too, however large.
    """
    (tmp_path / "seven.yaml").write_text(SPEC)
    sets = [word for change in SEVEN for word in ("--set", change)]
    program = "import re, sys; from altgrad.cli.main import main\n"
    program += "try: main()\nfinally: status = open('/proc/self/status').read(); "
    program += "print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
    command = [sys.executable, "-c", program, "train", "seven.yaml", "--dry-run", "--json", *sets]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["parameters"] == pytest.approx(7.05e9, rel=1e-2) and facts["estimate"]["total"] > 150e9
    assert int(done.stderr.split()[-1]) * 1024 < 2e9
    assert not (tmp_path / "runs").exists()


def test_nothing_is_drawn_for_shapes() -> None:
    before = torch.random.get_rng_state()
    with shapes_only():
        layer = torch.nn.Linear(4, 4)
    assert layer.weight.is_meta and torch.equal(before, torch.random.get_rng_state())


def test_monitors_that_keep_every_micro_batch_are_counted() -> None:
    spec = RunSpec.parse(SPEC, sets=["monitors=[gsnr]"])
    found, dataset = taken(spec)
    state = TrainState.build(spec, dataset, torch.device("cpu"))
    watch = MonitorSet(spec.monitors, state.model, state.optimizer, Context())
    watch.begin(1)
    watch.add_micro_batch({name: torch.zeros_like(p) for name, p in state.model.named_parameters()})
    assert found.monitors == sum(t.nbytes for t in tensors(vars(watch.monitors["gsnr"])))
    assert found.monitors >= 16 * found.parameters
