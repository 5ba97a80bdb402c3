"""Attribution of casts against leaving each out, everything behind it rounding anew: over batches, points and truths.

    python -m bench.attribution [--batches 32] [--write]

Leave one cast out of one step and everything behind it rounds to other neighbours, so a single step's truth is mostly a
draw. It has a mean, and two ways to come near it are measured: over the batches of later steps, and over draws of the
same batch with the weights moved by a hundredth of themselves. `repeats` is the rank correlation between the means over
the odd and over the even half of the draws, brought up to all of them (Spearman and Brown): what any attribution can
reach is about its root. Against the mean truth of all draws stand attributions of one, eight and all of them, with
derivatives at all casts, half-way, at none, and by Simpson's rule over the three (the path's integral); and the held
truth, which takes a pass a site. `same draws` is the attribution at all casts against the truth of no more draws than
its own.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from altgrad.diagnosis.attribution import Attribution, Step, attribution, recorded_step
from altgrad.diagnosis.sites import Held, casts_as, quantised_layers, slots_by_site, specs_as
from altgrad.diagnosis.variants import take_step
from altgrad.formats import FloatFormat
from altgrad.quantize import QuantizerSpec
from altgrad.store import RunStore, run_id
from altgrad.training import RunSpec, train_run
from altgrad.training.restore import Restored, restore
from bench.page import refresh
from bench.timing import machine

ROOT = Path(__file__).resolve().parents[1]
SPEC = """
name: attribution
model: {kind: gpt, layers: 2, width: 32, heads: 2, context: 32}
data: {kind: text, batch_size: 8}
optimizer: {kind: adamw, lr: 2e-3}
steps: 200
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 200
precision: {rules: [{match: "blocks.*", weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}
"""
JITTER = 1e-2
WAYS = ("at all casts", "half-way", "at none", "Simpson's rule")
Table = NDArray[np.float64]
"""[draws, sites]"""


class Draws(NamedTuple):
    """What each draw of one kind came to: truths, and attributions by way."""

    true: Table
    held: Table
    ways: dict[str, Table]


def trained(folder: Path) -> Restored:
    """The model after its 200 steps."""
    spec = RunSpec.parse(SPEC, "attribution.yaml", [])
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    run.create(spec.to_yaml(), {"steps": spec.steps})
    train_run(spec, run, spec.data.build(spec.seed, spec.model.context))
    return restore(run)


def leave_one_out(restored: Restored, step: Step, *, hold: bool) -> list[Attribution]:
    """The truth by leaving out each site in turn, the others held to their errors or rounding as they come.

    See the head of `altgrad.diagnosis.attribution`.
    """
    found, size = [], step.deviation
    layers = quantised_layers(restored.model).values()
    formats = {q.site: str(q.spec.format) for layer in layers for q in layer.slot_casts.values()}
    for site in slots_by_site(restored.model):

        def others(quantizer: Any, left: str = site) -> Any:
            return None if quantizer.site == left else Held(quantizer, step.errors) if hold else quantizer

        with casts_as(restored.model, others):
            without = take_step(restored)
        share = 0.0
        if size and hold:
            share = step.overlap({p: step.cast.gradients[p] - g for p, g in without.gradients.items()}) / size
        elif size:
            share = 1 - Step(without, step.reference, step.errors).deviation / size
        found.append(Attribution(site, formats[site], step.cast.loss - without.loss, share))
    return found


@contextmanager
def jittered(restored: Restored, seed: int) -> Iterator[None]:
    """Weights moved by a hundredth of themselves, and put back."""
    generator = torch.Generator().manual_seed(seed)
    kept = [(p, p.detach().clone()) for p in restored.model.parameters()]
    with torch.no_grad():
        for p, _ in kept:
            p.mul_(1 + JITTER * torch.randn(p.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in kept:
                p.copy_(before)


def draws(restored: Restored, count: int, *, jitter: bool) -> dict[str, Draws]:
    """By `loss` and `share`: later batches, or jitters of the first one."""
    rows: dict[str, list[list[Attribution]]] = {name: [] for name in ("true", "held", "1", "0.5", "0")}
    for number in range(count):
        here = restored if jitter else replace(restored, ahead=number)
        with jittered(here, number) if jitter else nullcontext():
            step = recorded_step(here)
            rows["true"].append(leave_one_out(here, step, hold=False))
            rows["held"].append(leave_one_out(here, step, hold=True))
            for at in ("1", "0.5", "0"):
                rows[at].append(attribution(here, step, at=float(at)))
    found = {}
    for what in ("loss", "share"):
        table = {key: np.array([[getattr(a, what) for a in each] for each in some]) for key, some in rows.items()}
        one, half, none = table["1"], table["0.5"], table["0"]
        ways = dict(zip(WAYS, (one, half, none, (one + 4 * half + none) / 6), strict=True))
        found[what] = Draws(table["true"], table["held"], ways)
    return found


def rank(one: Table, two: Table) -> float:
    """Spearman's correlation over the sites that have an effect in both."""
    seen = (one != 0) & (two != 0)
    return float(spearmanr(one[seen], two[seen])[0])


def repeats(true: Table) -> float:
    """The reliability of the mean over all draws."""
    half = rank(true[::2].mean(0), true[1::2].mean(0))
    return 2 * half / (1 + half)


def lines_of(name: str, found: dict[str, Draws]) -> list[str]:
    """Rows of the table: attributions of n draws, medians over as many as there are, against the truth of all draws."""
    lines = []
    for what, each in found.items():
        count, true = len(each.true), each.true.mean(0)
        for n in sorted({1, min(8, count), count}):
            spans = [slice(start, start + n) for start in range(0, count - n + 1, n)]
            cells = [
                f"{statistics.median(rank(table[span].mean(0), true) for span in spans):.2f}"
                for table in (*each.ways.values(), each.held)
            ]
            first = each.ways[WAYS[0]]
            same = statistics.median(rank(first[span].mean(0), each.true[span].mean(0)) for span in spans)
            again = f"{repeats(each.true):.2f}" if n == count else ""
            lines.append(f"| {name} | {what} | {n} | {' | '.join(cells)} | {same:.2f} | {again} |")
    return lines


def policies() -> dict[str, Callable[[QuantizerSpec], QuantizerSpec] | None]:
    """The run's own casts, and all in one coarse format."""
    return {"e4m3fn, e5m2": None, "e2m3": lambda spec: QuantizerSpec(format=FloatFormat.parse("e2m3"))}


def main() -> None:
    """Print the table; with --write put it into docs/DIAGNOSE.md."""
    parser = argparse.ArgumentParser(description="Attribution against leaving sites out, everything rounding anew.")
    parser.add_argument("--batches", type=int, default=96)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = ["casts, draws", "of", "n", *WAYS, "fixed truth", "same draws", "repeats"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    with tempfile.TemporaryDirectory() as folder:
        restored = trained(Path(folder))
        sites = len(slots_by_site(restored.model))
        for name, change in policies().items():
            context: Any = nullcontext() if change is None else specs_as(restored.model, change)
            with context:
                for jitter in (False, True):
                    told = f"{name}; {'moved weights' if jitter else 'batches'}"
                    count = options.batches // 4 if jitter else options.batches
                    rows = lines_of(told, draws(restored, count, jitter=jitter))
                    print("\n".join(rows), flush=True)
                    lines += rows
    lines[:0] = [f"{sites} sites, {options.batches} batches; {machine()}.", ""]
    if options.write:
        refresh(ROOT / "docs" / "DIAGNOSE.md", "attribution", "\n".join(lines))


if __name__ == "__main__":
    main()
