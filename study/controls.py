"""The controls of the second edition: twins on masters, even grids, BF16 and a frozen block."""

import numpy as np
import pandas as pd

from study import parts
from study.cell import Cell, cell_of, format_of, named
from study.second_tables import Lines, Second, number, place, table

EVEN = ("e0m7", "e1m6")
RULES = ("adamw", "manifold_adamw")


def row_of(study: Second, spec: parts.RunSpec) -> pd.Series | None:
    """The row of a run: the same cell, rate and seed."""
    own = study.frame[(study.frame["cell"] == cell_of(spec)) & (study.frame["seed"] == spec.seed)]
    own = own[abs(own["rate"] / spec.optimizer.lr - 1) < 1e-3] if spec.optimizer.lr else own[own["rate"] == 0]
    return own.iloc[0] if len(own) else None


def twins(study: Second) -> Lines:
    """Each twin beside the field of e4m3f that it must equal: final and training losses."""
    body = []
    for spec in (each.spec for each in parts.runs_in("twins")):
        one = row_of(study, spec)
        first = parts.changed(spec, storage__0__format="e4m3f")
        other = row_of(study, first)
        if one is None or other is None:
            word = "missing"
        else:
            same = one["loss"] == other["loss"] and list(one["train_series"]) == list(other["train_series"])
            word = "equal" if same else "DIFFERENT"
        tree = spec.tree()
        body.append([str(tree["storage"][0]["format"]), f"{tree['optimizer']['kappa']:.3g}", word])
    return table(["field of", "kappa", "next to e4m3f's, every loss"], body)


def controls(study: Second) -> Lines:
    """Mean losses of the controls."""
    cells: dict[tuple[Cell, float], list[float]] = {}
    for spec in (each.spec for each in parts.runs_in("controls")):
        row = row_of(study, spec)
        cells.setdefault((cell_of(spec), spec.optimizer.lr), []).extend([] if row is None else [row["loss"]])
    body = [
        [str(format_of(cell) or named(cell)["compute"]), place(cell), f"{rate:.3g}", str(len(values)),
         number(float(np.mean(values)), 6) if values else "-"]
        for (cell, rate), values in cells.items()
    ]  # fmt: skip
    return table(["format", "arm", "rate", "seeds", "mean loss"], body)


def even_pairs(study: Second) -> str:
    """How many pairs of runs agree in every loss: e0m7f and e1m6f, and manifold and AdamW on an even grid."""
    runs: dict[tuple[str, str, int], tuple[float, ...]] = {}
    for spec in (each.spec for each in parts.runs_in("controls")):
        name = str(format_of(cell_of(spec)))
        if name in EVEN and (row := row_of(study, spec)) is not None:
            runs[name, spec.optimizer.kind, spec.seed] = row["loss"], *row["train_series"]
    seeds = sorted({seed for *_, seed in runs})
    formats = [((EVEN[0], rule, seed), (EVEN[1], rule, seed)) for rule in RULES for seed in seeds]
    rules = [((name, RULES[0], seed), (name, RULES[1], seed)) for name in EVEN for seed in seeds]
    told = []
    for pairs in (formats, rules):
        whole = [(runs[one], runs[other]) for one, other in pairs if one in runs and other in runs]
        told.append(f"{sum(one == other for one, other in whole)} of {len(whole)}")
    return f"e0m7f and e1m6f agree in every loss in {told[0]} pairs of runs, manifold and AdamW on both in {told[1]}."
