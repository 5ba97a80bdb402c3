"""python -m study.run: take up the second edition where it is, as study/PLAN.md has it.

Plans every run, leaves out those whose fingerprint is in study/results/second, and trains the rest in order,
`--workers` at a time, one thread each. A run's row is written when it ends, so a machine that is lost costs the runs
under way; where the folder of runs is still there, even those continue from their last checkpoint. When a part is
through, what follows from it is planned, until nothing is left. Stop it by Ctrl-C or a kill; the same command goes on.
"""

import argparse
import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from study import parts, rows

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"


def work(spec: dict[str, Any], part: str, runs: str) -> dict[str, Any]:
    """One run, in a process of its own."""
    from altgrad.training import RunSpec
    from study import initial
    from study.row import train_row

    made = RunSpec.made_from(spec)
    if made.init_from is not None and not Path(made.init_from).exists():
        Path(made.init_from).parent.mkdir(parents=True, exist_ok=True)
        initial.write(made, made.init_from)
    return train_row(made, part, Path(runs))


def follow_parent(parent: int) -> None:
    """End this process when the driver has died, however it died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def plan_is_committed() -> bool:
    """Whether study/PLAN.md stands as the checkout's commit has it; also where there is no checkout to ask."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=False).returncode == 0
    plan = "study/PLAN.md"
    tracked = subprocess.run([*git, "cat-file", "-e", f"HEAD:{plan}"], capture_output=True, check=False).returncode == 0
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", plan], check=False).returncode == 0
    return not known or (tracked and same)


def missing(names: Sequence[str] | None, folder: Path) -> tuple[list[parts.Planned], dict[str, str], int]:
    """What is left to run now, by part what it waits for, and how many runs are named in all."""
    frame = rows.read(folder)
    planned, waits = parts.plan(frame, names)
    have = set(frame["fingerprint"])
    return [each for each in planned if each.fingerprint not in have], waits, len(planned)


def say(text: str) -> None:
    """A line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One driver a folder of rows: a second one would overwrite what the first appended."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another study.run is writing to {folder}; stop it first.")
        yield


def drive(names: Sequence[str] | None, workers: int, folder: Path, runs: Path, most: int | None) -> int:
    """Run what is missing, at most `most` runs; returns how many ended."""
    done, tried = 0, dict[str, int]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=follow_parent, initargs=(os.getpid(),), max_tasks_per_child=50
    ) as pool:
        while True:
            left, waits, _ = missing(names, folder)
            left = [each for each in left if tried.get(each.fingerprint, 0) < 2]
            left = left if most is None else left[: most - done]
            if not left:
                for name, reason in waits.items():
                    say(f"{name} waits for {reason}")
                return done
            part = left[0].part
            batch = [each for each in left if each.part == part]
            say(f"{part}: {len(batch)} runs to go")
            for each in batch:
                tried[each.fingerprint] = tried.get(each.fingerprint, 0) + 1
            done += _batch(pool, batch, workers, folder, runs)


def _batch(pool: ProcessPoolExecutor, batch: Sequence[parts.Planned], workers: int, folder: Path, runs: Path) -> int:
    """These runs, `workers` at a time; each row is written as it comes."""
    waiting, under_way, done = list(batch), dict[Future[dict[str, Any]], parts.Planned](), 0
    while waiting or under_way:
        while waiting and len(under_way) < workers:
            each = waiting.pop(0)
            under_way[pool.submit(work, each.spec.tree(), each.part, str(runs))] = each
        ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in ended:
            each = under_way.pop(future)
            if (error := future.exception()) is not None:
                say(f"{each.part} {each.spec.name}-{each.fingerprint[:8]}-s{each.spec.seed} failed: {error!r}")
                continue
            row = future.result()
            rows.append(row, folder)
            done += 1
            say(f"{row['part']} {row['id']} {row['loss']:.4f} ({row['cpu_seconds']:.0f} s, {len(waiting)} to go)")
    return done


def main() -> None:
    """Parse the options; run, or only count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument(
        "--part", action="append", choices=[*parts.PARTS, *parts.OUTSIDE], help="only this one; may be said again"
    )
    parser.add_argument("--most", type=int, help="stop after so many runs")
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
    if not plan_is_committed() and set(options.part or parts.PARTS) - set(parts.OUTSIDE):
        sys.exit("study/PLAN.md is not committed as it stands; no result may precede its plan. Commit it first.")
    os.chdir(ROOT)  # first weights are named from here
    with alone(options.results):
        try:
            drive(options.part, options.workers, options.results, options.runs, options.most)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on.")


if __name__ == "__main__":
    main()
