"""The question of `altgrad diagnose` that is asked before training: --oracle, of a spec or of a run's spec."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from altgrad.cli.diagnosis_table import kinds, table, title
from altgrad.cli.layout import Line
from altgrad.diagnosis.advice import kind_of
from altgrad.diagnosis.forecasts import STEPS, outlook
from altgrad.formats import FloatFormat
from altgrad.numerals import number, percent
from altgrad.training import RunSpec

Json = dict[str, Any]
FEW = ("e4m3fn", "e5m2", "e3m4")


def foretold(spec: RunSpec, name: str, formats: Sequence[FloatFormat], target: float, calibrated: bool) -> Json:
    """Expected move rates of the spec as it is and under other formats, storages and optimizers."""
    torch.set_num_threads(spec.threads or torch.get_num_threads())
    spec = spec.model_copy(update={"engine": "eager"})
    dataset = spec.data.build(spec.seed, spec.model.context)
    own, others = outlook(spec, dataset, formats, target, calibrated=calibrated)
    return {
        "name": name, "kind": "oracle", "path": name, "step": None, "target": target, "calibrated": calibrated,
        "rehearsed_steps": min(STEPS, spec.steps), "steps": spec.steps,
        "own": None if own is None else asdict(own), "variants": [asdict(each) for each in others],
    }  # fmt: skip


def is_spec(target: str) -> bool:
    """Whether a target is the file of a run spec."""
    return Path(target).suffix in (".yaml", ".yml", ".json") and Path(target).is_file()


def oracle_page(facts: Json, width: int) -> list[Line]:
    """The page's lines."""
    seen = (
        "gradients as in its first 20 steps" if facts["calibrated"] else "gradients of white noise; --calibrate: real"
    )
    lines = [
        title("Stall oracle", f"estimates: {facts['rehearsed_steps']} of {facts['steps']} steps rehearsed, {seen}")
    ]
    own = facts["own"]
    goal = f"lr for {percent(facts['target'])}"
    if own is None:
        lines.append(Line.of(("  as it is: no weight has a grid, so none can stall", "dim")))
    else:
        rows = []
        for name, group in kinds(own["rates"], kind_of).items():
            rates = [found for each in group if not math.isnan(found := own["rates"][each])] or [math.nan]
            rows.append([f"{name} x{len(group)}" if len(group) > 1 else name, rate(min(rates)), rate(max(rates))])
        rows.append(["all", rate(own["overall"]), ""])
        lines += table([f"as it is, {own['optimizer']} lr {own['lr']:g}", "lowest", "highest"], rows, width)
        lines.append(Line.of((f"  smallest {goal}: {_lr(own['smallest_lr'])}", "bold")))
    rows = [
        [each["format"], each["storage"], each["optimizer"], f"{each['lr']:g}", rate(each["overall"]),
         _lr(each["smallest_lr"])]
        for each in facts["variants"]
    ]  # fmt: skip
    header = ["format", "storage", "optimizer", "lr", "move rate", f"smallest {goal}"]
    return [*lines, Line.of(""), title("The same weights kept otherwise"), *table(header, rows, width)]


def rate(value: float) -> str:
    """A share that may be very small."""
    return "-" if value != value else percent(value) if value >= 1e-3 or value == 0 else f"{value:.0e}"


def _lr(value: float | None) -> str:
    return "none" if value is None else number(value)
