"""What drives planned runs to their rows: `study.run` and `claims.run` alike.

A plan names runs, each with the fingerprint by which its row is known. `drive` trains what is missing, `--workers`
at a time in processes of one thread, and hands every row on when its run ends, so a machine that is lost costs the
runs under way. When a part is through, the plan is asked again, until nothing is left.
"""

import fcntl
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"


class Planned(Protocol):
    """One run of a plan: the part that it belongs to, and what its row is known by."""

    @property
    def part(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def title(self) -> str:
        """What it is called where it fails."""


Each = TypeVar("Each", bound=Planned)
Left = tuple[Sequence[Each], dict[str, str]]
"""What is to be run now, and by part what it waits for."""


def follow_parent(parent: int) -> None:
    """End this process when the driver has died, however it died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def committed(*paths: str) -> bool:
    """Whether these stand as the checkout's commit has them; also where there is no checkout to ask."""
    git = ["git", "-C", str(ROOT)]

    def succeeds(*words: str) -> bool:
        return subprocess.run([*git, *words], capture_output=True, check=False).returncode == 0

    if not succeeds("rev-parse", "HEAD"):
        return True
    untracked = [*git, "status", "--porcelain", "--", *paths]
    clean = not subprocess.run(untracked, capture_output=True, text=True, check=False).stdout.strip()
    return clean and all(succeeds("cat-file", "-e", f"HEAD:{path}") for path in paths)


def say(text: str) -> None:
    """A line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@contextmanager
def alone(folder: Path, program: str) -> Iterator[None]:
    """One driver a folder of rows: a second one would overwrite what the first appended."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another {program} is writing to {folder}; stop it first.")
        yield


def drive(
    missing: Callable[[], Left[Each]],
    submit: Callable[[ProcessPoolExecutor, Each], Future[dict[str, Any]]],
    take: Callable[[dict[str, Any]], None],
    workers: int,
    most: int | None = None,
) -> int:
    """Run what is missing, at most `most` runs; returns how many ended. submit: start one. take: keep its row."""
    done, tried = 0, dict[str, int]()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=follow_parent, initargs=(os.getpid(),), max_tasks_per_child=50
    ) as pool:
        while True:
            found, waits = missing()
            left = [each for each in found if tried.get(each.fingerprint, 0) < 2]
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
            done += _batch(batch, lambda each: submit(pool, each), take, workers)


def _batch(
    batch: Sequence[Each],
    submit: Callable[[Each], Future[dict[str, Any]]],
    take: Callable[[dict[str, Any]], None],
    workers: int,
) -> int:
    """These runs, `workers` at a time; each row is handed on as it comes."""
    waiting, under_way, done = list(batch), dict[Future[dict[str, Any]], Each](), 0
    while waiting or under_way:
        while waiting and len(under_way) < workers:
            each = waiting.pop(0)
            under_way[submit(each)] = each
        ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in ended:
            each = under_way.pop(future)
            if (error := future.exception()) is not None:
                say(f"{each.part} {each.title} failed: {error!r}")
                continue
            row = future.result()
            take(row)
            done += 1
            loss = "" if math.isnan(row["loss"]) else f" {row['loss']:.4f}"
            say(f"{row['part']} {row['id']}{loss} ({row['cpu_seconds']:.0f} s, {len(waiting)} to go)")
    return done
