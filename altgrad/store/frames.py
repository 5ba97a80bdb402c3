"""Runs as pandas DataFrames."""

from typing import Any

from altgrad.store.runs import Run


def metrics_frame(run: Run) -> Any:
    """One row a step, a column for `step` and for each metric."""
    import pandas as pd

    rows: dict[int, dict[str, float]] = {}
    for row in run.metrics():
        rows.setdefault(int(row["step"]), {}).update(row)
    return pd.DataFrame(list(rows.values()))


def sites_frame(run: Run, monitor: str) -> Any:
    """A monitor's numbers: columns step, site, quantity and value."""
    import pandas as pd

    rows = []
    for row in run.metrics([f"{monitor}/*"]):
        for key, value in row.items():
            if key != "step":
                site, _, quantity = key.removeprefix(f"{monitor}/").rpartition("/")
                rows.append((int(row["step"]), site, quantity, value))
    return pd.DataFrame(rows, columns=["step", "site", "quantity", "value"])
