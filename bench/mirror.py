"""python -m bench.mirror: what mirroring a run at W&B costs the run, while it works and while it does not.

The real client in its own process, against the tests' server on the loopback. Two questions:

    a row      seconds that the training thread spends handing one row over (the median, and as a share of a step of
               `--step` seconds), of 5 keys and of 400
    an end     seconds that closing the tracker takes after the last step, and local rows lost, with a service that
               works, a host out of reach, a killed client, a server that answers 500, and a full disk (root alone)

Rows are paced at `--pace` seconds, as steps would: unpaced, a queue would be measured and not a run.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from altgrad.store import RunFiles, RunStore, Tracker
from altgrad.store.mirror import MirrorSink, MirrorSpec
from tests.store.wandb_server import WandbServer

CASES = ("no sink", "it works", "host out of reach", "process killed", "server answers 500", "disk full")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB with 4 left. CalledProcessError for whoever may not mount one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        (folder / "filler").write_bytes(b"0" * (60 << 10))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def sitting(folder: Path, case: str, rows: int, keys: int, pace: float) -> tuple[list[float], float, int, int, int]:
    """Seconds of each row and of the end, local rows lost, rows that the service has, warnings."""
    server = WandbServer()
    environment = dict(server.environment)
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        if case == "host out of reach":
            environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        if case == "disk full":
            environment["WANDB_DIR"] = str(stack.enter_context(small_disk(folder / "small")))
        stack.enter_context(mock.patch.dict(os.environ, environment))
        run = RunStore(folder / "runs").run("bench", "mirror-0123abcd-s0")
        run.create("name: mirror\n", {})
        mirror = None if case == "no sink" else MirrorSink(MirrorSpec.of("wandb"), run)
        tracker = Tracker(RunFiles(run), *([mirror] if mirror else []))
        tracker.event(0, "started", "started")
        values = {f"train/key_{number}": float(number) for number in range(keys)}
        taken = []
        for step in range(1, rows + 1):
            if step == rows // 2:
                if case == "process killed" and mirror and mirror._link:
                    os.kill(mirror._link.pid, signal.SIGKILL)
                server.answer = "error" if case == "server answers 500" else "well"
            began = time.perf_counter()
            tracker.metrics(step, values)
            taken.append(time.perf_counter() - began)
            time.sleep(pace)
        began = time.perf_counter()
        tracker.event(rows, "stopped", "completed", status="completed")
        tracker.close()
        end = time.perf_counter() - began
        warnings = sum(event["event"] == "warning" for event in run.events())
        shown = len(server.runs[run.id].history) if run.id in server.runs else 0
        return taken, end, rows - sum(1 for _ in run.metrics()), shown, warnings


def main() -> None:
    """Both tables, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--step", type=float, default=0.18, help="Seconds of the step that a row belongs to.")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    asked = parser.parse_args()
    print("| case | keys | a row: us | beyond no sink, % of a step | the end: s | rows lost | rows at W&B | warnings |")
    print("|---|---|---|---|---|---|---|---|")
    for keys in (5, 400):
        alone = 0.0
        for case in [case for case in asked.cases if keys == 5 or case in CASES[:2]]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    taken, end, lost, shown, warnings = sitting(Path(folder), case, asked.rows, keys, asked.pace)
                except subprocess.CalledProcessError:
                    print(f"| {case} | {keys} | not measured: it takes root to mount a small disk | | | | | |")
                    continue
            median = statistics.median(taken)
            alone = median if case == "no sink" else alone
            share = 100 * (median - alone) / asked.step
            print(
                f"| {case} | {keys} | {1e6 * median:.0f} | {share:.3f} | {end:.1f} | {lost} | {shown} | {warnings} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
