"""What the claims run, in order: PLAN.md in code.

    weights   every arm whose cast of real weights a test takes, on each of MiniLM's matrices: seconds
    probes    every arm that a probe test takes, on each probe seed: cheap, and first
    tuning    every arm that a loss test takes, at the common rates, on the tuning seeds
    edges     an arm whose lowest mean lies at an end of its rates goes on by a factor of two, at most `further` times
    pairs     at its lr*, the rate of its lowest mean; on as many of the pair seeds as its tests ask for (`pairs_of`)

Within a part the runs of an arm follow each other, since a worker's next run finds the graphs of a like one compiled;
the first pairs of all arms come before the second's. Arms that claims share are run once: rows are known by
fingerprints. A part that follows from runs that are missing waits, arm by arm.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from altgrad.statistics.power import POWER
from altgrad.training import RunSpec
from claims.arms import Arm, arms
from claims.probes import probed
from claims.registration import FIRST, LOSS, PROBES, WEIGHTS, Claim, ClaimTest, power_of, settings

PARTS = ("weights", "probes", "tuning", "edges", "pairs")


@dataclass(frozen=True)
class Planned:
    """A run, or a probe or a look at a weight (spec None), whose seed is the number of a matrix."""

    part: str
    arm: str
    seed: int
    spec: RunSpec | None
    fingerprint: str

    @property
    def title(self) -> str:
        """As its row's id."""
        return f"{self.arm}-{self.fingerprint[:8]}-s{self.seed}"


class Rows:
    """Rows that are in, by arm, rate and seed."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.have = set(frame["fingerprint"]) if len(frame) else set()
        self._loss: dict[tuple[str, float], dict[int, float]] = {}
        self._probe: dict[str, dict[int, dict[str, float]]] = {}
        for row in frame.to_dict("records"):
            if row["part"] in ("weights", "probes"):
                self._probe.setdefault(row["arm"], {})[int(row["seed"])] = row
            else:
                self._loss.setdefault((row["arm"], row["rate"]), {})[int(row["seed"])] = row["loss_tail"]

    def losses(self, arm: str, rate: float) -> dict[int, float]:
        """The estimand by seed, of one arm at one rate."""
        return self._loss.get((arm, rate), {})

    def probes(self, arm: str, measure: str) -> dict[int, float]:
        """A measure by seed, of one arm; by matrix, where weights are measured."""
        part = "weights" if measure == WEIGHTS else "probes"
        own = self._probe.get(arm, {}).items()
        return {seed: float(row[measure]) for seed, row in own if row["part"] == part}

    def values(self, test: ClaimTest, known: Mapping[str, Arm]) -> dict[str, dict[int, float]]:
        """What a test compares, by arm and seed; an arm whose rate is not known yet has none."""
        if test.measure != LOSS:
            return {arm: self.probes(arm, test.measure) for arm in test.needs}
        pairs = set(pair_seeds())
        found = {arm: self.losses(arm, rate) if (rate := lr_star(self, arm, known)) else {} for arm in test.needs}
        return {arm: {s: v for s, v in by.items() if s in pairs} for arm, by in found.items()}


def pair_seeds() -> range:
    """The seeds that judge."""
    first = settings()["pairs"]["first"]
    return range(first, first + settings()["pairs"]["most"])


def rates_of(rows: Rows, arm: str) -> list[float]:
    """The common rates, and what an arm's lowest losses made necessary beyond them so far."""
    said = settings()
    rates, more = sorted(said["rates"]), 0
    while more < said["further"]:
        means = [_mean(rows, arm, rate) for rate in rates]
        if any(mean is None for mean in means):
            return rates
        best = min(range(len(rates)), key=lambda n: means[n])  # type: ignore[arg-type, return-value]
        if 0 < best < len(rates) - 1:
            return rates
        beyond = rates[0] / 2 if best == 0 else rates[-1] * 2
        rates, more = sorted([*rates, beyond]), more + 1
    return rates


def lr_star(rows: Rows, arm: str, known: Mapping[str, Arm]) -> float | None:
    """The rate of an arm's lowest mean over the tuning seeds; ties go to the smaller one. None while any is missing."""
    arm = known[arm].like or arm
    rates = rates_of(rows, arm)
    means = {rate: mean for rate in rates if (mean := _mean(rows, arm, rate)) is not None}
    return min(sorted(means), key=means.__getitem__) if len(means) == len(rates) else None


def at_edge(rows: Rows, arm: str, known: Mapping[str, Arm]) -> bool:
    """Whether lr* lies at an end of all that was tried."""
    best, rates = lr_star(rows, arm, known), rates_of(rows, known[arm].like or arm)
    return best in (rates[0], rates[-1])


def _mean(rows: Rows, arm: str, rate: float) -> float | None:
    losses = rows.losses(arm, rate)
    values = [losses[seed] for seed in settings()["tuning"] if seed in losses]
    return math.fsum(values) / len(values) if len(values) == len(settings()["tuning"]) else None


def contrast_of(test: ClaimTest, values: Mapping[str, Mapping[int, float]], share: bool = False) -> dict[int, float]:
    """A test's contrast by seed, on the seeds that all its arms have."""
    weights = (test.share_of or {}) if share else test.contrast
    seeds = set.intersection(*(set(values[arm]) for arm in weights)) if weights else set()
    return {seed: math.fsum(w * values[arm][seed] for arm, w in weights.items()) for seed in sorted(seeds)}


