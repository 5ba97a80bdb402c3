"""Gradients and moments at fixed weights: what an arm's casts make of them, without training it.

The weights, and Adam's moments, are those of the BF16 reference trained to its end at the middle rate on a seed of
its own (`checkpoint`). For each of N fresh micro-batches three gradients of the matrices inside the blocks are
taken:

    g32    casts off, float32                     g8    the arm's casts, computing as it trains
    gf     the arm's forward casts alone: what is left to blame on backward is g8 - gf

and with e = g8 - g32, over all these matrices together,

    sqnr_db, cosine     of single micro-batches, means over N
    bias                the squared relative error of the *sum* over N micro-batches that more of them would not remove:
                        (|sum e|^2 - sum |e|^2) / (N (N - 1)) over |mean g32|^2. Independent errors of mean 0 have 0
    sqnr_backward       the SQNR of g8 against gf         bias_backward       the bias of g8 - gf

Backward's weights are uncast in gf, so weights whose cast is the same in forward and backward count as an error of
backward there, although the chain rule holds for them.

Moments are rounded once, as the arm keeps them, and taken as they then are:

    unguarded           share of v = 0 where m != 0          update_ratio     |m / (sqrt(v) + eps)| over that of float32
"""

import fcntl
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import altgrad
from altgrad.measures import fidelity, fidelity_sums
from altgrad.nn import casts_off, fresh_gradients
from altgrad.optim.states import StateCast
from altgrad.store import Run
from altgrad.training import RunSpec
from altgrad.training.restore import Restored, restore
from altgrad.training.state import build_model
from claims.arms import Arm, arms
from claims.registration import PROBES
from claims.row import made_by

MIDDLE = 6.0e-3
MOMENTS = ("exp_avg", "exp_avg_sq")


def checkpoint(seed: int, runs: Path, **changes: Any) -> Run:
    """The reference that probes start from, trained if it is not there. Other processes wait for whoever trains it."""
    spec = arms()["bf16"].spec("checkpoint", MIDDLE, seed, project="claims-checkpoints", keep=1, **changes)
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f".checkpoint-{seed}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return altgrad.train(spec, runs=runs, device="cpu", progress=False).run


def probed(arm: Arm) -> bool:
    """Whether anything of an arm can be seen at fixed weights."""
    return arm.finish is None and not arm.run.get("storage")


def probe(name: str, arm: Arm, run: Run, micro_batches: int) -> dict[str, float]:
    """The measures of one arm."""
    restored = restore(run)
    restored.state.watch.close()
    spec = arm.spec(name, MIDDLE, restored.spec.seed)
    found = moments(restored, spec)
    found |= gradients(restored, spec, micro_batches)
    return found


def gradients(restored: Restored, spec: RunSpec, micro_batches: int) -> dict[str, float]:
    """Of single micro-batches and of their sum."""
    plain, cast = restored.model, _model(restored, spec)
    forward = _model(restored, _forward_only(spec)) if spec.precision.rules else plain
    single = {"cosine": 0.0, "sqnr_db": 0.0, "sqnr_backward": 0.0}
    error, backward, reference = _Sum(), _Sum(), _Sum()
    for number in range(micro_batches):
        g32 = _gradient(restored, plain, number, "float32", casts_off)
        g8 = _gradient(restored, cast, number, spec.compute)
        gf = _gradient(restored, forward, number, spec.compute)
        one = _fidelity(g8, g32) | {"sqnr_backward": _fidelity(g8, gf)["sqnr_db"]}
        single = {measure: value + one[measure] / micro_batches for measure, value in single.items()}
        error.add({key: g8[key].double() - g32[key].double() for key in g32})
        backward.add({key: g8[key].double() - gf[key].double() for key in g32})
        reference.add({key: value.double() for key, value in g32.items()})
    scale = reference.square_of_mean()
    return single | {"bias": error.bias() / scale, "bias_backward": backward.bias() / scale}


