"""One run of an arm, told as one row: losses as study/row.py tells them, and what the moments lost.

loss_tail    the mean validation loss at the last six checkpoints, which cover the last 5 % of the steps: the estimand
unguarded    at the last look, the share of v = 0 where m != 0, mean over parameters whose moments are cast
"""

import json
import math
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import altgrad
from altgrad.metric_keys import split_key
from altgrad.store import Run
from altgrad.training import RunSpec
from study.row import code_commit, losses_of, machine

CODE = ("altgrad", "study/*.py", "claims/*.py", "claims/*.yaml", "claims/registry")


def train_row(spec: RunSpec, part: str, arm: str, folder: Path) -> dict[str, Any]:
    """Train the run below `folder` and tell it; what an earlier, killed call had begun is gone on with."""
    began, cpu = time.perf_counter(), time.process_time()
    trained = altgrad.train(spec, runs=folder, device="cpu", progress=False)
    run = trained.run
    row = {"part": part, "id": run.id, "fingerprint": spec.fingerprint(), "arm": arm, "spec": json.dumps(spec.tree())}
    row |= {"rate": spec.optimizer.lr, "seed": spec.seed, "unguarded": unguarded(run)}
    row |= losses_of(run, trained.status == "diverged")
    meta = run.meta()
    row |= {key: str(meta.get(key, "")) for key in ("altgrad", "torch")} | made_by()
    row |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    shutil.rmtree(run.path)
    return row


def made_by() -> dict[str, Any]:
    """The code and the machine of a row."""
    return {"commit": code_commit(*CODE), "machine": machine(), "cores": os.cpu_count()}


def unguarded(run: Run) -> float:
    """See the head of this file; NaN where no moment is cast."""
    looks: dict[int, list[float]] = {}
    for row in run.metrics(["optimizer_state/*"]):
        for key, value in row.items():
            if split_key(key)[2].endswith("unguarded_rate") and not math.isnan(value):
                looks.setdefault(int(row["step"]), []).append(value)
    return statistics.fmean(looks[max(looks)]) if looks else math.nan
