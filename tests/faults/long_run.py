"""A run of many steps with everything on: memory, step time and disk stay where they are.

Slopes are Theil-Sen (the median over pairs of points), over the run's second half: caches fill in the first. The time
of a step is its own clock's, and only told: how long a step takes is no claim of a test.
"""

import itertools
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path

from altgrad.monitors import MonitorSpec
from altgrad.store import Run
from tests.faults.campaign import Figures, spec_text, words_file
from tests.faults.processes import start

LIMIT_MB = 1.0
"""What resident memory may grow in 1,000 steps."""


def everything(steps: int) -> str:
    """The run's spec: every monitor, checkpoints and evaluations on the way, codes stored with Kahan compensation."""
    kinds = [kind for kind in MonitorSpec.kinds() if _alone(kind)]
    text = spec_text("words.txt", steps=steps)
    text = text.replace("evaluate_every: 4", "evaluate_every: 1000").replace(
        "checkpoint_every: 2", "checkpoint_every: 200"
    )
    head, _, _ = text.rpartition("monitors:")
    each = ", ".join(f"{{kind: {kind}, every: 50}}" for kind in kinds)
    return f"{head}monitors: [{each}]\nlog_every: 10\ninterventions: [partition_clip]\n"


def _alone(kind: str) -> bool:
    """Whether a monitor asks for nothing that such a run lacks: `gsnr` for micro-batches."""
    return kind != "gsnr"


def slope(points: list[tuple[float, float]]) -> float:
    """Median slope over pairs of points, of at most 200 spread evenly."""
    points = points[:: max(1, len(points) // 200)]
    return statistics.median(
        (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if a[0] != b[0]
    )


def long_run(seed: int, count: int, folder: Path) -> Figures:
    """One run of `count` steps in a process of its own, whose memory is read from the outside."""
    figures = Figures(seed)
    words_file(folder / "words.txt", 40)
    (folder / "spec.yaml").write_text(everything(count))
    process = start(folder, ["train", "spec.yaml", "--json"])
    memory: list[tuple[float, float]] = []
    largest = 0

    def watch() -> None:
        nonlocal largest
        while not process.ended():
            (runs := list((folder / "runs" / "faults").glob("run-*"))) and _look(process.pid, runs[0], memory)
            with suppress(FileNotFoundError):  # one that goes as we look
                kept = sum(path.stat().st_size for path in folder.glob("runs/faults/*/checkpoints/*/*"))
                largest = max(largest, kept)
            time.sleep(0.5)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    code = process.wait()
    if code:
        figures.fail(f"exit {code}: {process.errors.read_text()[-300:]}", count)
        return figures
    (path,) = (folder / "runs" / "faults").glob("run-*")
    run = Run(path)
    rows = list(run.metrics(["time/tokens_per_second"]))
    times = [(row["step"], 32 / row["time/tokens_per_second"]) for row in rows if row["step"] > count / 2]
    late = [(step, mb) for step, mb in memory if step > count / 2]
    grown = slope(late) * 1000 if len(late) > 4 else 0.0
    figures.measured = {
        "steps": count, "samples_of_memory": len(late), "rss_mb": round(memory[-1][1], 1) if memory else 0.0,
        "rss_mb_per_1000_steps": round(grown, 3),
        "step_ms": round(1000 * statistics.median(seconds for _, seconds in times), 3),
        "step_ms_per_1000_steps": round(1e6 * slope(times), 4) if len(times) > 4 else 0.0,
        "checkpoints_mb_at_most": round(largest / 1e6, 3),
        "logs_bytes_per_step": round(sum((path / n).stat().st_size for n in ("metrics.jsonl", "events.jsonl")) / count),
        "files": len([each for each in path.rglob("*") if each.is_file()]),
    }  # fmt: skip
    if grown > LIMIT_MB:
        figures.fail("memory grows", f"{grown:.2f} MB per 1,000 steps")
    elif len(run.checkpoints.steps()) > 2:
        figures.fail("checkpoints are not cleared up", run.checkpoints.steps())
    else:
        figures.count, figures.outcomes["steps, flat"] = count, count
    return figures


def _look(pid: int, path: Path, memory: list[tuple[float, float]]) -> None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        step = Run(path).last().get("step", 0)
    except (OSError, ValueError):
        return
    memory.append((step, pages * 4096 / 1e6))
