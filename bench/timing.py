"""Timing on shared machines: everything that is compared runs in turn, round after round, in one process.

A figure alone says little where other jobs come and go; a ratio of two things that took turns says more. The median and
the quartiles over all rounds are reported; warm-up rounds are dropped.
"""

import ctypes
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def in_turn(
    tasks: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each task in each round. Tasks take turns within a round, so they share its disturbances, in another
    order each round: what a task leaves in caches and memory is the next one's.

    With a GPU a turn is ten calls without waiting between them: what the host does for one call, some 100 us for a
    compiled graph, is hidden behind the GPU's work on the one before, as it is in training, and counts only where it is
    the longer of the two.

    clock: time.process_time, say, on a machine whose processors others use.
    """
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    cuda, shuffled = torch.cuda.is_available(), random.Random(0)
    calls = 10 if cuda else 1
    for number in range(rounds + warm_up):
        for name, task in shuffled.sample(list(tasks.items()), len(tasks)):
            if cuda:
                torch.cuda.synchronize()
            begun = clock()
            for _ in range(calls):
                task()
            if cuda:
                torch.cuda.synchronize()
            if number >= warm_up:
                taken[name].append((clock() - begun) / calls)
    return taken


def summary(taken: Mapping[str, list[float]], against: str) -> dict[str, tuple[float, float, float, float]]:
    """For each task: median seconds, and the quartiles of its ratio to `against`, taken round by round."""
    found = {}
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken[against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = (statistics.median(seconds), low, middle, high)
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, from order statistics: between two of the values, whatever they come from."""
    from scipy.stats import binom

    ranked = sorted(values)
    below = int(binom.ppf(0.025, len(ranked), 0.5))
    return ranked[max(0, below - 1)], ranked[min(len(ranked) - 1, len(ranked) - below)]


def memory(fresh: bool) -> bool:
    """Decide whether large results get fresh pages or memory freed before; False where malloc is not glibc's.

    glibc decides by what was freed earlier in the process: the same cast of 2^24 elements costs 0.3 or 1.1 ns an
    element, as it happens, and a table that mixes both says nothing. Fresh: each allocation of 64 KiB or more is a
    mapping of its own, whose pages the kernel zeroes at first touch. Kept: nothing is mapped or given back.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # <malloc.h>
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return False
    if fresh:
        libc.malloc_trim(0)
        return bool(libc.mallopt(mmap_max, 1 << 16) and libc.mallopt(mmap_threshold, 1 << 16))
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, (1 << 31) - 1))


def machine() -> str:
    """One line: processor, cores in use, torch, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}{gpu}"
