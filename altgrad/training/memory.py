"""Freed memory stays with a process that only trains.

Each step frees its activations and asks for as many again. glibc maps large ones from the kernel and gives them back,
and the kernel zeroes every page again at its first touch: 3 to 10 % of a step (bench/RESULTS.md). So they are kept.

What is kept lies in pieces, so the process may hold more than it did: a few percent in training, half a gigabyte in
a loop of tensors of 64 MB. So a model is left alone that fills a good part of the machine by itself. And only processes
of our own do so: what a program that calls `altgrad.train` does with its memory is its own business.
"""

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of glibc's <malloc.h>."""
LARGEST = (1 << 31) - 1
STATES, SHARE = 16, 16
"""Bytes a parameter (weight, gradient, two moments), which may be this part of the machine's memory."""


def keep_freed_memory(parameters: int = 0) -> bool:
    """Have malloc map nothing and give nothing back from here on; whether it does. parameters: of the model."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return False
    return STATES * parameters * SHARE <= memory and _told()


@cache
def _told() -> bool:
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none to ask
        return False
    return bool(tell(MMAP_MAX, 0)) and bool(tell(TRIM_THRESHOLD, LARGEST))
