"""altgrad.sweep: every run of a matrix trained, and what came of each, as data."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from altgrad.document import Document
from altgrad.numerals import alike, counted
from altgrad.sweeps.driver import RETRIES, Sweep, Track
from altgrad.sweeps.folder import SweepFolder
from altgrad.sweeps.launchers.launcher import LauncherSpec
from altgrad.sweeps.plan import Plan, make_plan
from altgrad.sweeps.progress import SweepLines, SweepView

LOSS = "validation/loss"


@dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    runs: one mapping a run (id, arm, seed and what its cell sets, state, reason, step, validation/loss, path), so that
    `pandas.DataFrame(result.runs)` is a table of them. finished: False if it was stopped before its end. cells: an arm
    and cell, its runs by state, and its validation loss as mean and standard deviation over seeds.
    """

    name: str
    runs: list[dict[str, Any]]
    finished: bool
    cells: list[list[str]]
    logs: Path

    @property
    def totals(self) -> dict[str, int]:
        """Runs by state."""
        states = [run["state"] for run in self.runs]
        return {state: states.count(state) for state in ("completed", "diverged", "failed", "running", "waiting")}

    def __str__(self) -> str:
        told = ", ".join(f"{count} {state}" for state, count in self.totals.items() if count)
        return f"{self.name}: {counted(len(self.runs), 'run')}: {told}"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.cells)
        head = "<tr><th>cell</th><th>runs</th><th>validation loss</th></tr>"
        return f"<p><b>{escape(str(self))}</b></p><table>{head}{rows}</table>"


def sweep(
    matrix: str | Path,
    *,
    runs: str | Path = "runs",
    jobs: int | None = None,
    smoke: bool = False,
    sets: Iterable[str] = (),
    only: Iterable[str] = (),
    launcher: str | Mapping[str, Any] = "local",
    retries: int = RETRIES,
    rerun_failed: bool = False,
    device: str = "auto",
    progress: bool = True,
    view: Callable[[str], SweepView] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> SweepResult:
    """Train every run of a matrix; the same call again continues it, and gives the finished runs as they are.

    jobs: runs at once, else one for each GPU or core. smoke: the matrix's smoke variant. sets: `path=value` for every
    run. only: patterns that a run's id, arm or `key=value` must match. launcher: a kind, or its fields. retries: deaths
    in a row, without getting further, that a run survives. progress: a line on stderr for each run that ends; view:
    what shows it instead, made from the sweep's name. stopped: asked after every round.

    Raises SpecError or ValueError for what `train` would refuse, before anything starts, and LockedError where another
    process drives this sweep.
    """
    plan = make_plan(Path(matrix), smoke=smoke, sets=sets, only=only, store=Path(runs))
    with open_sweep(plan, runs, launcher, jobs, device=device, retries=retries, rerun_failed=rerun_failed) as driver:
        shown = view(plan.name) if view is not None else SweepLines(plan.name) if progress else SweepView()
        for notice in plan.notices:
            shown.say(notice)
        try:
            finished = driver.run(shown.look, stopped)
        finally:
            shown.close()
    return SweepResult(plan.name, [_row(t) for t in driver.tracks], finished, _cells(driver.tracks), driver.folder.logs)


def open_sweep(
    plan: Plan, runs: str | Path, launcher: str | Mapping[str, Any], jobs: int | None = None, **settings: Any
) -> Sweep:
    """The driver of a plan, with the launcher that is named; a context, which closes the launcher."""
    fields: Any = Document.parse(launcher, "--launcher").data if isinstance(launcher, str) else dict(launcher)
    if isinstance(fields, str):
        fields = {"kind": fields}
    if isinstance(fields, dict) and jobs is not None:
        fields = {**fields, "jobs": jobs}
    spec = LauncherSpec.made_from(fields, "--launcher")
    engine = spec.build(max(run.spec.threads or 1 for run in plan.runs))
    return Sweep(plan, SweepFolder(Path(runs), plan.name), engine, spec.kind, **settings)


def cancel_sweep(driver: Sweep) -> int | None:
    """Ask the driver at work to stop (None), or stop what an earlier one left (how many runs)."""
    if driver.folder.is_driven:
        driver.folder.ask_to_cancel()
        return None
    with driver.folder.lock():
        driver.take_stock()
        active = sum(track.active for track in driver.tracks)
        driver.stop(lambda _: None)
    return active


def _row(track: Track) -> dict[str, Any]:
    last = track.run.last(LOSS) if track.run.exists else {}
    return {
        "id": track.planned.id, **track.planned.place.labels, "state": track.state, "reason": track.reason,
        "step": last.get("step", 0), LOSS: last.get(LOSS), "path": str(track.run.path),
    }  # fmt: skip


def _cells(tracks: Iterable[Track]) -> list[list[str]]:
    groups: dict[str, list[Track]] = {}
    for track in tracks:
        place = track.planned.place
        cell = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in place.axes.items())
        groups.setdefault(" ".join(filter(None, [place.arm, cell])) or track.planned.spec.name, []).append(track)
    rows: list[list[str]] = []
    known: list[list[float]] = []
    for name, inside in groups.items():
        states = [track.state for track in inside]
        rows.append([name, ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))])
        losses = [track.run.last(LOSS).get(LOSS) for track in inside if track.state == "completed"]
        known.append([loss for loss in losses if loss is not None])
    means = alike([statistics.fmean(each) if each else None for each in known])
    spreads = alike([statistics.stdev(each) if len(each) > 1 else None for each in known])
    spreads = [f" ± {spread.strip()}" if len(each) > 1 else "" for each, spread in zip(known, spreads, strict=True)]
    return [[*row, mean.strip() + spread] for row, mean, spread in zip(rows, means, spreads, strict=True)]