def pairs_of(test: ClaimTest, claim: Claim, rows: Rows, known: Mapping[str, Arm]) -> int:
    """Stein's two stages: the first pairs; once all are in, as many as their sd asks for, at most n.

    Never by their means. The sd is pooled over the claim's loss tests with a first stage of their own.
    """
    first = list(pair_seeds())[: min(FIRST, test.n)]
    spreads = []
    for other in claim.loss_tests:
        found = contrast_of(other, rows.values(other, known))
        mine = [found[seed] for seed in first if seed in found]
        if len(mine) < len(first):
            return len(first)
        spreads.append(float(pd.Series(mine).var()))
    sd = math.sqrt(math.fsum(spreads) / len(spreads))
    return next((n for n in range(len(first), test.n) if power_of(test, claim.size, n, sd) >= POWER), test.n)


def plan(
    frame: pd.DataFrame, claims: Mapping[str, Claim], most: int | None = None
) -> tuple[list[Planned], dict[str, str]]:
    """Every run that can be named now, in order, those that are in included; and by part what it waits for.

    most: pairs, of those who look for themselves.
    """
    rows, known = Rows(frame), arms()
    tuned = list(dict.fromkeys(
        known[arm].like or arm for claim in claims.values() for test in claim.loss_tests for arm in test.needs
    ))  # fmt: skip
    found = [*_weights(claims), *_probes(claims, known)]
    said = settings()
    for part in ("tuning", "edges"):
        found += [
            _run(part, arm, rate, seed)
            for arm in tuned
            for rate in (said["rates"] if part == "tuning" else rates_of(rows, arm))
            if part == "tuning" or rate not in said["rates"]
            for seed in said["tuning"]
        ]
    waits = {}
    waiting = [arm for arm in tuned if lr_star(rows, arm, known) is None]
    if waiting:
        waits["pairs"] = f"the rates of {', '.join(waiting)}"
    found += _pairs(rows, claims, known, most)
    return list({each.fingerprint: each for each in reversed(found)}.values())[::-1], waits


def _pairs(rows: Rows, claims: Mapping[str, Claim], known: Mapping[str, Arm], most: int | None) -> list[Planned]:
    wanted: dict[str, int] = {}
    for claim in claims.values():
        for test in claim.loss_tests:
            n = pairs_of(test, claim, rows, known)
            n = n if most is None else min(n, most)
            for arm in test.needs:
                wanted[arm] = max(wanted.get(arm, 0), n)
    rates = {arm: rate for arm in wanted if (rate := lr_star(rows, arm, known)) is not None}
    seeds = list(pair_seeds())
    return [
        _run("pairs", arm, rate, seed)
        for first, last in ((0, FIRST), (FIRST, len(seeds)))
        for arm, rate in rates.items()
        for seed in seeds[first : min(last, wanted[arm])]
    ]


def pilot() -> list[Planned]:
    """What is measured before anything is registered, in no table: loss against tokens, and what an FP4 step takes."""
    seed, rate = settings()["pilot"][0], settings()["rates"][1]
    lengths = {"bf16": (500, 1000), "te_nvfp4": (250,)}
    found = []
    for arm, steps in ((arm, steps) for arm, some in lengths.items() for steps in some):
        spec = arms()[arm].spec(arm, rate, seed, steps=steps, evaluate_every=steps, checkpoint_every=steps // 100)
        found.append(Planned("pilot", arm, seed, spec, spec.fingerprint()))
    return found


def _weights(claims: Mapping[str, Claim]) -> Iterator[Planned]:
    tests = [test for claim in claims.values() for test in claim.tests if test.measure == WEIGHTS]
    for number in range(max((test.n for test in tests), default=0)):
        for arm in dict.fromkeys(arm for test in tests for arm in test.needs):
            yield Planned("weights", arm, number, None, probe_fingerprint(arm, number, 0))


def _probes(claims: Mapping[str, Claim], known: Mapping[str, Arm]) -> Iterator[Planned]:
    needed = dict.fromkeys(
        arm for claim in claims.values() for test in claim.tests if test.measure in PROBES for arm in test.needs
    )
    for seed in settings()["probes"]:
        for arm in needed:
            if probed(known[arm]):
                yield Planned("probes", arm, seed, None, probe_fingerprint(arm, seed, settings()["micro_batches"]))


_CHANGES: dict[str, Any] = {}


def change_bench(**changes: Any) -> None:
    """From now on, in this process, every run has these values, such as data__source; its rows are others."""
    _CHANGES.update(changes)
    for cached in (probe_fingerprint, _run, _spec):
        cached.cache_clear()


@cache
def probe_fingerprint(arm: str, seed: int, micro_batches: int) -> str:
    """What a probe's row is known by: the arm's run, the seed, and how much is summed (of a weight, nothing)."""
    said: dict[str, Any] = {
        "run": arms()[arm].spec(arm, settings()["rates"][1], seed, **_CHANGES).fingerprint(),
        "n": micro_batches,
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@cache
def _run(part: str, arm: str, rate: float, seed: int) -> Planned:
    spec = _spec(arm).model_copy(
        update={"seed": seed, "optimizer": _spec(arm).optimizer.model_copy(update={"lr": rate})}
    )
    return Planned(part, arm, seed, spec, spec.fingerprint())


@cache
def _spec(arm: str) -> RunSpec:
    return arms()[arm].spec(arm, settings()["rates"][0], 0, **_CHANGES)
