"""Six projects as users have them, made of files, and what a reader must find in the first sentence of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.reports.conftest import spec, write_run, write_study

CASTS = {
    "bf16": "none", "fp8": {"kind": "current", "granularity": "tensor"},
    "fp8-delayed": {"kind": "delayed", "history": 16},
    "mxfp4": {"kind": "mx", "size": 32}, "nvfp4": {"kind": "nvfp4", "size": 16},
}  # fmt: skip
"""Recipes by the name a user gives them, and how their casts scale."""
EFFECTS = {"bf16": 0.0, "fp8": 0.0, "fp8-delayed": 0.002, "mxfp4": 0.12, "nvfp4": 0.03}


def recipe(name: str, seed: int) -> dict[str, Any]:
    """A spec of that recipe: weights, inputs and gradients cast, float32 masters."""
    tree = spec("bf16" if name == "bf16" else "fp32", seed=seed) | {"name": name}
    if (scaling := CASTS[name]) != "none":
        fmt = "e2m1" if "fp4" in name else "e4m3fn"
        cast = {"format": fmt, "rounding": "nearest_even", "scaling": scaling}
        rule = {"match": "blocks.*", "weight": cast, "input": cast, "grad_output": cast | {"rounding": "stochastic"}}
        tree["precision"] = {"rules": [rule]}
    return tree


def trained(root: Path, name: str, seed: int, **facts: Any) -> None:
    """A run of a recipe: what seeds share, what they do not, and what the recipe costs."""
    shared, own = np.random.default_rng(seed).normal(0, 0.03), np.random.default_rng([seed, len(name)]).normal(0, 0.002)
    write_run(root, recipe(name, seed), name=name, final=2.5 + EFFECTS[name] + shared + own, **facts)


def one_run(root: Path) -> None:
    trained(root, "fp8", 0)


def two_arms_one_seed(root: Path) -> None:
    for name in ("fp8", "bf16"):
        trained(root, name, 0)


def recipes(root: Path) -> None:
    for name in CASTS:
        for seed in range(5):
            trained(root, name, seed)


def only_diverged(root: Path) -> None:
    for name in ("mxfp4", "bf16"):
        for seed in range(2):
            trained(root, name, seed, status="diverged")


def geometry_study(root: Path) -> None:
    write_study(root)


def five_hundred(root: Path) -> None:
    """100 seeds of the recipes, as little of each as a run has."""
    for seed in range(100):
        for name in CASTS:
            trained(root, name, seed, points=10, sited=False)


NUMBER = r"[+−]0\.\d{4}"
PROJECTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "one run": (one_run, (r"^One run, fp8: completed at step 100 with a validation loss of 2\.5\d* nats\.",)),
    "two arms, one seed": (
        two_arms_one_seed, (r"^Undecided: one seed an arm cannot decide between fp8 and bf16 \(", "about 7 more seeds"),
    ),
    "recipes": (
        recipes,
        (
            "^Compared with bf16", rf"mxfp4 is worse, \+0\.12\d\d \[{NUMBER}, {NUMBER}\]", "nvfp4 is worse",
            rf"fp8 is equivalent, {NUMBER} \[", "fp8-delayed is equivalent",
        ),
    ),
    "only diverged": (only_diverged, (r"^All 4 runs of 2 arms diverged; the first, \S+, at step 50\.",)),
    "geometry study": (
        geometry_study,
        (rf"^Geometry-aware steps lower the loss by at least 0\.01 nats in e3m4 \(B \+0\.0\d+ \[{NUMBER}",),
    ),
    "500 runs": (five_hundred, ("^Compared with bf16", "mxfp4 is worse", "nvfp4 is worse", "fp8 is equivalent")),
}  # fmt: skip
"""By what they are: how they are made, and what the first sentence must say."""
