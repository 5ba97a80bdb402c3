"""python -m bench.compile: how long compiling makes the first step wait.

The model and the recipes of `bench.step`, which has what a step costs afterwards. Cold: every arm in a process of its
own with torch's caches off, the median of a few; the first step's seconds less those of a later one. Warm: a second
process that finds the first one's cache.

    python -m bench.compile cold --recipes fp8 mxfp8 --layers 6 24 --repeats 3
    python -m bench.compile warm
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

RECIPES = ("none", "fp8", "deepseek", "mxfp8", "nvfp4")


def arm(recipe: str, layers: int, how: str, watched: bool = False) -> Callable[[], float]:
    """A training step of a fresh model as a function that gives the loss. how: eager, model or blocks."""
    from altgrad.monitors import MonitorSpec
    from altgrad.nn import quantize_model
    from bench.step import gpt, policy, training

    model, chosen = gpt(layers), policy(recipe)
    if chosen is not None:
        quantize_model(model, chosen)
    monitors = [MonitorSpec.of("range"), MonitorSpec.of("finite")] if watched else []
    return training(model, how=how, monitors=monitors)


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


def main() -> None:
    """Do what is asked and print a table."""
    if sys.argv[1:2] == ["one"]:
        recipe, layers, how, watched = sys.argv[2:]
        first_step(recipe, int(layers), how, watched == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cold", "warm"])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--layers", nargs="+", type=int, default=[6])
    parser.add_argument("--how", default="blocks", choices=["blocks", "model"])
    parser.add_argument("--watched", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    waits(options, cold=options.what == "cold")


if __name__ == "__main__":
    main()