def _fidelity(gradient: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Of all tensors together."""
    sums: dict[str, Tensor] = {}
    for key in reference:
        for part, value in fidelity_sums(gradient[key], reference[key]).items():
            sums[part] = sums.get(part, torch.zeros(())) + value
    return {measure: float(value) for measure, value in fidelity(sums).items()}


class _Sum:
    """Sum of N sets of tensors, and of their squares."""

    def __init__(self) -> None:
        self.n, self.squares, self.total = 0, 0.0, dict[str, Tensor]()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        self.n += 1
        for key, value in tensors.items():
            self.squares += float(value.square().sum())
            self.total[key] = self.total[key] + value if key in self.total else value.clone()

    def square_of_sum(self) -> float:
        return math.fsum(float(each.square().sum()) for each in self.total.values())

    def square_of_mean(self) -> float:
        return self.square_of_sum() / self.n**2

    def bias(self) -> float:
        """|mean|^2 without what N independent errors leave of it."""
        return (self.square_of_sum() - self.squares) / (self.n * (self.n - 1)) if self.n > 1 else math.nan


def _gradient(
    restored: Restored,
    model: nn.Module,
    number: int,
    compute: str,
    around: Callable[[nn.Module], AbstractContextManager[None]] = lambda model: nullcontext(),
) -> dict[str, Tensor]:
    """Of the matrices inside the blocks, for a micro-batch that the reference was not trained on in this epoch."""
    with around(model):
        loss = restored.micro_batches.loss(restored.step + number, 0, model, torch.device("cpu"), compute)[0]
        found = fresh_gradients(model, lambda: iter([loss]))
    return {key: value for key, value in found.items() if key.startswith("blocks.") and value.ndim == 2}


def _model(restored: Restored, spec: RunSpec) -> nn.Module:
    """The checkpoint's weights under a run's casts."""
    model = build_model(spec, restored.dataset.vocabulary, restored.dataset.outputs)
    weights = dict(restored.model.named_parameters())
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(weights[key])
    return model.train()


def _forward_only(spec: RunSpec) -> RunSpec:
    tree = json.loads(json.dumps(spec.tree()))
    for rule in tree["precision"]["rules"]:
        rule |= {"grad_input": "none", "grad_weight": "none"}
    return RunSpec.made_from(tree)


def moments(restored: Restored, spec: RunSpec) -> dict[str, float]:
    """What is left of both moments as an arm keeps them; nothing for an arm that keeps them in float32."""
    if not spec.optimizer.states:
        return {}
    casts = {name: StateCast(state, name) for name, state in spec.optimizer.states.items()}
    eps = restored.state.optimizer.param_groups[0]["eps"]
    moving = unguarded = 0
    before = after = 0.0
    for p, state in restored.state.optimizer.state.items():
        m, v = (state[name].detach() for name in MOMENTS)
        key = torch.zeros((), dtype=torch.int64)
        kept = [
            casts[name].kept(x, key).values if casts[name].takes(p) else x
            for name, x in zip(MOMENTS, (m, v), strict=True)
        ]
        moving += int(torch.count_nonzero(kept[0]))
        unguarded += int(torch.count_nonzero((kept[0] != 0) & (kept[1] == 0)))
        before += float((m / (v.sqrt() + eps)).double().square().sum())
        after += float((kept[0] / (kept[1].sqrt() + eps)).double().square().sum())
    return {"unguarded": unguarded / moving, "update_ratio": math.sqrt(after / before)}


def probe_row(
    name: str, arm: Arm, seed: int, fingerprint: str, micro_batches: int, runs: Path, **changes: Any
) -> dict[str, Any]:
    """The row of one probe, trained reference included where it is not there yet."""
    began, cpu = time.perf_counter(), time.process_time()
    run = checkpoint(seed, runs, **changes)
    found = probe(name, arm, run, micro_batches)
    return {
        "part": "probes", "id": f"{name}-s{seed}", "fingerprint": fingerprint, "arm": name, "seed": seed,
        "loss": math.nan, "micro_batches": micro_batches, **dict.fromkeys(PROBES, math.nan), **found,
        "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, **made_by(),
    }  # fmt: skip
