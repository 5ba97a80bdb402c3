"""Rows as runs would leave them, of losses that are made up."""

import math
from typing import Any

import numpy as np
import pandas as pd

from study import parts
from study.cell import cell_of, settings
from study.row import DIVERGED

OPTIMUM = {"adamw": 4.74e-3, "manifold_adamw": 6.32e-3}


def row_for(planned: parts.Planned, harm: float = 0.05, noise: float = 0.004) -> dict[str, Any]:
    """A row as a run would leave it: a parabola in log lr around OPTIMUM, and harm that grows with p."""
    spec = planned.spec
    found = settings(spec)
    other = found["normalise"] == "none" or found["eps"] > 1  # whose rates are of another kind
    away = 0.0 if other else math.log10(max(found["rate"], 1e-6) / OPTIMUM[found["optimizer"]])
    cost = 0.0 if found["p"] is None else harm * found["p"] * (1 - 0.5 * found["kappa"])
    jitter = np.random.default_rng(int(planned.fingerprint[:8], 16)).normal(0, noise)
    loss = 1.3 + 0.5 * away**2 + cost + jitter
    return {
        "part": planned.part, "id": planned.fingerprint[:8], "fingerprint": planned.fingerprint, "spec": "{}",
        "cell": cell_of(spec), **found, "loss": loss, "loss_tail": loss, "loss_average": loss, "loss_start": DIVERGED,
        "diverged": False, "train_series": [loss], "saturated": 0.0, "pinned": 0.0, "beta_over_rms": 0.01, "cv": 0.5,
        "cv_t": 0.1 if found["kappa"] == 1.0 else 0.8, "commit": "0" * 40, "cpu_seconds": 25.0,
    }  # fmt: skip


def filled(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Everything that these parts name now, as rows beside those that are in."""
    have = set(frame["fingerprint"])
    new = [row_for(each) for each in parts.plan(frame, names)[0] if each.fingerprint not in have]
    return pd.concat([frame, pd.DataFrame(new)], ignore_index=True) if len(frame) else pd.DataFrame(new)
