"""`altgrad sweep MATRIX`: `altgrad.sweep`, drawn. Repeat the command to continue.

Everything is validated before anything starts. What a run came to is in the store and nowhere else, so a sweep that was
stopped, or whose driver was killed, goes on with the same command: finished runs are finished, diverged ones too, and
failed ones wait for `--rerun failed`. Exit codes: 0 every run completed or diverged, 1 some failed, 2 the matrix is
wrong, 3 the machine, 130 or 75 stopped.
"""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from altgrad.cli import console
from altgrad.numerals import alike, count_text, counted, duration
from altgrad.progress import progress


def sweep(
    matrix: Annotated[Path, typer.Argument(help="The matrix, as YAML or JSON.", metavar="MATRIX", show_default=False)],
    smoke: Annotated[bool, typer.Option("--smoke", help="Run the matrix's smoke variant: minutes.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value of every run; repeatable.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only runs whose id or arm matches, or seed=0, lr=..; of several, all."),
    ] = None,
    launcher: Annotated[
        str, typer.Option(metavar="KIND", help="local, slurm or ray, or as YAML: '{kind: slurm, partition: gpu}'.")
    ] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; else one for each GPU or core.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Retries for a worker that dies without making progress.")] = 3,
    rerun: Annotated[Literal["failed"] | None, typer.Option(help="Retry failed runs.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the sweep and all its workers, and exit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count runs, parameters and time, from three steps of each arm.")
    ] = False,
    power: Annotated[
        bool, typer.Option("--power", help="Estimate how many seed pairs are needed to detect --margin.")
    ] = False,
    margin: Annotated[float, typer.Option(help="The difference of validation loss, in nats, for --power.")] = 0.01,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: each worker's GPU if it has one.")] = "auto",
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end alone.")] = False,
) -> None:
    """Train every run of a matrix. Rerun the same command to resume."""
    progress("loading torch")
    from altgrad.cli.sweep_panel import choose
    from altgrad.sweeps import forecast, result
    from altgrad.sweeps.plan import make_plan

    with console.one_line_errors():
        if power or dry_run or cancel:
            plan = make_plan(matrix, smoke=smoke, sets=sets or (), only=only or (), store=runs)
            if power:
                _show_power(plan, forecast.pairs_needed(plan, runs, margin), margin, as_json)
            elif dry_run:
                _show_forecast(plan, forecast.forecast(plan, jobs), as_json)
            else:
                with result.open_sweep(plan, runs, launcher, jobs) as driver:
                    _say_cancelled(plan.name, result.cancel_sweep(driver))
            return
        with _signals() as asked:
            found = result.sweep(
                matrix, runs=runs, jobs=jobs, smoke=smoke, sets=sets or (), only=only or (), launcher=launcher,
                retries=retries, rerun_failed=rerun == "failed", device=device,
                view=lambda name: choose(name, quiet=as_json), stopped=lambda: bool(asked),
            )  # fmt: skip
    if as_json:
        console.print_json({"sweep": found.name, **found.totals, "runs": found.runs})
    else:
        _show_result(found)
        console.say_next(_next_steps(found, runs, _typed(matrix)))
    if not found.finished:
        raise typer.Exit(75 if asked and asked[0] == signal.SIGTERM else 130)
    if found.totals["failed"]:
        raise typer.Exit(1)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask for an end, as they come: workers then save their state first."""
    asked: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_result(found: Any) -> None:
    if len(found.cells) <= 60:
        console.table(["cell", "runs", "validation loss"], found.cells)
    failed = [run for run in found.runs if run["state"] == "failed"]
    for run in failed:
        console.say(f"{run['id']} failed: {run['reason']}")
    console.say(str(found))
    if failed:
        console.say(f"logs of the failed runs: {found.logs}")


def _typed(matrix: Path) -> str:
    """The command that was typed."""
    words = sys.argv[1:] if sys.argv[1:2] == ["sweep"] else ["sweep", str(matrix)]
    return shlex.join(["altgrad", *words])


def _next_steps(found: Any, runs: Path, command: str) -> dict[str, str]:
    """Commands that are useful now, with what each does."""
    if not found.finished:
        return {command: "continue"}
    elsewhere = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    again = command if " --rerun" in command else f"{command} --rerun failed"
    steps = {again: "retry the failed runs"} if found.totals["failed"] else {}
    projects = dict.fromkeys(Path(run["path"]).parent.name for run in found.runs)
    return steps | {f"altgrad report --project {name}{elsewhere}": "the comparison" for name in list(projects)[:2]}


def _say_cancelled(name: str, stopped: int | None) -> None:
    if stopped is None:
        console.say(f"asked the driver of {name} to stop; its runs save and stop within a minute")
    else:
        console.say(f"no driver is at work; {stopped} jobs that one had left were stopped")


def _show_forecast(plan: Any, found: Any, as_json: bool) -> None:
    facts = {"sweep": plan.name, "runs": len(plan.runs), "of": plan.total, "seconds_alone": found.seconds_alone}
    if as_json:
        arms = [asdict(arm) for arm in found.arms]
        console.print_json(facts | {"jobs": found.jobs, "seconds": found.seconds, "arms": arms})
        return
    console.table(
        ["arm", "runs", "parameters", "steps", "time, one by one"],
        [[a.arm, str(a.runs), count_text(a.parameters), count_text(a.steps), duration(a.seconds)] for a in found.arms],
    )
    for notice in plan.notices:
        console.say(notice)
    part = f" (of {plan.total})" if plan.total != len(plan.runs) else ""
    console.say(
        f"{plan.name}: {counted(len(plan.runs), 'run')}{part}, {duration(found.seconds_alone)} one by one; "
        f"{duration(found.seconds)} with {found.jobs} at once on this machine. Nothing was started."
    )


def _show_power(plan: Any, needs: Sequence[Any], margin: float, as_json: bool) -> None:
    if as_json:
        console.print_json({"sweep": plan.name, "margin": margin, "pairs": [asdict(found) for found in needs]})
        return
    header = ["arms", "pairs seen", "mean difference", "sd", "pairs needed", "at worst"]
    means, deviations = alike([n.mean for n in needs]), alike([n.deviation for n in needs])
    rows = [
        [f"{n.first} - {n.second}", str(n.pairs), mean, deviation, str(n.needed), str(n.at_worst)]
        for n, mean, deviation in zip(needs, means, deviations, strict=True)
    ]
    console.table(header, rows)
    console.say(
        f"for a difference of {margin:g} in validation loss, two-sided 5 %, power 80 %, one comparison; "
        "at worst: if the sd is at the upper end of its 90 % interval"
    )
