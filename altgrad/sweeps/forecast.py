"""What a sweep will take: the time of its runs, from a few of their own steps, and the pairs of seeds of a margin.

Three steps of a run are trained in a folder that is thrown away, with the evaluation before them; the last two are
timed, since the first pays for what is built once. A run of S steps with an evaluation every e then takes

    start + S * step + (floor(S / e) + 1) * evaluation          (and monitors and checkpoints as they were due)
"""

import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from altgrad.progress import progress, within
from altgrad.spec.ranking import badness
from altgrad.statistics.power import Need, pairs_for_margin
from altgrad.store import RunStore
from altgrad.store.tracker import JSON
from altgrad.sweeps.launchers.local import LocalSpec
from altgrad.sweeps.plan import Plan, PlannedRun
from altgrad.training import RunSpec, train_run

STEPS = 3
START_SECONDS = 2.0
MOST_PROBES = 16
LOSS = "validation/loss"


@dataclass(frozen=True)
class ArmForecast:
    """The runs of one arm: how many, the parameters of each, steps and seconds of all; None where none was timed."""

    arm: str
    runs: int
    parameters: int
    steps: int
    seconds: float | None


@dataclass(frozen=True)
class SweepForecast:
    """The time of a sweep on this machine: its runs one by one, and so many at once."""

    arms: tuple[ArmForecast, ...]
    seconds_alone: float
    jobs: int

    @property
    def seconds(self) -> float:
        """With `jobs` runs at once."""
        return self.seconds_alone / self.jobs


def forecast(plan: Plan, jobs: int | None = None) -> SweepForecast:
    """The time of a plan's runs, from a few steps of one run of each arm. jobs: at once; else what this machine has."""
    by_arm: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in plan.runs:
        by_arm[run.place.arm or run.spec.name].append(run)
    arms = []
    for number, (arm, runs) in enumerate(by_arm.items()):
        each = None
        if number < MOST_PROBES:
            with within(f"timing {arm} ({number + 1} of {min(len(by_arm), MOST_PROBES)})"):
                each = seconds(runs[0].spec)
        # Within an arm runs differ in values, seldom in size: time goes by steps.
        total = None if each is None else sum(each * run.spec.steps / runs[0].spec.steps for run in runs)
        arms.append(ArmForecast(arm, len(runs), runs[0].parameters, sum(run.spec.steps for run in runs), total))
    probed = [(arm.seconds, arm.steps) for arm in arms if arm.seconds is not None]
    rate = sum(time for time, _ in probed) / sum(steps for _, steps in probed)
    alone = sum(arm.seconds if arm.seconds is not None else rate * arm.steps for arm in arms)
    at_once = min(len(plan.runs), jobs or LocalSpec().build(max(run.spec.threads or 1 for run in plan.runs)).room(0))
    return SweepForecast(tuple(arms), alone, at_once)


def pairs_needed(plan: Plan, runs: str | Path, margin: float) -> list[Need]:
    """For every two arms with finished pairs of seeds: the pairs that finding a difference of `margin` takes.

    ValueError where there are no two such arms.
    """
    losses: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for number, run in enumerate(plan.runs):
        progress("reading finished runs", number, len(plan.runs))
        found = RunStore(Path(runs)).run(run.spec.project, run.id)
        if found.exists and found.meta().get("status") == "completed":
            cell = ", ".join(f"{path}={value}" for path, value in run.place.axes.items())
            losses[run.place.arm or run.spec.name][cell, run.spec.seed] = found.last(LOSS)[LOSS]
    arms = list(losses)
    needs: list[Need] = []
    for first, second in [(a, b) for index, a in enumerate(arms) for b in arms[index + 1 :]]:
        cells = [pairs for pairs in _paired(losses[first], losses[second]) if len(pairs) > 1]
        if cells:
            needs.append(pairs_for_margin(first, second, cells, margin))
    if not needs:
        raise ValueError(f"{plan.name} has no two arms with two finished pairs of seeds yet; run more of it first.")
    return needs


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


@dataclass
class _Stopwatch:
    """A sink that notes when each step's numbers arrived."""

    began: float = field(default_factory=time.perf_counter)
    evaluated: float = 0.0
    at: dict[int, float] = field(default_factory=dict)

    def metrics(self, step: int, values: object) -> None:
        now = time.perf_counter()
        if step == 0:
            self.evaluated = now - self.began
            self.at[0] = now
        else:
            self.at.setdefault(step, now)

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        if event == "started":
            self.began = time.perf_counter()

    def close(self) -> None:
        """Nothing to do."""


def seconds(spec: RunSpec, device: str = "cpu") -> float:
    """Seconds that a run of this resolved spec would take alone on this machine."""
    short = spec.model_copy(
        update={"steps": STEPS, "evaluate_every": 10**9, "log_every": 1, "checkpoint_every": 10**9,
                "schedule": type(spec.schedule)()}
    )  # fmt: skip
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory(prefix="altgrad-probe-") as folder:
        run = RunStore(Path(folder)).run("probe", "probe").create(short.to_yaml(), {"steps": STEPS})
        data = short.data.build(short.seed, short.model.context)
        train_run(short, run, data, device=device, sinks=[watch])
    step = (watch.at[STEPS] - watch.at[1]) / (STEPS - 1)
    return START_SECONDS + spec.steps * step + (spec.steps // spec.evaluate_every + 1) * watch.evaluated
