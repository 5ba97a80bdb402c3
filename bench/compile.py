"""python -m bench.compile: how long compiling makes the first step wait, and what the step then costs.

A GPT 384 wide on 4 x 256 tokens with a vocabulary of 8192, as in `bench.step`; all four products of each block cast as
each recipe has it. Cold: every arm in a process of its own with torch's caches off, the median of a few; the first
step's seconds less those of a later one. Warm: a second process that finds the first one's cache. Steps: all arms take
turns in one process, AdamW included; the ratio to the uncast step as one graph, with the 95 % interval of its median.

    python -m bench.compile cold --recipes fp8 mxfp8 --layers 6 24 --repeats 3
    python -m bench.compile warm
    python -m bench.compile step --rounds 40
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

FP8 = {"format": "e4m3fn"}
WIDE = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128}}
MX = {"format": "e4m3fn", "scaling": "mx"}
NV = {"format": "e2m1", "scaling": "nvfp4"}
RECIPES: dict[str, Any] = {
    "none": {},
    "fp8": {"weight": FP8, "input": FP8, "grad_output": {"format": "e5m2"}},
    "deepseek": {
        "weight": {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "shape": "square"}},
        "input": WIDE, "grad_output": WIDE, "operands": "per_product",
    },
    "mxfp8": {"weight": MX, "input": MX, "grad_output": MX, "operands": "per_product"},
    "nvfp4": {"weight": NV, "input": NV, "grad_output": NV | {"rounding": "stochastic"}, "operands": "per_product"},
}  # fmt: skip
VOCABULARY, BATCH, CONTEXT = 8192, 4, 256


def arm(recipe: str, layers: int, how: str, width: int = 384, watched: bool = False) -> Callable[[], float]:
    """A training step of a fresh model as a function that gives the loss. how: eager, model or blocks."""
    import torch
    from torch.nn import functional

    from altgrad.models.model import ModelSpec
    from altgrad.monitors import MonitorSpec
    from altgrad.nn import PrecisionPolicy, commit, quantize_model
    from altgrad.optim import AdamW
    from altgrad.quantize.engine import ready_compiler
    from altgrad.training.regions import Regions, run_plainly
    from altgrad.watching import MonitorSet

    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": layers, "width": width, "heads": width // 64, "context": CONTEXT})
    model: Any = spec.build(VOCABULARY, VOCABULARY)
    rules: Any = [{"match": "blocks.*", **RECIPES[recipe]}]
    quantize_model(model, PrecisionPolicy(rules=rules))
    blocks = Regions(model, plain=True) if how == "blocks" else None
    forward = torch.compile(model, fullgraph=True) if how == "model" else model
    optimizer = AdamW(model.parameters(), lr=1e-4)
    watch = MonitorSet([MonitorSpec.of("range"), MonitorSpec.of("finite")], model, optimizer) if watched else None
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1))
    ready_compiler()
    run_plainly(model, lambda: model(tokens[:, :-1]))

    def step() -> float:
        if watch is not None:
            watch.begin(1)
        with nullcontext() if blocks is None else blocks.at_work():
            loss = functional.cross_entropy(forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
        if watch is not None:
            watch.finish()
        return loss.item()

    return step


def first_step(recipe: str, layers: int, how: str, watched: bool) -> None:
    """Print what the first step waited for, as JSON; run in a process of its own."""
    step = arm(recipe, layers, how, watched=watched)
    begun = time.perf_counter()
    loss = step()
    first = time.perf_counter() - begun
    later = []
    for _ in range(2):
        begun = time.perf_counter()
        step()
        later.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": first - min(later), "loss": loss}))


def process(recipe: str, layers: int, how: str, watched: bool, cache: str, *, cold: bool) -> float:
    """The seconds that `first_step` prints in a process of its own."""
    names = {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    names |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"} if cold else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.compile", "one", recipe, str(layers), how, str(int(watched))],
        env={**os.environ, **names}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def waits(options: argparse.Namespace, *, cold: bool) -> None:
    """Print a table of compile times."""
    print(f"| recipe | layers | compile | watched | seconds, {'cold' if cold else 'warm'} |\n|---|---|---|---|---|")
    for recipe in options.recipes:
        for layers in options.layers:
            taken = []
            with tempfile.TemporaryDirectory() as kept:
                if not cold:
                    process(recipe, layers, options.how, options.watched, kept, cold=False)
                for _ in range(options.repeats):
                    with tempfile.TemporaryDirectory() as fresh:
                        cache = fresh if cold else kept
                        taken.append(process(recipe, layers, options.how, options.watched, cache, cold=cold))
            several = ", ".join(f"{each:.1f}" for each in sorted(taken))
            watched = "yes" if options.watched else "no"
            row = f"| {recipe} | {layers} | {options.how} | {watched} | {statistics.median(taken):.1f} ({several}) |"
            print(row, flush=True)


def steps(options: argparse.Namespace) -> None:
    """Print a table of step times."""
    import torch

    from bench.timing import in_turn, machine, median_interval

    torch.set_num_threads(options.threads)
    layers = options.layers[0]
    arms = {"none": arm("none", layers, "model", options.width)}
    arms |= {f"{name}, {options.how}": arm(name, layers, options.how, options.width) for name in options.recipes}
    if options.eager:
        arms |= {f"{name}, eager": arm(name, layers, "eager", options.width) for name in options.recipes}
    taken = in_turn(arms, rounds=options.rounds)
    print(f"{machine()}, {options.threads} threads; {layers} layers of {options.width}, compile: {options.how}")
    print("| step | seconds | x none (95 % of the median) |\n|---|---|---|")
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken["none"], strict=True)]
        low, high = median_interval(ratios)
        print(f"| {name} | {statistics.median(seconds):.3f} | {statistics.median(ratios):.3f} ({low:.3f}-{high:.3f}) |")


def main() -> None:
    """Do what is asked and print a table."""
    if sys.argv[1:2] == ["one"]:
        recipe, layers, how, watched = sys.argv[2:]
        return first_step(recipe, int(layers), how, watched == "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cold", "warm", "step"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--layers", nargs="+", type=int, default=[6])
    parser.add_argument("--how", default="blocks", choices=["blocks", "model"])
    parser.add_argument("--watched", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--eager", action="store_true", help="steps: the eager arms, too")
    options = parser.parse_args()
    return steps(options) if options.what == "step" else waits(options, cold=options.what == "cold")


if __name__ == "__main__":
    main()
