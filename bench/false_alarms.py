"""python -m bench.false_alarms: how often monitors cry wolf, on 20 healthy runs of the quickstart.

Ten precisions (below) x two seeds, each beside its bfloat16 twin of the same seed, with every monitor that can alarm,
at its defaults. So that all of it takes a quarter of an hour of one core, the quickstart is shortened: 60 steps of 8
sequences for 500 of 16 (`--steps`), the schedule with them, 16 validation batches, and a twin that rounds the operands
of the blocks' products to bfloat16, since autocast takes 3 seconds a step on a CPU without bfloat16. So that there is
more to see, the rank is looked at in every step, which is also where one observation resembles the last the most, and
what looks every 100 steps does so every 20.

Healthy is what ends within 0.1 nats of its twin's validation loss; a run that does not is shown and not counted. An
observation is one look of one monitor at one site or parameter. Alarms are counted as the user sees them, once at each
site; for ranks also as often as the statistic is beyond its limit, which is the larger number and the one held against
the limit of 10 in 1,000. The kept series are also looked at in every 2nd, 5th and 10th step.

Runs that are complete are not made again: `--limit 1` makes one more, `--limit 0` none and reports.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from altgrad.data.dataset import Batch
from altgrad.measures import RankTrend, observe_rank
from altgrad.monitors import MonitorSpec
from altgrad.monitors.rank import RankSpec
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run

ROOT = Path(__file__).resolve().parents[1]
SEEDS, STEPS, BATCHES, HEALTHY = (0, 1), 60, 16, 0.1
CADENCES = (1, 2, 5)


def casts(weight: str, grad_output: str = "e5m2", scaling: str = "delayed", operands: str = "shared") -> str:
    """A setting that casts weight and input, and grad_output, of every block."""
    one, other = (f"{{format: {fmt}, scaling: {scaling}}}" for fmt in (weight, grad_output))
    rule = f"match: blocks.*, weight: {one}, input: {one}, grad_output: {other}, operands: {operands}"
    return f"precision={{rules: [{{{rule}}}]}}"


# Matrices alone: with the gains of the norms stored in 8 bits, too, `codes` rightly raises an alarm for each of them.
STORED = "storage=[{}]".format(
    ", ".join(f"{{match: blocks.*.{part}.*.weight, kind: stochastic, format: e4m3fn}}" for part in ("attention", "mlp"))
)
ARMS: dict[str, tuple[str, ...]] = {
    "e4m3fn": (casts("e4m3fn"),),
    "e4m3fn, current": (casts("e4m3fn", scaling="current"),),
    "e4m3fn, mx": (casts("e4m3fn", scaling="mx", operands="per_product"),),
    "e4m3fn, stored": (casts("e4m3fn"), STORED),
    "e4m3ieee": (casts("e4m3ieee"),),
    "e3m4": (casts("e3m4"),),
    "e5m2": (casts("e5m2"),),
    "e2m5": (casts("e2m5"),),
    "e1m6": (casts("e1m6"),),
    "e6m1": (casts("e6m1", "e6m1"),),
}
TWIN = (casts("bf16", "bf16", "unscaled"),)


def monitors(twin: Path | None) -> tuple[MonitorSpec, ...]:
    """Every monitor that can alarm; `rank` beside the twin, where there is one."""
    found: list[dict[str, Any]] = [{"kind": "finite"}]
    for kind, spec in MonitorSpec.kinds().items():
        if any(metric.alarm for metric in spec.metrics):
            every = 1 if kind == "rank" else min(spec.model_fields["every"].default, 20)
            found.append({"kind": kind, "every": every})
            if kind == "rank":
                found[-1] |= {"twin": str(twin)} if twin else {}
    return tuple(MonitorSpec.of(each) for each in found)


@dataclass(frozen=True)
class Planned:
    """A run to make: what it is called, and its spec without monitors."""

    arm: str
    seed: int
    spec: RunSpec

    @property
    def run_name(self) -> str:
        """The folder's name."""
        return run_id(self.spec.name, self.spec.fingerprint(), self.spec.seed)


def planned(arm: str, seed: int, steps: int = STEPS) -> Planned:
    """An arm, or `twin`, at a seed."""
    name = "-".join(arm.replace(",", "").split())
    sets = [
        *(TWIN if arm == "twin" else ARMS[arm]), f"name={name}", f"seed={seed}", f"steps={steps}",
        f"evaluate_every={steps}", f"checkpoint_every={steps}", "data.batch_size=8", "threads=1", "engine=eager",
    ]  # fmt: skip
    return Planned(arm, seed, RunSpec.load(ROOT / "matrices" / "quickstart.yaml", sets))


def make(one: Planned, store: RunStore, twin: Run | None) -> bool:
    """Train it, unless that was done; true if it was trained now."""
    run = store.run("false-alarms", one.run_name)
    if run.exists and run.status == "completed":
        return False
    spec = one.spec.model_copy(update={"monitors": monitors(twin.path if twin else None)})
    if not run.exists:
        run.create(spec.to_yaml(), {"steps": spec.steps})
    dataset = spec.data.build(spec.seed, spec.model.context)
    whole = dataset.evaluation

    def shortened(split: str) -> Iterator[Batch]:
        return (batch for number, batch in enumerate(whole(split)) if number < BATCHES)

    dataset.evaluation = shortened
    outcome = train_run(spec, run, dataset)
    print(f"{one.arm}, seed {one.seed}: {outcome.status}, validation loss {outcome.validation['validation/loss']:.3f}")
    return True


