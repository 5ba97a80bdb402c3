"""python -m claims.run: take up the runs of the registered claims where they are, as claims/PLAN.md has it.

    python -m claims.run --workers 2                        all claims
    python -m claims.run --claim rounding_backward          one of them; may be said again
    python -m claims.run --count                            what is in, what is missing, and what it costs
    python -m claims.run --claim rounding_backward --pairs 3 --results mine      three of its pairs again, for yourself
    python -m claims.run --arm my.yaml                      add your recipe: an arm of your own beside bf16 and te_nvfp4

Leaves out what is in claims/results, and writes each row when its run ends: a machine that is lost costs the runs
under way. Stop it by Ctrl-C or a kill; the same command goes on.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from claims import own, plan
from claims.plan import Planned
from claims.registration import Claim, registered, settings
from study import driver, rows
from study.driver import ROOT, RUNS

RESULTS = Path(__file__).resolve().parent / "results"
DECLARED = ("claims/PLAN.md", "claims/arms.yaml", "claims/bench.yaml", "claims/settings.yaml", "claims/registry")
COST = {"weights": 0.1, "probes": 170.0, "tuning": 300.0, "edges": 300.0, "pairs": 300.0}
"""Seconds of a core, before any row of the part is in."""


def read(folder: Path = RESULTS) -> pd.DataFrame:
    """All rows below a folder."""
    found = rows.read(folder)
    return found if len(found) else pd.DataFrame(columns=["part", "fingerprint", "arm", "rate", "seed", "loss_tail"])


def work(spec: dict[str, Any], part: str, arm: str, runs: str) -> dict[str, Any]:
    """One run, in a process of its own."""
    from altgrad.training import RunSpec
    from altgrad.training.memory import keep_freed_memory
    from claims.row import train_row

    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*changed by the spec")  # which is what an arm is
    return train_row(RunSpec.made_from(spec), part, arm, Path(runs))


def look(arm: str, seed: int, fingerprint: str, changes: dict[str, Any], runs: str) -> dict[str, Any]:
    """One probe, in a process of its own."""
    from claims.arms import arms
    from claims.probes import probe_row

    return probe_row(arm, arms()[arm], seed, fingerprint, settings()["micro_batches"], Path(runs), **changes)


def weigh(arm: str, number: int, fingerprint: str) -> dict[str, Any]:
    """One look at a weight, in a process of its own."""
    from claims.arms import arms
    from claims.weights import weight_row

    return weight_row(arm, arms()[arm], number, fingerprint)


def submit(pool: ProcessPoolExecutor, each: Planned, changes: dict[str, Any], runs: Path) -> Future[dict[str, Any]]:
    """Start a run, a probe or a look at a weight. changes: of the bench."""
    if each.part == "weights":
        return pool.submit(weigh, each.arm, each.seed, each.fingerprint)
    if each.spec is None:
        return pool.submit(look, each.arm, each.seed, each.fingerprint, changes, str(runs))
    return pool.submit(work, each.spec.tree(), each.part, each.arm, str(runs))


def known(folder: Path, pairs: bool = False) -> pd.DataFrame:
    """The rows of a folder and the committed ones; of these pairs and weights only if asked for: readers make them."""
    own, committed = read(folder), read()
    committed = committed if pairs else committed[~committed["part"].isin(["pairs", "weights"])]
    frames = [each for each in (own, committed) if len(each)]
    return pd.concat(frames, ignore_index=True).drop_duplicates("fingerprint") if frames else own


def missing(claims: Mapping[str, Claim], folder: Path, most: int | None) -> tuple[list[Planned], dict[str, str]]:
    """What is left to run now. Rates that are committed are known in every folder of rows."""
    frame = known(folder, pairs=most is None)
    found, waits = plan.plan(frame, claims, most)
    have = set(frame["fingerprint"])
    return [each for each in found if each.fingerprint not in have], waits


def pilot(folder: Path) -> tuple[list[Planned], dict[str, str]]:
    """What is left of the pilot."""
    have = set(read(folder)["fingerprint"])
    return [each for each in plan.pilot() if each.fingerprint not in have], {}


def count(left: list[Planned], waits: Mapping[str, str], frame: pd.DataFrame) -> str:
    """What is missing, by part, and about what it costs."""
    lines = []
    for part in plan.PARTS:
        mine = [each for each in left if each.part == part]
        seen = frame[frame["part"] == part]
        each = float(seen["cpu_seconds"].mean()) if len(seen) else COST[part]
        told = f"{len(mine)} missing, about {len(mine) * each / 3600:.1f} h of a core"
        lines.append(f"{part:8} {len(seen)} in, {told}" + (f"; waits for {waits[part]}" if part in waits else ""))
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """What was said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claim", action="append", choices=list(registered()), help="only this one; may be said again")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--pairs", type=int, help="at most so many pairs; for rows of your own")
    parser.add_argument("--source", type=Path, help="a larger file of text; for rows of your own")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--count", action="store_true", help="train nothing; say what is in and what is missing")
    parser.add_argument("--pilot", action="store_true", help="the runs before the registration, in no table")
    parser.add_argument("--arm", type=Path, help="an arm of your own, as in claims/arms.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs are while they train")
    said = parser.parse_args()
    if said.results == RESULTS and (said.pilot or said.arm):
        said.results = RESULTS / "pilot" if said.pilot else ROOT / "claims-own"
    said.results, said.runs = said.results.resolve(), said.runs.resolve()
    if said.pairs is not None and said.pairs < 1:
        parser.error(f"--pairs {said.pairs}: give a whole number from 1 on.")
    if (said.pairs or said.source) and said.results == RESULTS:
        parser.error("--pairs and --source are for rows of your own; name their folder by --results.")
    return said


def main() -> None:
    """Run, or only count."""
    said = options()
    changes = {} if said.source is None else {"data__source": str(said.source.resolve())}
    plan.change_bench(**changes)
    claims = {name: claim for name, claim in registered().items() if said.claim is None or name in said.claim}
    if said.arm is not None:
        claims = own.claim_of(said.arm)
    if said.count:
        print(count(*missing(claims, said.results, said.pairs), read(said.results)))
        return
    if not (said.pilot or said.arm or driver.committed(*DECLARED)):
        sys.exit(f"{', '.join(DECLARED)} are not all committed; no result may precede its registration.")
    with driver.alone(said.results, "claims.run"):
        try:
            driver.drive(
                lambda: missing(claims, said.results, said.pairs) if not said.pilot else pilot(said.results),
                lambda pool, each: submit(pool, each, changes, said.runs),
                lambda row: rows.append(row, said.results),
                said.workers,
                said.most,
            )
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on.")
    if said.results not in (RESULTS, RESULTS / "pilot"):
        print(own.answer(claims, known(said.results, pairs=said.pairs is None)))


if __name__ == "__main__":
    main()
