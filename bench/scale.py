"""python -m bench.scale: what a step costs for each parameter, from 1 M to 135 M parameters; docs/SCALE.md reads it.

A GPT of growing width and depth on one block of 256 bytes, one thread, eager; each arm in a process of its own, so that
its peak of memory is its own. Time is the median step less the first; memory the process's peak less what it had before
the model was built, divided by the parameters.

    plain        float32, AdamW
    cast         weight and input e4m3fn, grad_output e5m2, delayed scales
    nvfp4        e2m1 in blocks of 16 with two levels of scales, squares for weights, gradients stochastic
    stored       the same as cast, with ManifoldAdamW and weights stored in e3m4, stochastically
    watched      the same as cast, with the monitors `range`, `updates`, `flips` and `gradient` at every step
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from altgrad.data.dataset import Dataset
from altgrad.nn import commit
from altgrad.training import RunSpec
from altgrad.training.estimate import estimate, shapes_only
from altgrad.training.state import TrainState, build_model, build_optimizer

SIZES = {"1M": (3, 160), "3M": (5, 224), "10M": (8, 320), "30M": (12, 448), "100M": (14, 768), "135M": (14, 896)}
"""Layers and width; 135M is SmolLM2's number of parameters."""
RULES = "precision.rules=[{match: 'blocks.*', weight: {format: e4m3fn, scaling: delayed}, input: {format: e4m3fn, "
RULES += "scaling: delayed}, grad_output: {format: e5m2, scaling: delayed}}]"
NVFP4 = "precision.rules=[{match: 'blocks.*', weight: {format: e2m1, scaling: {kind: nvfp4, shape: square}}, "
NVFP4 += "input: {format: e2m1, scaling: nvfp4}, grad_output: {format: e2m1, scaling: nvfp4, rounding: stochastic}, "
NVFP4 += "operands: per_product}]"
WATCH = "monitors=[" + ", ".join(f"{{kind: {kind}, every: 1}}" for kind in ("range", "updates", "flips", "gradient"))
STORED = "storage=[{match: 'blocks.*.weight', kind: stochastic, format: e3m4}]"
ARMS: dict[str, list[str]] = {
    "plain": [],
    "cast": [RULES],
    "nvfp4": [NVFP4],
    "stored": [RULES, STORED, "optimizer.kind=manifold_adamw"],
    "watched": [RULES, WATCH + "]"],
}  # fmt: skip
SPEC = """
model: {{kind: gpt, layers: {layers}, width: {width}, heads: 4, context: 256}}
data: {{kind: text, batch_size: 1}}
optimizer: {{kind: adamw, lr: 1e-4}}
steps: 10
monitors: []
engine: eager
threads: 1
"""


def step(state: TrainState, dataset: Dataset, number: int) -> float:
    """Seconds of one step."""
    batch, began = dataset.batch(number), time.perf_counter()
    state.watch.begin(number + 1)
    loss = dataset.loss(state.model(batch.inputs), batch)
    torch.autograd.backward(loss)
    named = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(named.values()))
    state.watch.gradients(loss, norm, named)
    state.optimizer.step()
    state.optimizer.zero_grad()
    commit(state.model)
    state.watch.finish()
    return time.perf_counter() - began


def measure(size: str, arm: str, steps: int) -> dict[str, Any]:
    """Nanoseconds and bytes for each parameter, measured and (bytes) as `altgrad train --dry-run` estimates them."""
    torch.set_num_threads(1)
    layers, width = SIZES[size]
    spec = RunSpec.parse(SPEC.format(layers=layers, width=width), size, ARMS[arm])
    dataset = spec.data.build(spec.seed, spec.model.context)
    with shapes_only():
        model = build_model(spec, dataset.vocabulary, dataset.outputs)
        optimizer = build_optimizer(spec, model)
    found = estimate(spec, dataset, model, optimizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = TrainState.build(spec, dataset, torch.device("cpu"))
    seconds = statistics.median([step(state, dataset, number) for number in range(steps)][1:])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {
        "size": size, "arm": arm, "parameters": found.parameters, "seconds": seconds,
        "nanoseconds_a_parameter": 1e9 * seconds / found.parameters, "bytes_a_parameter": grown / found.parameters,
        "estimated_bytes_a_parameter": found.total / found.parameters,
        "gflops_a_second": found.flops_per_step / seconds / 1e9,
    }  # fmt: skip


def main() -> None:
    """Every arm at every size; one line of JSON each on stdout with --json, else a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "ARM"), help="Measure this one here and print JSON.")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, asked.steps)))
        return
    print("| parameters | arm | s a step | ns a parameter | GFLOP/s | bytes a parameter, peak | estimated |")
    print("|---|---|---|---|---|---|---|")
    for size in asked.sizes:
        for arm in asked.arms:
            command = [sys.executable, "-m", "bench.scale", "--one", size, arm, "--steps", str(asked.steps)]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            numbers = ("nanoseconds_a_parameter", "gflops_a_second", "bytes_a_parameter", "estimated_bytes_a_parameter")
            cells = " | ".join(f"{row[name]:.1f}" for name in numbers)
            print(f"| {row['parameters'] / 1e6:.1f} M | {arm} | {row['seconds']:.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
