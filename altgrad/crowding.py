"""Whether other programs keep this machine's processors busy, and what a run of several threads loses by it.

Threads of one operation wait for the slowest of them, and torch's spin while they wait. Where one other process wants a
core, two threads on two cores fall from 12,010 to 2,874 tokens a second, since one of them is always behind; one thread
keeps 5,900 (bench/RESULTS.md). The system's load average counts who wants a core, a run's own threads among them.
"""

import os

SPARE = 0.5
"""By how much the load may pass the cores before it counts as crowded: an average lags behind."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """How many processes and threads wanted a core over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def remedy(threads: int) -> str:
    """What to do about a crowded machine; empty for a run of one thread."""
    if threads < 2:
        return ""
    return f"{threads} threads wait for each other and can fall to a quarter of their speed; `threads: 1` loses less."


def crowd(threads: int) -> str | None:
    """What a run of so many threads, which is at work, has to share its cores with, in words; None if it has them."""
    wanted = load_average()
    if wanted is None or wanted <= max(cores(), threads) + SPARE:
        return None
    return " ".join(
        filter(None, (f"Other programs use this machine (load {wanted:.1f} of {cores()} cores).", remedy(threads)))
    )
