"""One run of the second edition, trained and told as one row.

    train    as `altgrad train` does, in a folder of its own that is gone afterwards: what is kept of a run is its row
    loss           of the stored weights after the last step, whole validation split: the estimand
    loss_tail      the mean of the same at the last six checkpoints, which are the last 5 % of the run
    loss_average   of the mean of those six weights, which is on no grid: what the noise of single weights costs; both
                   in the parts TAILED alone, NaN in the others: they decide nothing and take a quarter of a run's time
    cv_t           the coefficient of variation of T = spacing(max(|w|, kappa rms(w))), and cv that of T^p, by matrix
                   and look. Spacing is monotone, so T = max(spacing(w), spacing(kappa rms(w))): the histogram of
                   spacings gives it exactly
    f1             of a fine-tune alone: micro F1 at the threshold tuned on validation
    saturated      the largest share of w~, weight and request, that lay beyond +-max at any look at any matrix

A field of another format, a smooth or a shuffled one is judged by the own grid's.
"""

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import altgrad
from altgrad.formats import FloatFormat
from altgrad.metric_keys import split_bin, split_key
from altgrad.store import Checkpoint, Run
from altgrad.training import RunSpec
from study.cell import cell_of, settings

VOCABULARY = 256
DIVERGED = math.log(VOCABULARY)
"""The loss of knowing nothing, with which a diverged run enters; a fine-tune's is that of before its first step."""
F1 = "validation/tuned_f1_micro"
LATE = 0.75
"""From this share of the steps on, looks count for means."""
TAILED = ("pilot",)
"""The parts whose runs also have the losses of their last 5 %; as have the screen's first 84, confirm's first 101."""