@dataclass(frozen=True)
class Looked:
    """What monitors did in one run: by kind, observations and alarms; by cadence, the rank alarm's own count."""

    arm: str
    seed: int
    apart: float
    """Validation loss less the twin's, nats."""
    observations: Counter[str]
    alarms: Counter[str]
    ranks: dict[int, tuple[int, int, int]]
    """At each cadence: observations, how many were beyond the limit, matrices with one that was."""

    @property
    def healthy(self) -> bool:
        """Whether alarms in it are false."""
        return self.apart < HEALTHY


def series(run: Run) -> dict[str, list[float]]:
    """The stable rank of every matrix, step by step."""
    found: dict[str, list[float]] = {}
    for row in run.metrics(["rank/*/stable_rank"]):
        for key, value in row.items():
            if key != "step":
                found.setdefault(key.split("/")[1], []).append(value)
    return found


def rank_alarms(ranks: dict[str, list[float]], twins: dict[str, list[float]], cadence: int) -> tuple[int, int, int]:
    """What the rank monitor makes of kept series: observations, those beyond the limit, matrices with one."""
    spec = RankSpec()
    seen = beyond = matrices = 0
    for name, values in ranks.items():
        sensitive = any(fnmatchcase(name, pattern) for pattern in spec.sensitive_layers)
        drop = spec.sensitive_drop if sensitive else spec.drop
        trend, raised = RankTrend(), 0
        steps = [step for step in range(1, len(values) + 1) if step == 1 or step % cadence == 0]
        for step in steps:
            trend, verdict = observe_rank(trend, values[step - 1], twins[name][step - 1], drop=drop)
            raised += verdict.raised
        seen, beyond, matrices = seen + len(steps), beyond + raised, matrices + (raised > 0)
    return seen, beyond, matrices


def look(one: Planned, run: Run, twin: Run) -> Looked:
    """Read what a complete run kept."""
    observations: Counter[str] = Counter(finite=one.spec.steps)
    alarming = {spec.kind for spec in monitors(None)}
    for row in run.metrics():
        sites = {key.rpartition("/")[0] for key in row}
        observations.update(kind for kind in (site.partition("/")[0] for site in sites) if kind in alarming)
    alarms = Counter(event["monitor"] for event in run.events() if event["event"] == "alarm")
    ours, theirs = (each.last("validation/loss")["validation/loss"] for each in (run, twin))
    ranks, twins = series(run), series(twin)
    at = {cadence: rank_alarms(ranks, twins, cadence) for cadence in CADENCES}
    return Looked(one.arm, one.seed, ours - theirs, observations, alarms, at)


def rate(alarms: int, observations: int) -> str:
    """Alarms per 1,000 observations."""
    return f"{1000 * alarms / observations:.2f}" if observations else "-"


def report(found: Sequence[Looked]) -> Iterator[str]:
    """The tables, in Markdown."""
    counted = [each for each in found if each.healthy]
    yield f"{len(counted)} healthy runs of {len(found)}."
    yield from ("", "| monitor | observations | alarms | per 1,000 |", "|---|---|---|---|")
    observations = sum((each.observations for each in counted), Counter[str]())
    alarms = sum((each.alarms for each in counted), Counter[str]())
    for kind in sorted(observations):
        yield f"| {kind} | {observations[kind]:,} | {alarms[kind]} | {rate(alarms[kind], observations[kind])} |"
    whole = alarms.total(), observations.total()
    yield f"| all | {whole[1]:,} | {whole[0]} | {rate(*whole)} |"
    yield from ("", "| rank, looked at every | observations | beyond the limit | per 1,000 | matrices with an alarm |")
    yield "|---|---|---|---|---|"
    for cadence in CADENCES:
        seen, beyond, matrices = (sum(each.ranks[cadence][i] for each in counted) for i in range(3))
        steps = "step" if cadence == 1 else f"{cadence} steps"
        yield f"| {steps} | {seen:,} | {beyond} | {rate(beyond, seen)} | {matrices} |"
    yield from ("", "| precision | seed | loss less the twin's | alarms | rank beyond the limit, every step |")
    yield "|---|---|---|---|---|"
    for each in found:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(each.alarms.items())) or "none"
        health = "" if each.healthy else " (not healthy: not counted)"
        yield f"| {each.arm} | {each.seed} | {each.apart:+.3f}{health} | {told} | {each.ranks[1][1]} |"


def main() -> None:
    """Make what is missing, then report on what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="the store")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--limit", type=int, help="make at most so many runs now; 0 reports on what is there")
    options = parser.parse_args()
    store, left = RunStore(options.runs), options.limit
    found = []
    for seed in SEEDS:
        twin = planned("twin", seed, options.steps)
        beside = store.run("false-alarms", twin.run_name)
        for one in (twin, *(planned(arm, seed, options.steps) for arm in ARMS)):
            if left != 0:
                made = make(one, store, None if one is twin else beside)
                left = left - made if left is not None else None
            run = store.run("false-alarms", one.run_name)
            if one is not twin and run.exists and run.status == "completed":
                found.append(look(one, run, beside))
    if left is None or options.limit == 0:
        print("\n".join(report(found)))


if __name__ == "__main__":
    main()
