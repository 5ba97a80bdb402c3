"""python -m study.as_report: study/report, what `altgrad report` makes of the second edition's rows.

A row becomes the record that its run would have left: losses, the field's spread and beta / rms(w) by matrix. In are
the confirmation seeds of AdamW and of the default field (p = 1, kappa = 2^-6). The report knows nothing of PLAN.md and
of vertices: it chooses rates by the first stage's seeds and compares on the others, so its B is that of FINDINGS.md at
fixed rates. The screen's three seeds would have chosen AdamW a rate that is beyond its cliff in others.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord, take_spec
from altgrad.reports.report import write_report
from study import confirmed, parts, rows
from study.cell import named
from study.row import VOCABULARY

FOLDER = Path(__file__).resolve().parent / "report"
DEFAULT, PLAIN = (1.0, 2.0**-6), (None, None)
EVERY = 25
"""A training loss is recorded at the first step and at every so many."""


def record_of(row: pd.Series) -> RunRecord:
    """The record of a row's run; what rows do not keep, it lacks."""
    spec = json.loads(row["spec"])
    data = {"source": spec["data"]["source"], "vocabulary": VOCABULARY}
    meta = {key: row[key] for key in ("altgrad", "torch", "commit")} | {"device": "cpu", "data": data}
    status = "diverged" if row["diverged"] else "completed"
    record = RunRecord(str(row["id"]), status=status, step=spec["steps"], meta=meta)
    take_spec(record, spec)
    ends = {0: row["loss_start"], spec["steps"]: row["loss"]}
    train = {max(1, EVERY * look): loss for look, loss in enumerate(row["train_series"])}
    for key, found in (("validation/loss", ends), ("train/loss", train)):
        record.series[key] = np.array(list(found), float), np.array(list(found.values()), float)
    if row["sign_flip_rate"] == row["sign_flip_rate"]:  # of all stored matrices, late: looks are not kept
        record.series["flips/stored/sign_flip_rate"] = (
            np.array([float(spec["steps"])]),
            np.array([row["sign_flip_rate"]]),
        )
    for matrix, looks in json.loads(row["fields"]).items():
        steps, cv, _, beta, pinned = np.array(looks, float).T
        record.series[f"stiffness/{matrix}/spacing_cv"] = steps, cv
        record.series[f"stiffness/{matrix}/beta_over_rms"] = steps, beta
        record.series[f"range/{matrix}/stored/pinned_rate"] = steps, pinned
    return record


def project(frame: pd.DataFrame) -> Project:
    """The confirmation seeds of AdamW and of the default field, in every stored format."""
    cells = [cell for cell in parts.cells_in("screen") if (named(cell)["p"], named(cell)["kappa"]) in (DEFAULT, PLAIN)]
    kept = frame[frame["cell"].isin(cells) & frame["seed"].isin(list(parts.CONFIRM))]
    records = {record.id: record for record in (record_of(row) for _, row in kept.iterrows())}
    ordered = [records[id] for id in sorted(records)]
    first = parts.CONFIRM[: confirmed.FIRST_STAGE]
    return Project("study-second", "study/results/second", ordered, frozenset(first))


if __name__ == "__main__":
    print(write_report(project(rows.read()), FOLDER).headline)
