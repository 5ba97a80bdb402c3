"""What `altgrad sweep` says without running anything: `--dry-run` and `--power`."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from altgrad.cli import console
from altgrad.display import count, duration, number
from altgrad.spec.ranking import badness
from altgrad.store import RunStore
from altgrad.sweeps import Plan, PlannedRun, SweepFolder
from altgrad.sweeps.launchers.local import LocalSpec
from altgrad.sweeps.power import Need, need
from altgrad.sweeps.probe import seconds

LOSS = "validation/loss"
MOST_PROBES = 16


def describe_plan(plan: Plan, whole: int, jobs: int | None, as_json: bool) -> None:
    """Runs, parameters and time by arm; the time from a few steps of one run of each arm, on this machine."""
    by_arm: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in plan.runs:
        by_arm[run.place.arm or run.spec.name].append(run)
    rows: list[dict[str, Any]] = []
    for number_of_arm, (arm, runs) in enumerate(by_arm.items()):
        each = seconds(runs[0].spec) if number_of_arm < MOST_PROBES else None
        # Within an arm runs differ in values, seldom in size: time goes by steps.
        total = None if each is None else sum(each * run.spec.steps / runs[0].spec.steps for run in runs)
        steps = sum(run.spec.steps for run in runs)
        rows.append({"arm": arm, "runs": len(runs), "parameters": runs[0].parameters, "steps": steps, "seconds": total})
    probed = [row for row in rows if row["seconds"] is not None]
    rate = sum(row["seconds"] for row in probed) / sum(row["steps"] for row in probed)
    alone = sum(row["seconds"] if row["seconds"] is not None else rate * row["steps"] for row in rows)
    at_once = min(len(plan.runs), jobs or LocalSpec().build(max(run.spec.threads or 1 for run in plan.runs)).room(0))
    facts = {"sweep": plan.name, "runs": len(plan.runs), "of": whole, "seconds_alone": alone, "jobs": at_once}
    if as_json:
        console.print_json(facts | {"seconds": alone / at_once, "arms": rows})
        return
    console.table(
        ["arm", "runs", "parameters", "steps", "time, one by one"],
        [
            [row["arm"], str(row["runs"]), count(row["parameters"]), count(row["steps"]), duration(row["seconds"])]
            for row in rows
        ],
    )
    for notice in plan.notices:
        console.say(notice)
    part = f" (of {whole})" if whole != len(plan.runs) else ""
    console.say(
        f"{plan.name}: {len(plan.runs)} runs{part}, {duration(alone)} one by one; "
        f"{duration(alone / at_once)} with {at_once} at once on this machine. Nothing was started."
    )


def describe_power(plan: Plan, folder: SweepFolder, margin: float, as_json: bool) -> None:
    """For every two arms with finished pairs: the pairs of seeds that finding a difference of `margin` takes."""
    losses: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    store = RunStore(folder.store)
    for run in plan.runs:
        found = store.run(run.spec.project, run.id)
        if found.exists and found.meta().get("status") == "completed":
            cell = ", ".join(f"{path}={value}" for path, value in run.place.axes.items())
            losses[run.place.arm or run.spec.name][cell, run.spec.seed] = found.last(LOSS)[LOSS]
    arms = list(losses)
    pairs = [(a, b) for index, a in enumerate(arms) for b in arms[index + 1 :]]
    needs: list[Need] = []
    for first, second in pairs:
        cells = [found for found in _paired(losses[first], losses[second]) if len(found) > 1]
        if cells:
            needs.append(need(first, second, cells, margin))
    if not needs:
        raise ValueError(f"{plan.name} has no two arms with two finished pairs of seeds yet; run more of it first.")
    if as_json:
        console.print_json({"sweep": plan.name, "margin": margin, "pairs": [asdict(found) for found in needs]})
        return
    header = ["arms", "pairs seen", "mean difference", "sd", "pairs needed", "at worst"]
    rows = [
        [f"{n.first} - {n.second}", str(n.pairs), number(n.mean), number(n.deviation), str(n.needed), str(n.at_worst)]
        for n in needs
    ]
    console.table(header, rows)
    console.say(
        f"for a difference of {margin:g} in validation loss, two-sided 5 %, power 80 %, one comparison; "
        "at worst: if the sd is at the upper end of its 90 % interval"
    )


def _paired(first: dict[tuple[str, int], float], second: dict[tuple[str, int], float]) -> list[list[float]]:
    """Differences at equal cell and seed, cell by cell.

    Arms that share no cell (a control that passes over an axis) are paired at their own best cell.
    """
    if not first.keys() & second.keys():
        first, second = ({("", seed): loss for (_, seed), loss in _best(losses).items()} for losses in (first, second))
    by_cell: dict[str, list[float]] = defaultdict(list)
    for cell, seed in sorted(first.keys() & second.keys()):
        by_cell[cell].append(first[cell, seed] - second[cell, seed])
    return list(by_cell.values())


def _best(losses: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """The seeds of the cell with the least mean loss."""
    cells: dict[str, list[float]] = defaultdict(list)
    for (cell, _), loss in losses.items():
        cells[cell].append(loss)
    best = min(cells, key=lambda cell: badness(sum(cells[cell]) / len(cells[cell]), "higher"))
    return {key: loss for key, loss in losses.items() if key[0] == best}
