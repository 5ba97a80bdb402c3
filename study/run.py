"""python -m study.run: take up the second edition where it is, as study/PLAN.md has it.

Plans every run, leaves out those whose fingerprint is in study/results/second, and trains the rest in order,
`--workers` at a time, one thread each. A run's row is written when it ends, so a machine that is lost costs the runs
under way; where the folder of runs is still there, even those continue from their last checkpoint. When a part is
through, what follows from it is planned, until nothing is left. Stop it by Ctrl-C or a kill; the same command goes on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study import driver, parts, rows
from study.driver import ROOT, RUNS


def work(spec: dict[str, Any], part: str, runs: str, device: str = "cpu") -> dict[str, Any]:
    """One run, in a process of its own."""
    from altgrad.training import RunSpec
    from altgrad.training.memory import keep_freed_memory
    from study import initial
    from study.row import train_row

    keep_freed_memory()
    made = RunSpec.made_from(spec)
    if made.init_from is not None and not Path(made.init_from).exists():
        Path(made.init_from).parent.mkdir(parents=True, exist_ok=True)
        initial.write(made, made.init_from)
    return train_row(made, part, Path(runs), device)


def missing(names: Sequence[str] | None, folder: Path) -> tuple[list[parts.Planned], dict[str, str], int]:
    """What is left to run now, by part what it waits for, and how many runs are named in all."""
    frame = rows.read(folder)
    planned, waits = parts.plan(frame, names)
    have = set(frame["fingerprint"])
    return [each for each in planned if each.fingerprint not in have], waits, len(planned)


def drive(
    names: Sequence[str] | None, workers: int, folder: Path, runs: Path, most: int | None, device: str = "cpu"
) -> int:
    """Run what is missing, at most `most` runs; returns how many ended."""
    return driver.drive(
        lambda: missing(names, folder)[:2],
        lambda pool, each: pool.submit(work, each.spec.tree(), each.part, str(runs), device),
        lambda row: rows.append(row, folder),
        workers,
        most,
    )


def main() -> None:
    """Parse the options; run, or only count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument(
        "--part", action="append", choices=[*parts.PARTS, *parts.OUTSIDE], help="only this one; may be said again"
    )
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--device", default="cpu", help="where runs train; rows of the parts on this page are cpu's")
    parser.add_argument("--count", action="store_true", help="train nothing; say what is in and what is missing")
    parser.add_argument("--results", type=Path, default=rows.FOLDER, help="where rows are kept")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs are while they train")
    options = parser.parse_args()
    options.results, options.runs = options.results.resolve(), options.runs.resolve()
    if options.count:
        left, waits, named = missing(options.part, options.results)
        by_part = {name: sum(each.part == name for each in left) for name in parts.PARTS}
        for name, count in by_part.items():
            if options.part is None or name in options.part:
                print(f"{name:10} {'waits for ' + waits[name] if name in waits else f'{count} missing'}")
        print(f"{named - len(left)} of {named} runs that can be named are in")
        return
    if not driver.committed("study/PLAN.md") and set(options.part or parts.PARTS) - set(parts.OUTSIDE):
        sys.exit("study/PLAN.md is not committed as it stands; no result may precede its plan. Commit it first.")
    os.chdir(ROOT)  # first weights are named from here
    with driver.alone(options.results, "study.run"):
        try:
            drive(options.part, options.workers, options.results, options.runs, options.most, options.device)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on.")


if __name__ == "__main__":
    main()