def train_row(spec: RunSpec, part: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train the run below `folder` and tell it; what an earlier, killed call had begun is gone on with."""
    began, cpu = time.perf_counter(), time.process_time()
    trained = altgrad.train(spec, runs=folder, device=device, progress=False)
    run = trained.run
    row = {"part": part, "id": run.id, "fingerprint": spec.fingerprint(), "spec": json.dumps(spec.tree())}
    row |= {"cell": cell_of(spec)} | settings(spec)
    row |= measured(run, spec) | losses_of(run, trained.status == "diverged", tail=part in TAILED)
    meta = run.meta()
    row |= {key: str(meta.get(key, "")) for key in ("altgrad", "torch")} | {"commit": code_commit()}
    row |= {"machine": machine(), "cores": os.cpu_count()}
    row |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    shutil.rmtree(run.path)
    return row


@cache
def machine() -> str:
    """What last bits depend on: the architecture, the vectors that torch uses, and Linux's name of the processor."""
    import torch

    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {model}".strip()


@cache
def code_commit(*paths: str) -> str:
    """The commit, with `-dirty` behind it if code or a matrix differs from it; new rows are no difference."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[1])]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        same = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", *(paths or ("altgrad", "study/*.py", "study/parts"))], check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "-dirty" * bool(same.returncode)


def losses_of(run: Run, diverged: bool, *, tail: bool = True) -> dict[str, Any]:
    """Final loss and what is beside it. tail: also the losses of the last checkpoints and of their mean, else NaN."""
    rows = list(run.metrics(["train/loss", "validation/loss", F1]))
    validation = {int(row["step"]): row["validation/loss"] for row in rows if "validation/loss" in row}
    train = [row["train/loss"] for row in rows if "train/loss" in row]
    found = {"diverged": diverged, "loss_start": validation.get(0), "train_series": train}
    scores = [row[F1] for row in rows if F1 in row]
    if scores:
        found["f1"] = scores[0] if diverged else scores[-1]
    if diverged:
        lost = validation[0] if scores else DIVERGED
        return found | {"loss": lost, "loss_tail": lost, "loss_average": lost}
    losses, average = tail_losses(run) if tail else ([math.nan], math.nan)
    return found | {"loss": validation[max(validation)], "loss_tail": statistics.fmean(losses), "loss_average": average}


def tail_losses(run: Run) -> tuple[list[float], float]:
    """The validation loss at every checkpoint that is kept, and that of their mean weights."""
    import torch

    from altgrad.training import checkpoint
    from altgrad.training.evaluate import evaluate
    from altgrad.training.restore import restore

    restored = restore(run, run.newest_checkpoint())
    state, losses, sums = restored.state, list[float](), dict[str, torch.Tensor]()
    state.watch.close()
    how: dict[str, Any] = {"compute": restored.spec.compute, "limit": restored.spec.evaluate_limit}  # as the run itself
    steps = run.checkpoints.steps()
    for step in steps:
        checkpoint.load(state, Checkpoint(step, run.checkpoints.folder / f"step-{step:08d}"))
        found = evaluate(state.model, restored.dataset, **how)
        assert found is not None
        losses.append(found["loss"])
        for name, p in state.model.named_parameters():
            sums[name] = sums.get(name, torch.zeros(())) + p.detach().double()
    with torch.no_grad():
        for name, p in state.model.named_parameters():
            p.copy_(sums[name] / len(steps))
    found = evaluate(state.model, restored.dataset, **how)
    assert found is not None
    return losses, found["loss"]


def measured(run: Run, spec: RunSpec) -> dict[str, Any]:
    """What monitors saw: shares at the end of the range, and the field, by matrix and look."""
    kept = settings(spec)
    looks: dict[tuple[str, int], dict[str, float]] = {}
    histograms: dict[tuple[str, int], dict[int, float]] = {}
    for row in run.metrics(["range/*", "stiffness/*", "flips/*"]):
        step = int(row["step"])
        for key, value in row.items():
            if (bin_ := split_bin(key)) is not None and key.startswith("stiffness/"):
                histograms.setdefault((bin_[0].partition("/")[2], step), {})[bin_[1]] = value
                continue
            group, place, quantity = split_key(key)
            if group == "range" and not place.endswith("/stored"):
                continue
            if group:
                looks.setdefault((place.removesuffix("/stored"), step), {})[quantity] = value
    for at, shares in histograms.items():
        beta = looks[at].get("beta_over_rms", math.nan)
        looks[at]["cv"] = field_cv(shares, str(kept["format"]), beta, kept["kappa"] or 0.0, kept["p"] or 1.0)
        looks[at]["cv_t"] = field_cv(shares, str(kept["format"]), beta, kept["kappa"] or 0.0, 1.0)
    late = {at: seen for at, seen in looks.items() if at[1] >= LATE * spec.steps}

    def over(seen: Mapping[tuple[str, int], Mapping[str, float]], name: str, how: Any) -> float:
        values = [each[name] for each in seen.values() if not math.isnan(each.get(name, math.nan))]
        return float(how(values)) if values else math.nan

    fields = {
        name: [[step, *(each.get(key) for key in ("cv_t", "cv", "beta_over_rms", "pinned_rate"))]
               for (place, step), each in looks.items() if place == name and "cv" in each]
        for name in dict.fromkeys(place for place, _ in looks)
    }  # fmt: skip
    return {
        "saturated": over(looks, "saturation_rate", max), "pinned": over(looks, "pinned_rate", max),
        "pinned_late": over(late, "pinned_rate", statistics.fmean),
        "cv_t": over(late, "cv_t", statistics.fmean), "cv_t_least": over(late, "cv_t", min),
        "cv": over(late, "cv", statistics.fmean),
        "beta_over_rms": over(late, "beta_over_rms", statistics.fmean),
        "sign_flip_rate": over(late, "sign_flip_rate", statistics.fmean),
        "fields": json.dumps({name: rows for name, rows in fields.items() if rows}),
    }  # fmt: skip


def field_cv(shares: Mapping[int, float], format_: str, beta_over_rms: float, kappa: float, p: float) -> float:
    """The coefficient of variation of T^p over weights whose spacings, by exponent in grid units, have these shares."""
    fmt = FloatFormat.parse(format_)
    exponents = dict(shares)
    if kappa and fmt.min_normal is not None and beta_over_rms > 0:
        rms = fmt.min_normal / beta_over_rms
        floor = min(max(math.floor(math.log2(kappa * rms)), fmt.e_min), fmt.max_binade) - fmt.mantissa_bits
        exponents = {}
        for e, share in shares.items():
            exponents[max(e, floor)] = exponents.get(max(e, floor), 0.0) + share
    top = max(exponents)
    mean = math.fsum(share * 2.0 ** (p * (e - top)) for e, share in exponents.items())
    square = math.fsum(share * 4.0 ** (p * (e - top)) for e, share in exponents.items())
    total = math.fsum(exponents.values())
    return math.sqrt(max(square * total / mean**2 - 1, 0.0))
