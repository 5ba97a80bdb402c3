"""A cell of the second edition: what a run's spec says but rate and seed, by the names that tables use."""

import json
from collections.abc import Mapping
from typing import Any

from altgrad.training import RunSpec

CELL = (
    "model", "format", "storage", "scale", "optimizer", "p", "kappa", "stiffness", "normalise", "beta2", "decay",
    "warmup", "compute", "init", "eps",
)  # fmt: skip
Cell = str
"""The settings of CELL as JSON: the same cell is the same text, whichever part ran it."""


def settings(spec: RunSpec) -> dict[str, Any]:
    """What tells a cell from another, as the spec has it; None for what does not apply."""
    tree = spec.tree()
    optimizer = tree["optimizer"]
    kept: Mapping[str, Any] = next((rule for rule in tree["storage"] if rule.get("format")), {})
    manifold = optimizer["kind"] == "manifold_adamw"
    model = tree["model"]
    return {
        "arm": spec.name,
        "model": model["kind"] + ("+qk_norm" if model.get("qk_norm") else ""),
        "format": kept.get("format"),
        "storage": kept.get("kind", "master"),
        "scale": kept.get("scale"),
        "optimizer": optimizer["kind"],
        "p": optimizer["power"] if manifold else None,
        "kappa": optimizer["kappa"] if manifold else None,
        "stiffness": str(optimizer["stiffness"]) if manifold else None,
        "normalise": optimizer["normalise"] if manifold else None,
        "beta2": float(optimizer["betas"][1]),
        "decay": float(optimizer["weight_decay"]),
        "warmup": spec.schedule.warmup,
        "compute": spec.compute,
        "init": None if spec.init_from is None else spec.init_from.rpartition("/")[2].partition("-s")[0],
        "eps": float(optimizer["eps"]),
        "rate": optimizer["lr"],
        "seed": spec.seed,
    }


def cell_of(spec: RunSpec) -> Cell:
    """The cell that a run belongs to."""
    found = settings(spec)
    return json.dumps([found[name] for name in CELL])


def named(cell: Cell) -> dict[str, Any]:
    """A cell's settings by name."""
    return dict(zip(CELL, json.loads(cell), strict=True))


def format_of(cell: Cell) -> Any:
    """The format of a cell's storage."""
    return named(cell)["format"]


def reference(cell: Cell) -> Cell | None:
    """AdamW's cell that a manifold cell is compared with: all else as it is. None for AdamW's own."""
    found = named(cell)
    if found["optimizer"] != "manifold_adamw":
        return None
    plain = {"optimizer": "adamw", "p": None, "kappa": None, "stiffness": None, "normalise": None}
    if found["storage"] == "master":
        plain["format"] = plain["scale"] = None
    return json.dumps([{**found, **plain}[name] for name in CELL])
