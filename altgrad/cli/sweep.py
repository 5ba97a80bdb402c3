"""`altgrad sweep MATRIX`: every run of a matrix, on this machine or a cluster; repeat the command to continue.

Everything is validated before anything starts. What a run came to is in the store and nowhere else, so a sweep that was
stopped, or whose driver was killed, goes on with the same command: finished runs are finished, diverged ones too, and
failed ones wait for `--rerun failed`. Exit codes: 0 every run completed or diverged, 1 some failed, 2 the matrix is
wrong, 3 the machine, 130 or 75 stopped.
"""

import signal
import statistics
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import console
from altgrad.display import number

LOSS = "validation/loss"


def sweep(
    matrix: Annotated[Path, typer.Argument(help="The matrix, as YAML or JSON.", metavar="MATRIX", show_default=False)],
    smoke: Annotated[bool, typer.Option("--smoke", help="Run the matrix's smoke variant: minutes.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value of every run; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only runs whose id or arm matches, or seed=0, set=, lr=..; repeatable."),
    ] = None,
    launcher: Annotated[
        str, typer.Option(metavar="KIND", help="local, slurm or ray, or as YAML: '{kind: slurm, partition: gpu}'.")
    ] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; else one for each GPU or core.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Deaths in a row, without getting further, to forgive.")] = 3,
    rerun: Annotated[Literal["failed"] | None, typer.Option(help="Hand out failed runs again.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the sweep and all its workers, and leave.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count runs, parameters and time, from three steps of each arm.")
    ] = False,
    power: Annotated[
        bool, typer.Option("--power", help="Pairs of seeds that a margin takes, from the spread of finished runs.")
    ] = False,
    margin: Annotated[float, typer.Option(help="The difference of validation loss that --power asks for.")] = 0.01,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: each worker's GPU if it has one.")] = "auto",
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end alone.")] = False,
) -> None:
    """Train every run of a matrix; repeat the command to continue it."""
    from altgrad.cli.sweep_facts import describe_plan, describe_power
    from altgrad.sweeps import LauncherSpec, Sweep, SweepFolder, make_plan

    with console.one_line_errors():
        plan = make_plan(matrix, smoke=smoke, sets=sets or [], store=runs)
        whole = len(plan.runs)
        plan = plan.only(only or [])
        folder = SweepFolder(runs, plan.name)
        if power:
            describe_power(plan, folder, margin, as_json)
            return
        if dry_run:
            describe_plan(plan, whole, jobs, as_json)
            return
        spec = _launcher(LauncherSpec, launcher, jobs)
        engine = spec.build(max(run.spec.threads or 1 for run in plan.runs))
        try:
            driver = Sweep(
                plan, folder, engine, spec.kind, device=device, retries=retries, rerun_failed=rerun == "failed"
            )
            if cancel:
                _cancel(driver)
                return
            _drive(driver, as_json)
        finally:
            engine.close()


def _launcher(family: Any, text: str, jobs: int | None) -> Any:
    """The launcher that a command line names; ValueError for one that is none."""
    from altgrad.spec import Document

    document = Document.parse(text, "--launcher")
    fields = {"kind": document.data} if isinstance(document.data, str) else document.data
    if isinstance(fields, dict) and jobs is not None:
        fields = {**fields, "jobs": jobs}
    return family.made_from(fields, "--launcher")


def _drive(driver: Any, as_json: bool) -> None:
    """Run the sweep with its panel (or lines), and leave with its exit code."""
    from altgrad.cli.sweep_panel import choose

    view = choose(driver.plan.name, quiet=as_json)
    for notice in driver.plan.notices:
        view.say(notice)
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        whole = driver.run(view.look, lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        view.close()
    states = [track.state for track in driver.tracks]
    if as_json:
        console.print_json({"sweep": driver.plan.name, **_totals(states), "runs": [_facts(t) for t in driver.tracks]})
    else:
        _summary(driver)
    if not whole:
        raise typer.Exit(75 if asked and asked[0] == signal.SIGTERM else 130)
    if "failed" in states:
        raise typer.Exit(1)


def _cancel(driver: Any) -> None:
    """Ask the driver to stop; where there is none, stop what it left."""
    if driver.folder.is_driven:
        driver.folder.ask_to_cancel()
        console.say(f"asked the driver of {driver.plan.name} to stop; its runs save and stop within a minute")
        return
    with driver.folder.lock():
        driver.take_stock()
        active = sum(track.active for track in driver.tracks)
        driver.stop(lambda _: None)
    console.say(f"no driver is at work; {active} jobs that one had left were stopped")


def _totals(states: list[str]) -> dict[str, int]:
    return {state: states.count(state) for state in ("completed", "diverged", "failed", "running", "waiting")}


def _facts(track: Any) -> dict[str, Any]:
    found = track.run.last(LOSS) if track.run.exists else {}
    labels = {"id": track.planned.id, **track.planned.place.labels}
    return labels | {
        "state": track.state, "reason": track.reason, "step": found.get("step", 0), LOSS: found.get(LOSS),
        "path": str(track.run.path),
    }  # fmt: skip


def _summary(driver: Any) -> None:
    """One line an arm and cell: how many runs, and their validation losses over the seeds."""
    groups: dict[str, list[Any]] = {}
    for track in driver.tracks:
        place = track.planned.place
        cell = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in place.axes.items())
        groups.setdefault(" ".join(filter(None, [place.arm, cell])) or track.planned.spec.name, []).append(track)
    rows = []
    for name, tracks in groups.items():
        states = [track.state for track in tracks]
        losses = [track.run.last(LOSS).get(LOSS) for track in tracks if track.state == "completed"]
        found = [loss for loss in losses if loss is not None]
        spread = f"± {number(statistics.stdev(found))}" if len(found) > 1 else ""
        mean = f"{number(statistics.fmean(found), 5)} {spread}".strip() if found else "-"
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        rows.append([name, told, mean])
    if len(rows) <= 60:
        console.table(["cell", "runs", "validation loss"], rows)
    for track in driver.tracks:
        if track.state == "failed":
            console.say(f"{track.planned.id} failed: {track.reason}")
    states = [track.state for track in driver.tracks]
    told = ", ".join(f"{count} {state}" for state, count in _totals(states).items() if count)
    console.say(f"{driver.plan.name}: {len(states)} runs: {told}")
    if "failed" in states:
        console.say(
            "`--rerun failed` hands the failed ones out again; their logs are in " + str(driver.folder.path / "logs")
        )
